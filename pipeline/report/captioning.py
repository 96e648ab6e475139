"""What the report says of re-captioning: speed, tokens, idle time, failures."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.report.activity import Activity
from pipeline.report.measures import number
from pipeline.report.survey import Survey


@dataclass(frozen=True)
class CaptionerRow:
    """One line of the table of captioners; texts, ready to show."""

    name: str
    captions: str
    rate: str
    generating: str
    answers: str
    reused: str
    retries: str


def captioner_facts(activity: Activity, survey: Survey) -> list[tuple[str, str]]:
    """Return what is known of re-captioning as (label, value); empty if there was none."""
    stage = activity.stages.get("recaption")
    if stage is None or not survey.captioned:
        return []
    written, figures = stage.counts.get("captions", 0), stage.figures
    facts = [("images", f"{survey.captioned:,}"), ("captions written", f"{written:,}")]
    if stage.span:
        facts.append(("captions/s", number(written / stage.span)))
    for name, label in (("tokens", "tokens"), ("prompt_tokens", "prompt tokens")):
        if figures.get(name):
            facts.append(
                (f"{label} ({number(figures[name] / stage.span)}/s)", number(figures[name]))
            )
    if figures.get("gpu_seconds") and stage.seconds:
        idle = max(0.0, 1 - figures["gpu_seconds"] / stage.seconds)
        facts.append(("GPU idle, of task time", f"{100 * idle:.1f}%"))
    for error, count in survey.caption_errors.most_common():
        share = 100 * count / survey.captioned
        facts.append((f"failed: {error}", f"{count:,} ({share:.1f}%)"))
    return facts


def captioner_rows(activity: Activity) -> list[CaptionerRow]:
    """Return a line per captioner from the figures that the stage `recaption` reports."""
    stage = activity.stages.get("recaption")
    figures = stage.figures if stage else {}
    rows = []
    for key in figures:
        name, found, _ = key.rpartition("_captions")
        if not found:
            continue
        seconds = figures.get(f"{name}_seconds", 0.0)
        generating = figures.get(f"{name}_generating_seconds", 0.0)
        rows.append(
            CaptionerRow(
                name=name,
                captions=number(figures[key]),
                rate=number(figures[key] / seconds) if seconds else "–",
                generating=f"{100 * generating / seconds:.1f}%" if generating else "–",
                answers=number(figures.get(f"{name}_answers", 0.0)),
                reused=number(figures.get(f"{name}_reused", 0.0)),
                retries=number(figures.get(f"{name}_retries", 0.0)),
            )
        )
    return rows


__all__ = ["CaptionerRow", "captioner_facts", "captioner_rows"]
