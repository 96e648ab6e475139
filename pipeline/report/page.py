"""`report.html`: one self-contained page about a run, in whatever state the run is."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.report import sections
from pipeline.report.activity import Activity
from pipeline.report.captioning import captioner_facts, captioner_rows
from pipeline.report.examples import Example, read_examples
from pipeline.report.fates import Fates
from pipeline.report.meanings import meaning
from pipeline.report.measures import number
from pipeline.report.picks import ALT_TEXT, DROPPED, FAILED, KEPT, WRITTEN, Picks
from pipeline.report.state import RunState, read_state
from pipeline.report.survey import Survey
from pipeline.report.thumbnails import SIDE, Thumbnails
from pipeline.report.visible import visible, without_secrets
from pipeline.storage import Directory

if TYPE_CHECKING:  # the config loads every room
    from pipeline.config import PipelineConfig

REPORT: Final = "report.html"

_EXAMPLES = 10
_KEPT_EXAMPLES = 18
_CAPTIONS_SHOWN = 3
_HOSTS = 15
# With all else at most about 1 MB: the page stays below 3 MB whatever the run holds.
_THUMBNAIL_BUDGET = 2_000_000
_CONFIG_LIMIT = 100_000


@dataclass(frozen=True)
class Card:
    """An example as it is shown: texts made visible, still to be escaped by the template."""

    uri: str | None
    alternative: str
    captions: list[tuple[str, str, str, str]]  # text, source, quality, other scores
    more: int
    finding: str
    url: str
    copy_of: str
    original: str | None


@dataclass(frozen=True)
class Group:
    """The examples of one reason."""

    reason: str
    meaning: str
    count: int
    cards: list[Card]


def write_report(run: Directory) -> None:
    """Write `report.html` into a run directory; raises `ConfigError` if it is none."""
    run.write_text(REPORT, build_report(run))


def build_report(run: Directory, config: PipelineConfig | None = None) -> str:
    """Return the report of a run as HTML: of a finished one, or of what there is of another.

    `config` stands in for the run's own `config.yaml`. Memory does not grow with rows: tables are
    read part by part. Raises `ConfigError` if `run` is no run directory.
    """
    state = read_state(run, config)
    survey = Survey(Fates(Picks(_EXAMPLES, _KEPT_EXAMPLES)))
    tables = state.tables()
    for part in tables:
        survey.add(part)
    for listed in state.parts:
        if listed.name in state.failed_parts:
            survey.fates.add_failed_part(listed)
    examples = read_examples(tables, survey.fates, state.config)
    return _render(state, survey, examples)


def _render(state: RunState, survey: Survey, examples: dict[tuple[str, str], list[Example]]) -> str:
    import jinja2

    room = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(room),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    funnel = survey.fates.funnel()
    thumbnails = Thumbnails(state.run, _THUMBNAIL_BUDGET)
    return environment.get_template("report.html.j2").render(
        style=(room / "report.css").read_text(),
        side=SIDE,
        name=visible(state.run.url.rsplit("/", 1)[-1], 120),
        where=visible(without_secrets(state.run.url)),
        state=_state_text(state),
        finished=state.finished,
        tiles=_tiles(state, survey, funnel),
        overview=sections.overview(funnel),
        sums=sections.sums(funnel, state.manifest if state.finished else None),
        row_bars=sections.row_bars(funnel),
        alt_bars=sections.caption_bars(funnel["captions"], "alt_texts", "alt texts"),
        new_bars=sections.caption_bars(funnel["new_captions"], "written", "new captions"),
        stages=sections.stage_rows(state.activity),
        errors=_errors(state),
        captioning=captioner_facts(state.activity, survey),
        captioners=captioner_rows(state.activity),
        scores=sections.score_figures(survey, state.config),
        image_measures=sections.measure_figures(survey, state.config, sections.IMAGE),
        caption_measures=sections.measure_figures(survey, state.config, sections.CAPTION),
        mixes=[
            ("Caption source", "captions in the shards", sections.mix(survey.sources)),
            ("Language", "alt texts, as detected", sections.mix(survey.languages)),
            ("Split", "kept images", sections.mix(survey.splits)),
        ],
        kept=_cards(KEPT, "", examples, thumbnails),
        kept_count=funnel["kept"],
        dropped=_groups(DROPPED, funnel["dropped"], examples, thumbnails),
        alt_texts=_groups(ALT_TEXT, funnel["captions"]["dropped"], examples, None),
        written=_groups(WRITTEN, funnel["new_captions"]["dropped"], examples, None),
        failed=_groups(FAILED, _flat(funnel["failed"]), examples, None),
        thumbnails_left_out=thumbnails.left_out,
        hosts=survey.hosts.worst(_HOSTS),
        host_count=len(survey.hosts),
        hosts_missed=survey.hosts.missed,
        tools=sorted((state.manifest or {}).get("tools", {}).items()),
        digest=(state.manifest or {}).get("config_sha256", ""),
        config=without_secrets(state.config_text)[:_CONFIG_LIMIT],
    )


def _state_text(state: RunState) -> str:
    if state.running:
        watched = f", dashboard at {state.dashboard}" if state.dashboard else ""
        return f"running: what the tables hold so far{watched}"
    if state.manifest is None:
        return "not finished: what the tables hold so far"
    if state.failed_parts:
        return f"finished, {len(state.failed_parts)} parts failed"
    return "finished"


def _tiles(state: RunState, survey: Survey, funnel: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the headline figures as (label, value, note)."""
    activity = state.activity
    rows, kept = funnel["rows"], funnel["kept"]
    span = activity.span
    captions = sum(survey.sources.values())
    return [
        ("rows in", f"{rows:,}", f"{len(state.parts):,} parts"),
        ("samples kept", f"{kept:,}", "distinct images with captions"),
        ("share kept", f"{100 * kept / max(rows, 1):.1f}%", "of rows in"),
        ("captions kept", f"{captions:,}", f"{captions / kept:.1f} per sample" if kept else ""),
        ("time worked", sections.duration(span) if span else "–", _when(activity)),
        ("images/s", number(funnel["fetched"] / span) if span else "–", "fetched, all stages"),
    ]


