"""What stands in each section of the report: plain values for the template, worked out here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipeline.report import charts
from pipeline.report.activity import Activity
from pipeline.report.histograms import Histogram, bins
from pipeline.report.meanings import meaning
from pipeline.report.measures import CAPTION, IMAGE, Measure, Threshold, number
from pipeline.report.survey import Survey

#: Bars of a mix before the rest is summed up.
_MIX_BARS = 12


@dataclass(frozen=True)
class Bar:
    """A labelled count with its share of a whole, in [0, 1]. `kind` picks the colour."""

    label: str
    count: int
    share: float
    kind: str
    note: str = ""


@dataclass(frozen=True)
class Sum:
    """An equation of counts as text, and whether it holds."""

    text: str
    holds: bool


@dataclass(frozen=True)
class Figure:
    """A chart with what a reader who cannot see it should know."""

    title: str
    chart: Markup
    facts: list[str]
    keys: str


@dataclass(frozen=True)
class StageRow:
    """One line of the table of stages; texts, ready to show."""

    stage: str
    lane: Markup
    tasks: str
    span: str
    seconds: str
    done: str
    rate: str
    bytes_rate: str
    retries: str
    errors: int


def row_bars(funnel: Mapping[str, Any]) -> list[Bar]:
    """Return where the source rows went, from all of them to those kept."""
    rows = funnel["rows"]
    bars = [_bar("rows in", rows, rows, "total")]
    for kind, reasons in funnel["failed"].items():
        for reason, count in _largest(reasons):
            bars.append(_bar(reason, count, rows, "failed", f"{kind}: {meaning(reason)}"))
    bars.append(_bar("fetched", funnel["fetched"], rows, "total"))
    for reason, count in _largest(funnel["dropped"]):
        bars.append(_bar(reason, count, rows, "dropped", meaning(reason)))
    for stage, count in funnel.get("waiting", {}).items():
        bars.append(_bar(f"waiting for {stage}", count, rows, "waiting", "not judged yet"))
    bars.append(_bar("kept", funnel["kept"], rows, "kept"))
    return bars


def caption_bars(captions: Mapping[str, Any], total: str, label: str) -> list[Bar]:
    """Return where captions went; `total` is the key of their number."""
    whole = captions[total]
    if not whole:
        return []
    bars = [_bar(label, whole, whole, "total")]
    for reason, count in _largest(captions["dropped"]):
        bars.append(_bar(reason, count, whole, "dropped", meaning(reason)))
    return [*bars, _bar("kept", captions["kept"], whole, "kept")]


def overview(funnel: Mapping[str, Any]) -> list[Bar]:
    """Return kept, dropped, failed and waiting rows as shares of all."""
    rows = funnel["rows"]
    failed = sum(sum(reasons.values()) for reasons in funnel["failed"].values())
    shares = [
        _bar("kept", funnel["kept"], rows, "kept"),
        _bar("dropped", sum(funnel["dropped"].values()), rows, "dropped"),
        _bar("failed", failed, rows, "failed"),
        _bar("waiting", sum(funnel.get("waiting", {}).values()), rows, "waiting"),
    ]
    return [bar for bar in shares if bar.count]


def sums(funnel: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> list[Sum]:
    """Return the funnel's equations, and whether the manifest has the same numbers."""
    failed = sum(sum(reasons.values()) for reasons in funnel["failed"].values())
    dropped = sum(funnel["dropped"].values())
    waiting = dict(funnel.get("waiting", {}))
    unfetched = waiting.pop("download", 0)
    unjudged = sum(waiting.values())
    found = [
        _sum(
            funnel["rows"], "rows in", fetched=funnel["fetched"], failed=failed, waiting=unfetched
        ),
        _sum(funnel["fetched"], "fetched", kept=funnel["kept"], dropped=dropped, waiting=unjudged),
    ]
    for key, total, label in (
        ("captions", "alt_texts", "alt texts"),
        ("new_captions", "written", "new captions"),
    ):
        captions = funnel.get(key)
        if captions:
            lost = sum(captions["dropped"].values())
            found.append(_sum(captions[total], label, kept=captions["kept"], dropped=lost))
    if manifest is not None:
        same = {k: v for k, v in funnel.items() if k != "waiting"} == manifest["funnel"]
        packed = manifest["samples"] == funnel["kept"]
        text = "counted from the tables, and equal to shards/manifest.json"
        if not same or not packed:
            text = "the tables no longer say what shards/manifest.json says"
        found.append(Sum(text, same and packed))
    return found


def stage_rows(activity: Activity) -> list[StageRow]:
    """Return time and throughput by stage, in the order in which stages first reported."""
    lanes = charts.lanes(activity)
    rows = []
    for name, stage in activity.stages.items():
        per_second = stage.bytes / stage.span if stage.span else 0.0
        rows.append(
            StageRow(
                stage=name,
                lane=lanes.get(name, Markup("")),
                tasks=f"{stage.tasks:,}",
                span=duration(stage.span),
                seconds=duration(stage.seconds),
                done=f"{stage.done:,} {stage.unit}" if stage.unit else "–",
                rate=f"{number(stage.rate)}" if stage.rate else "–",
                bytes_rate=f"{number(per_second / 1e6)}" if per_second else "–",
                retries=f"{stage.retries:,}",
                errors=stage.errors,
            )
        )
    return rows


