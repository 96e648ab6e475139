"""Every score of a finished run against the truth about its captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import pyarrow as pa

from pipeline.captioners.annotations import AnnotationsConfig
from pipeline.config import PipelineConfig
from pipeline.part import listed
from pipeline.schema import ALT_TEXT, SCORES
from pipeline.scorers.alignment_statistics import key_of
from pipeline.scorers.calibration.curves import Bin, auc, reliability, roc
from pipeline.scorers.calibration.probes import FAULTS, probes
from pipeline.scorers.calibration.truth import FALSIFIED, RIGHT, Truth, read_truth
from pipeline.settings import ConfigError, load_text
from pipeline.stages.captioned import Captioned, captioned
from pipeline.stages.score import score_captions
from pipeline.stages.task import tables_of
from pipeline.storage import Directory

CONFIG = "config.yaml"
#: Images that captions are made for, over the whole run.
PROBED_IMAGES: Final = 1500
#: The fault that ROC and reliability are drawn for.
SWAPPED: Final = "swapped"

Values = dict[str, list[float]]  # score -> its values that are not null


@dataclass
class Group:
    """Captions of one origin: the values of every score by fault, and how many there are."""

    counts: dict[str, int] = field(default_factory=dict)
    values: dict[str, Values] = field(default_factory=dict)

    def add(self, fault: str, scores: Mapping[str, float | None]) -> None:
        """Add one caption, or one set of captions."""
        self.counts[fault] = self.counts.get(fault, 0) + 1
        values = self.values.setdefault(fault, {score: [] for score in SCORES})
        for score in SCORES:
            value = scores[score]
            if value is not None:
                values[score].append(value)

    def aucs(self) -> dict[str, dict[str, float | None]]:
        """Return fault -> score -> AUC against the right captions."""
        right = self.values.get(RIGHT, {score: [] for score in SCORES})
        return {
            fault: {score: auc(right[score], self.values[fault][score]) for score in SCORES}
            for fault in sorted(self.values)
            if fault != RIGHT
        }


@dataclass
class Calibration:
    """How the scores of a run did. Groups of captions:

    `alt` those that came with the images and were scored; `alt_two` of these, those that name two
    or more things; `dropped` those that the filters had dropped, scored beside their image's others
    all the same; `generated` sentences of the `annotations` captioner; `made` one more caption
    for each of some images (`probes`); `sets` the mean of an image's captions, its own against
    those of another image.
    """

    alt: Group = field(default_factory=Group)
    alt_two: Group = field(default_factory=Group)
    dropped: Group = field(default_factory=Group)
    generated: Group = field(default_factory=Group)
    made: Group = field(default_factory=Group)
    sets: Group = field(default_factory=Group)

    def groups(self) -> dict[str, Group]:
        """Return the groups that hold captions, by name."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: group for name, group in named.items() if group.counts}

    def reliability(self, score: str) -> dict[str, tuple[list[Bin], float]]:
        """Return how far the score is the share of right alt texts, as (bins, ECE).

        `even`: right against swapped ones at even odds; `found`: against all wrong ones that were
        scored, as often as they are.
        """
        values = self.alt.values
        right = values[RIGHT][score] if RIGHT in values else []
        swapped = values[SWAPPED][score] if SWAPPED in values else []
        wrong = [v for fault in sorted(values) if fault != RIGHT for v in values[fault][score]]
        found = {}
        if right and swapped:
            found["even"] = reliability(right, swapped, even=True)
        if right and wrong:
            found["found"] = reliability(right, wrong, even=False)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return counts, AUCs, ROC curves and reliability as plain data."""
        return {
            "counts": {name: group.counts for name, group in self.groups().items()},
            "auc": {name: group.aucs() for name, group in self.groups().items()},
            "roc": {
                name: {score: self._roc(group, score) for score in SCORES}
                for name, group in self.groups().items()
                if {RIGHT, SWAPPED} <= set(group.values)
            },
            "reliability": {
                score: {
                    name: {"bins": [asdict(one) for one in bins], "ece": error}
                    for name, (bins, error) in self.reliability(score).items()
                }
                for score in SCORES
            },
        }

    def _roc(self, group: Group, score: str) -> dict[str, list[float]] | None:
        right, wrong = group.values[RIGHT][score], group.values[SWAPPED][score]
        if not right or not wrong:
            return None
        kept_wrong, kept_right = roc(right, wrong)
        return {"wrong_kept": kept_wrong, "right_kept": kept_right}


def calibrate(run: Directory, images: int = PROBED_IMAGES) -> Calibration:
    """Measure the scores of a run whose metadata columns know the truth about its captions.

    Captions are made for at most `images` images. Raises `ConfigError` if the run was not scored
    or knows no truth.
    """
    parts = [p.name for p in listed(run) if tables_of(run, "score").exists(f"{p.name}.parquet")]
    if not parts or not run.exists(CONFIG):
        raise ConfigError(f"calibrate: {run.url} holds no scored run; build one first")
    config = load_text(PipelineConfig, run.read_bytes(CONFIG).decode(), where=CONFIG)
    truth = read_truth(run, parts, _captioner(config))
    found = Calibration()
    for part in parts:
        _read_scores(found, run, part, truth)
        own = captioned(run, part)
        some = [*_probed(own, truth, -(-images // len(parts))), *_dropped(own, truth)]
        numbers = [one.number for one in some]
        variants = replace(
            own,
            rows=own.rows.take(pa.array(numbers, pa.int64())),
            uids=[own.uids[number] for number in numbers],
            captions=[one.captions for one in some],
        )
        scored = score_captions(variants, config.score, config.embed)
        for one, captions in zip(some, scored, strict=True):
            measured = mean_scores(captions) if one.group == "sets" else captions[-1]
            getattr(found, one.group).add(one.fault, measured)
    if found.dropped.counts and RIGHT in found.alt.counts:
        found.dropped.counts[RIGHT] = found.alt.counts[RIGHT]
        found.dropped.values[RIGHT] = found.alt.values[RIGHT]
    return found


def mean_scores(captions: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return the mean of each score over an image's captions, nulls left out."""
    means: dict[str, float | None] = {}
    for score in SCORES:
        values = [caption[score] for caption in captions if caption[score] is not None]
        means[score] = sum(values) / len(values) if values else None
    return means