def _when(activity: Activity) -> str:
    if activity.first is None or activity.last is None:
        return ""
    first, last = (
        datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        for seconds in (activity.first, activity.last)
    )
    end = "%H:%M UTC" if first.date() == last.date() else "%Y-%m-%d %H:%M UTC"
    return f"{first:%Y-%m-%d %H:%M} to {last.strftime(end)}"


def _errors(state: RunState) -> list[tuple[str, str, int, str]]:
    """Return (stage, part, tries, error) of what failed when last tried, at most 50."""
    failing = sorted(state.activity.failing.items())
    return [
        (stage, part, state.activity.tries[stage, part], visible(without_secrets(error), 400))
        for (stage, part), error in failing[:50]
    ]


def _flat(failed: dict[str, dict[str, int]]) -> dict[str, int]:
    return {reason: n for reasons in failed.values() for reason, n in reasons.items()}


def _groups(
    kind: str,
    counts: dict[str, int],
    examples: dict[tuple[str, str], list[Example]],
    thumbnails: Thumbnails | None,
) -> list[Group]:
    """Return the reasons of a kind with their examples, the most frequent first."""
    return [
        Group(reason, meaning(reason), count, _cards(kind, reason, examples, thumbnails))
        for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def _cards(
    kind: str,
    reason: str,
    examples: dict[tuple[str, str], list[Example]],
    thumbnails: Thumbnails | None,
) -> list[Card]:
    cards = []
    for example in examples.get((kind, reason), []):
        captions = list(example.captions)
        # The best first: what the shards' .txt members hold.
        captions.sort(key=lambda caption: -caption.scores.get("quality", 0.0))
        shown = captions[:_CAPTIONS_SHOWN]
        cards.append(
            Card(
                uri=thumbnails.uri(example.image) if thumbnails else None,
                alternative=visible(captions[0].text, 120) if captions else "no caption",
                captions=[
                    (visible(c.text), visible(c.source, 60), *_scores(c.scores)) for c in shown
                ],
                more=len(captions) - len(shown),
                finding=example.finding,
                url=visible(without_secrets(example.url), 160),
                copy_of=example.copy_of or "",
                original=thumbnails.uri(example.original) if thumbnails else None,
            )
        )
    return cards


def _scores(scores: dict[str, float]) -> tuple[str, str]:
    """Return quality, which decides the order, and the other scores."""
    quality = f"{scores['quality']:.2f}" if "quality" in scores else ""
    # No-break spaces: a line ends between scores, not between a score and its value.
    others = [f"{name}\u00a0{value:.2f}" for name, value in scores.items() if name != "quality"]
    return quality, " · ".join(others)


__all__ = ["REPORT", "build_report", "write_report"]