def measure_figures(survey: Survey, config: dict[str, Any], level: str) -> list[Figure]:
    """Return a histogram for each measure of images or of alt texts."""
    found = []
    for measure, histogram in survey.measures.items():
        if measure.level == level and histogram.total:
            limits = measure.thresholds(config)
            drawn = bins(histogram, include=tuple(limit.value for limit in limits))
            if drawn is not None:
                chart = charts.histogram(drawn, limits, _alternative(measure, histogram))
                found.append(
                    Figure(_title(measure), chart, [_facts(histogram, limits)], _keys(limits))
                )
    return found


def score_figures(survey: Survey, config: dict[str, Any]) -> list[Figure]:
    """Return a histogram for each score: alt texts as bars, written captions as a line."""
    found = []
    for measure in dict.fromkeys(measure for measure, _ in survey.scores):
        alt = survey.scores.get((measure, True), Histogram(measure.is_share))
        written = survey.scores.get((measure, False), Histogram(measure.is_share))
        if not alt.total and not written.total:
            continue
        limits = measure.thresholds(config)
        include = tuple(limit.value for limit in limits)
        # One axis for both: bins of the two together, then of each on those edges.
        both = Histogram(measure.is_share)
        both.counts += alt.counts + written.counts
        edges = bins(both, include=include)
        if edges is None:
            continue
        drawn = [edges.of(each) for each in (alt, written)]
        line = drawn[1] if written.total else None
        chart = charts.histogram(drawn[0], limits, _alternative(measure, both), line)
        facts = [
            f"{label}: {_facts(each, limits)}"
            for label, each in (("alt texts", alt), ("written", written))
            if each.total
        ]
        found.append(Figure(_title(measure), chart, facts, _keys(limits)))
    return found


def mix(counter: Counter[str]) -> list[Bar]:
    """Return the most frequent entries of a counter as bars, the rest as one."""
    whole = sum(counter.values())
    largest = _largest(counter)
    bars = [_bar(name, count, whole, "plain") for name, count in largest[:_MIX_BARS]]
    rest = sum(count for _, count in largest[_MIX_BARS:])
    if rest:
        bars.append(_bar(f"{len(largest) - _MIX_BARS} others", rest, whole, "plain"))
    return bars


def duration(seconds: float) -> str:
    """Return seconds as people say it: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for size, small, names in ((86400, 3600, "d h"), (3600, 60, "h min"), (60, 1, "min s")):
        if whole >= size:
            large_name, small_name = names.split()
            rest = whole % size // small
            return f"{whole // size} {large_name}" + (f" {rest} {small_name}" if rest else "")
    raise AssertionError(seconds)


def _title(measure: Measure) -> str:
    return f"{measure.label} [{measure.unit}]" if measure.unit else measure.label


def _alternative(measure: Measure, histogram: Histogram) -> str:
    return (
        f"Histogram of {measure.label.lower()}: {histogram.total:,} values from "
        f"{number(histogram.quantile(0))} to {number(histogram.quantile(1))}"
    )


def _facts(histogram: Histogram, limits: Iterable[Threshold]) -> str:
    facts = [
        f"median {number(histogram.quantile(0.5))}",
        f"90% in {number(histogram.quantile(0.05))} to {number(histogram.quantile(0.95))}",
    ]
    values, counts = histogram.distinct()
    for limit in limits:
        wrong = values < limit.value if limit.is_minimum else values > limit.value
        side = "below" if limit.is_minimum else "above"
        share = 100 * counts[wrong].sum() / histogram.total
        facts.append(f"{share:.1f}% {side} {number(limit.value)}")
    if histogram.missing:
        facts.append(f"{histogram.missing:,} without")
    return ", ".join(facts)


def _keys(limits: Iterable[Threshold]) -> str:
    return ", ".join(limit.key for limit in limits)


def _largest(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _bar(label: str, count: int, whole: int, kind: str, note: str = "") -> Bar:
    return Bar(label, count, count / whole if whole else 0.0, kind, note)


def _sum(whole: int, label: str, **parts: int) -> Sum:
    shown = " + ".join(f"{n:,} {name}" for name, n in parts.items() if n or name != "waiting")
    return Sum(f"{whole:,} {label} = {shown}", whole == sum(parts.values()))


__all__ = [
    "CAPTION",
    "IMAGE",
    "Bar",
    "Figure",
    "StageRow",
    "Sum",
    "caption_bars",
    "duration",
    "measure_figures",
    "mix",
    "overview",
    "row_bars",
    "score_figures",
    "stage_rows",
    "sums",
]
