"""Which readings the page shows, in which order, and what each means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tcjepa.train.log import Record
from tcjepa.watch.charts import Floats
from tcjepa.watch.rules import RULES


@dataclass(frozen=True)
class Reading:
    """One reading of the log: its key, what it is called, what it means."""

    key: str
    title: str
    meaning: str

    @property
    def limit(self) -> float | None:
        """An alarm's limit on the reading itself; None where there is none."""
        return next((r.limit for r in RULES if r.key == self.key and r.against == "value"), None)


@dataclass(frozen=True)
class Group:
    """Readings that answer one question."""

    title: str
    question: str
    readings: tuple[Reading, ...]
    prefixes: tuple[str, ...] = ()
    """Further keys, known only from the log, belong here if they begin so."""


_R = Reading
GROUPS: Final = (
    Group("Losses", "Does it learn to predict? A JEPA's targets move: read this with the ranks.", (
        _R("loss", "Total loss", "what is minimised"),
        _R("predict", "Prediction loss", "Eq. 1, mean L2 norm of the error"),
        _R("sparse", "Sparsity", "Eq. 3 or its entropy form, before weighting"),
        _R("consistency", "Consistency", "Eq. 3, before weighting"),
    )),
    Group("Baselines", "Do labels, or whole captions, get learned? Of the batch in training.", (
        _R("image_to_text", "Image to text", "InfoNCE, which caption is the image's"),
        _R("text_to_image", "Text to image", "InfoNCE, which image is the caption's"),
        _R("retrieval", "Retrieval", "share of images whose own caption is nearest"),
        _R("captioned", "Captioned", "share of images with a caption; others are left out"),
        _R("logit_scale", "Scale of cosines", "1 / temperature, at most 100"),
    ), ("cross_entropy_", "accuracy_")),
    Group("Text path", "Do captions help the prediction, and do patches tell words apart?", (
        _R("monitor/text_gain", "Text gain", "prediction loss with captions swapped − right ones"),
        _R("monitor/text_gain_share", "Text gain, relative", "as a share of the prediction loss"),
        _R("positive_share", "Positive patch-word pairs", "share with cosine above 0"),
        _R("wordless_patches", "Patches without a word", "share with no positive cosine"),
        _R("attention_entropy", "Attention entropy", "1: all words alike, 0: one word only"),
    )),
    Group("Representation", "Do the features stay rich? Falling towards the floor is collapse.", (
        _R("monitor/encoder_rank", "Rank, encoder", "RankMe of pooled features"),
        _R("monitor/target_encoder_rank", "Rank, target encoder", "RankMe of pooled features"),
        _R("monitor/encoder_std", "Feature std, encoder", "0: collapsed, 1: spread evenly"),
        _R("monitor/target_encoder_std", "Feature std, target", "0: collapsed, 1: spread evenly"),
        _R("context_std", "Std of context patches", "within a batch"),
        _R("target_std", "Std of target patches", "within a batch, layer-normed"),
    )),
    Group("Probes", "What do the target's features know? Accuracy on labelled images.", (),
          ("probe/",)),
    Group("Optimisation", "Is the schedule what was meant, and is the gradient calm?", (
        _R("lr", "Learning rate", ""),
        _R("weight_decay", "Weight decay", ""),
        _R("ema", "EMA momentum", "of the target encoder"),
        _R("grad_norm", "Gradient norm", "before clipping"),
    )),
    Group("Speed", "Is the machine used?", (
        _R("images_per_s", "Images per second", "all ranks"),
        _R("mfu", "MFU", "share of the peak FLOP/s"),
        _R("data_wait", "Data wait", "share of the time spent waiting for images"),
        _R("unreadable", "Unreadable images", "share replaced so far"),
        _R("memory_gib", "Memory", "peak of rank 0 [GiB]"),
        _R("cuda_memory_gib", "GPU memory", "peak of rank 0 [GiB]"),
    )),
    Group("Layers", "Positive patch-word pairs, layer by layer.", (), ("positive_share_layer",)),
)  # fmt: skip


def readings_of(group: Group, keys: Iterable[str]) -> list[Reading]:
    """Return the group's readings that occur among the keys of a log."""
    present = set(keys)
    found = [reading for reading in group.readings if reading.key in present]
    for prefix in group.prefixes:
        own = sorted((k for k in present if k.startswith(prefix)), key=lambda k: (len(k), k))
        found += [Reading(key, _title(key), "") for key in own]
    return found


def values_of(records: Sequence[Record], key: str) -> tuple[Floats, Floats]:
    """Return (steps, values) of a reading, those that are finite numbers."""
    pairs = [(r["step"], r[key]) for r in records if isinstance(r.get(key), (int, float))]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _title(key: str) -> str:
    words = key.removeprefix("probe/").replace("positive_share_layer", "layer ").replace("_", " ")
    return words.replace("knn", "kNN") if words.startswith("knn") else words.capitalize()


__all__ = ["GROUPS", "Group", "Reading", "readings_of", "values_of"]
