"""The rules by which a run is judged, as data: the loop, `inspect` and its page read this table.

A falling loss hides collapse, and a dead text path costs nothing that the loss shows; so each rule
names a reading that does show it, a limit, where the limit comes from, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

#: Readings that the median of `against="recent"` is taken over; fewer raise nothing [readings]
RECENT: Final = 100


@dataclass(frozen=True)
class Rule:
    """A reading that must stay on one side of a limit.

    It is announced once when `patience` readings in a row lie beyond `limit`, and again only after
    a reading on the right side of `clear`. Both are multiples of what `against` names: 1 (`value`),
    the `first` reading, the best so far (`best`: the highest), or the median of the last `RECENT`
    readings (`recent`). A key that ends in * stands for every reading that begins so.
    """

    name: str
    key: str
    side: Literal["below", "above"]
    limit: float
    clear: float
    patience: int
    against: Literal["value", "first", "best", "recent"]
    says: str
    advice: str
    source: str
    after_warmup: bool = False
    is_note: bool = False
    """Worth knowing, but not by itself a fault."""

    def describe_limit(self) -> str:
        """Return the limit in words, such as "below 0.25 of its best, 2 readings in a row"."""
        of = {
            "value": "",
            "first": " of its first",
            "best": " of its highest",
            "recent": f" times its last {RECENT}' median",
        }
        row = "" if self.patience == 1 else f", {self.patience} readings in a row"
        late = ", after warm-up" if self.after_warmup else ""
        return f"{self.side} {self.limit:g}{of[self.against]}{row}{late}"


_COLLAPSE: Final = (
    "raise model.init_std if the encoder is narrower than 768, set model.variance_weight and "
    "model.covariance_weight, lower train.lr, lengthen the warm-up, raise train.ema, or use a "
    "larger train.batch"
)
_TEXT: Final = (
    "check that captions belong to their images (python -m tcjepa inspect SHARDS), that data.noise "
    "is off, and lower model.text.sparsity_weight or raise model.text.regularizer_warmup"
)
_STD: Final = (
    "SimSiam (Chen & He 2021, Fig. 2): 0 at collapse, 1 where features spread evenly; the limit is "
    "ours: demo runs that learn keep 0.5 to 0.7, one without an average (train.ema=0) 0.13 to 0.2"
)


RULES: Final = (
    Rule(
        "collapse", "monitor/encoder_rank", "below", 0.25, 0.4, 2, "best",
        "the features collapse: they use ever fewer dimensions", _COLLAPSE,
        "RankMe (Garrido et al. 2023) follows accuracy; the factor is ours",
    ),
    Rule(
        "collapse", "monitor/target_encoder_rank", "below", 0.75, 0.9, 2, "first",
        "the target's features use fewer dimensions than those of the initial weights", _COLLAPSE,
        "ours: in 400 steps of scenes_mini without text it falls from 6.6 to 3.4 without VICReg's "
        "terms, and rises to 27 with them", after_warmup=True,
    ),
    Rule(
        "collapse", "monitor/encoder_std", "below", 0.25, 0.3, 3, "value",
        "all images get nearly the same features", _COLLAPSE, _STD, after_warmup=True,
    ),
    Rule(
        "collapse", "target_std", "below", 0.25, 0.3, 50, "value",
        "all patches have nearly the same target", _COLLAPSE, _STD, after_warmup=True,
    ),
    Rule(
        "text", "monitor/text_gain_share", "below", 0.01, 0.02, 3, "value",
        "the predictor does as well with other images' captions: the text path is dead or the "
        "captions say nothing of their images", _TEXT,
        "ours: 0.12 and more in demo runs that learn, 0.006 and less with all captions swapped",
        after_warmup=True,
    ),
    Rule(
        "text", "positive_share", "below", 0.001, 0.01, 50, "value",
        "no patch is similar to any word, so the rectified sparsity term does nothing any more",
        "no harm while the text gain lasts; else lower model.text.sparsity_weight, or use "
        "model.text.sparsity=entropy",
        "0 is the dead zone of Eq. 3; the limit is ours; in demo runs the text gain outlives it",
        after_warmup=True, is_note=True,
    ),
    Rule(
        "text", "attention_entropy", "below", 0.01, 0.02, 100, "value",
        "every patch attends to a single word of each caption, and no gradient moves it on",
        "lower train.lr or lengthen the warm-up; with model.text.sparsity=entropy lower "
        "model.text.sparsity_weight",
        "ours: 0.3 and more in demo runs that learn, 0.002 in one that collapses",
        after_warmup=True, is_note=True,
    ),
    Rule(
        "spike", "loss", "above", 1.5, 1.2, 3, "recent",
        "the loss spikes",
        "look whether it recovers; if not, go back to a checkpoint, lower train.lr or set "
        "train.clip_grad=1.0",
        "ours: a spike of a step or two heals itself", after_warmup=True,
    ),
    Rule(
        "gradient", "grad_norm", "above", 10.0, 3.0, 3, "recent",
        "the gradient explodes",
        "set train.clip_grad to about its usual norm, lower train.lr, or use "
        "train.precision=fp32",
        "ours, an order of magnitude; single outliers are normal",
    ),
    Rule(
        "data", "data_wait", "above", 0.10, 0.05, 3, "value",
        "training waits for images",
        "raise data.workers or data.prefetch, or move data.cache_dir to a faster disk; python -m "
        "tcjepa bench loader says what this machine can decode",
        "our bar is 2% on a GPU; at 10% a tenth of the machine is lost",
    ),
    Rule(
        "data", "unreadable", "above", 0.001, 0.0005, 1, "value",
        "images cannot be read and are replaced by others",
        "see unreadable.jsonl in the run directory; rebuild the shards it names",
        "ours: a shard that the pipeline wrote has none",
    ),
    Rule(
        "speed", "images_per_s", "below", 0.5, 0.75, 5, "best",
        "training is half as fast as it was",
        "look for another process on the machine, thermal throttling, swapping or slow storage",
        "ours",
        is_note=True,
    ),
    Rule(
        "probe", "probe/*", "below", 0.85, 0.9, 2, "best",
        "the probe's accuracy falls",
        "a run whose probe falls gets worse whatever its loss does; keep an earlier checkpoint "
        "and lower train.lr",
        "ours: beyond the probe's sampling error at 500 images and more",
    ),
)  # fmt: skip


def meaningless(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the readings that say nothing of a run with this resolved config, as plain data."""
    # Features that shrink to a direction per class are what labels teach (arXiv 2008.08186).
    if (config.get("train") or {}).get("objective") == "supervised":
        return "monitor/encoder_rank", "monitor/encoder_std"
    if (config.get("data") or {}).get("caption_sources") == []:  # without words on purpose
        return "monitor/text_gain_share", "positive_share", "attention_entropy"
    text = (config.get("model") or {}).get("text")
    rectified = isinstance(text, Mapping) and text.get("sparsity") == "rectified"
    return () if rectified else ("positive_share",)


__all__ = ["RECENT", "RULES", "Rule", "meaningless"]