def _captioner(config: PipelineConfig) -> AnnotationsConfig | None:
    found = [c for c in config.recaption.captioners if isinstance(c, AnnotationsConfig)]
    return found[0] if found else None


def _read_scores(found: Calibration, run: Directory, part: str, truth: Truth) -> None:
    """Add the captions of a part as the run scored them."""
    table = tables_of(run, "score").read_table(f"{part}.parquet", ["uid", "captions"])
    for row in table.to_pylist():
        for caption in row["captions"]:
            fault = truth.fault(row["uid"], caption["text"], caption["source"])
            if fault is None:
                continue
            if caption["source"] != ALT_TEXT:
                found.generated.add(fault, caption)
                continue
            found.alt.add(fault, caption)
            if truth.things_named(caption["text"]) >= 2:
                found.alt_two.add(fault, caption)


@dataclass(frozen=True)
class _Variant:
    """An image of a part, by number, with other captions, and what it is measured for."""

    number: int
    group: str
    fault: str
    captions: list[dict[str, str]]


def _probed(own: Captioned, truth: Truth, most: int) -> Iterator[_Variant]:
    """Yield images with a caption that was made, for each fault, and with another's captions.

    Images with a caption that is known to be wrong are left out.
    """
    sound = [n for n in range(len(own.uids)) if _all_right(own, n, truth)]
    sound = sorted(sound, key=lambda n: key_of(own.uids[n]))[:most]
    if len(sound) < 2:
        return
    for number, other in zip(sound, sound[1:] + sound[:1], strict=True):
        for group, fault, captions in _variants(own, number, other, truth):
            yield _Variant(number, group, fault, captions)


def _dropped(own: Captioned, truth: Truth) -> Iterator[_Variant]:
    """Yield images with an alt text that was dropped, for each that was wrong."""
    for number, uid in enumerate(own.uids):
        kept = {caption["text"] for caption in own.captions[number]}
        for text, fault in truth.alt.get(uid, {}).items():
            if text not in kept and fault != RIGHT:
                caption = {"text": text, "source": ALT_TEXT}
                yield _Variant(number, "dropped", fault, [*own.captions[number], caption])


def _variants(
    own: Captioned, number: int, other: int, truth: Truth
) -> Iterator[tuple[str, str, list[dict[str, str]]]]:
    mine, theirs = own.captions[number], own.captions[other]
    yield "sets", RIGHT, mine
    yield "sets", SWAPPED, theirs
    uids = own.uids[number], own.uids[other]
    made = probes(truth.graphs[uids[0]], truth.graphs[uids[1]], "/".join(uids))
    for fault, text in made.items():
        context = [caption for caption in mine if caption["text"] != text]
        yield "made", fault, [*context, {"text": text, "source": "made"}]


def _all_right(own: Captioned, number: int, truth: Truth) -> bool:
    uid = own.uids[number]
    faults = [truth.fault(uid, c["text"], c["source"]) for c in own.captions[number]]
    return bool(faults) and uid in truth.graphs and set(faults) <= {RIGHT, None}


__all__ = ["FALSIFIED", "FAULTS", "RIGHT", "Calibration", "Group", "calibrate", "mean_scores"]
