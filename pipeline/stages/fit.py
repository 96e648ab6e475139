"""Stage `fit`: what scores need to know of the whole run, from a sample of its kept images.

Alignment is fitted (`linear`) or calibrated (`clip`), and reference captions are kept for
agreement. The cost is bounded: at most `fit_images` images, out of at most `_MOST_PARTS` parts
spread evenly over the run (a run's parts are in the order of its sources), read one part at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.scorers.agreement import Reference, ReferenceSample, Said
from pipeline.scorers.alignment import LinearAlignment
from pipeline.scorers.alignment_clip import ClipAlignment
from pipeline.scorers.alignment_statistics import SAMPLE_PAIRS, AlignmentStatistics, key_of
from pipeline.scorers.config import ClipAlignmentConfig, LinearAlignmentConfig, ScoreConfig
from pipeline.scorers.embedding import EmbedConfig
from pipeline.settings import effective
from pipeline.stages.captioned import Captioned, captioned, kept_uids
from pipeline.stages.task import ALL, StageReport, Task, tables_of
from pipeline.storage import Directory

STAGE = "fit"
_LINEAR, _CLIP, _REFERENCES = "linear.npz", "clip.json", "references.parquet"
_MOST_PARTS = 1000
_BITS = 20  # of a uid's hash, for counting how many images lie below a bound

_PAIR_TYPE = tuple[int, str, NDArray[np.float32]]


def fit_settings(config: ScoreConfig) -> dict[str, object]:
    """Return the settings that `fit` reads: weights of the quality score are none of them."""
    return {
        name: effective(getattr(config, name)) for name in ("alignment", "agreement", "fit_images")
    }


def fit(
    task: Task, parts: list[str], config: ScoreConfig, embed: EmbedConfig | None = None
) -> StageReport:
    """Fit what the config's alignment and agreement need; `embed` is read by `alignment: clip`.

    Raises `ConfigError` if the dual encoder cannot be loaded.
    """
    from threadpoolctl import threadpool_limits

    directory = tables_of(task.run, task.stage)
    references, linear, pairs = ReferenceSample(), _Linear(config), _ClipPairs()
    images = captions = 0
    # One thread: sums in another order would be other sums, and so other shards.
    with threadpool_limits(limits=1):
        for some in _sample(task.run, parts, config.fit_images):
            images, captions = images + len(some.uids), captions + len(some.texts)
            if config.agreement is not None:
                for uid, listed in zip(some.uids, some.captions, strict=True):
                    references.add(uid, [Said(**caption) for caption in listed])
            if isinstance(config.alignment, LinearAlignmentConfig):
                linear.add(some, some.vectors("filter", "features"))
            if isinstance(config.alignment, ClipAlignmentConfig):
                pairs.add(some, some.vectors("embed", "embedding"))
        model = linear.fit() or pairs.fit(embed)
    written = set()
    if model is not None:
        name = _LINEAR if isinstance(model, LinearAlignment) else _CLIP
        directory.write_bytes(name, model.to_bytes())
        written.add(name)
    if config.agreement is not None:
        directory.write_table(_REFERENCES, _reference_table(references.references()))
        written.add(_REFERENCES)
    # Not before: a task that Dask took for lost may run this again while others read.
    for name in {_LINEAR, _CLIP, _REFERENCES} - written:
        directory.remove(name)
    task.write(ALL, pa.table({"images": [images], "captions": [captions]}))
    return StageReport(counts={"images": images, "captions": captions})


def read_model(run: Directory) -> LinearAlignment | ClipAlignment | None:
    """Return the alignment model that was fitted; None if there were too few pairs, or none."""
    directory = tables_of(run, STAGE)
    if directory.exists(_LINEAR):
        return LinearAlignment.from_bytes(directory.read_bytes(_LINEAR))
    if directory.exists(_CLIP):
        return ClipAlignment.from_bytes(directory.read_bytes(_CLIP))
    return None


def read_references(run: Directory) -> list[Reference]:
    """Return the reference captions of agreement."""
    table = tables_of(run, STAGE).read_table(_REFERENCES)
    return [Reference(**row) for row in table.to_pylist()]


def _reference_table(references: list[Reference]) -> pa.Table:
    names = ("uid", "text", "source")
    return pa.table(
        {name: pa.array([getattr(r, name) for r in references], pa.string()) for name in names}
    )


def _sample(run: Directory, parts: list[str], most: int) -> Iterator[Captioned]:
    """Yield some parts' sampled images: those whose uid hashes lie lowest, at most `most` of all.

    Two passes over the uids, so that no more is held than one part.
    """
    chosen = [parts[n * len(parts) // _MOST_PARTS] for n in range(_MOST_PARTS)]
    chosen = chosen if len(parts) > _MOST_PARTS else parts
    counts = np.zeros(1 << _BITS, np.int64)
    for part in chosen:
        np.add.at(counts, [_bin(uid) for uid in kept_uids(run, part)], 1)
    bound = int(np.searchsorted(counts.cumsum(), most, side="right"))
    for part in chosen:
        only = {uid for uid in kept_uids(run, part) if _bin(uid) < bound}
        if only:
            yield captioned(run, part, only)


def _bin(uid: str) -> int:
    return key_of(uid) >> (64 - _BITS)


class _Linear:
    """The sums that `alignment: linear` is fitted on."""

    def __init__(self, config: ScoreConfig) -> None:
        self._config = config.alignment
        self._total: AlignmentStatistics | None = None

    def add(self, some: Captioned, features: NDArray[np.float32]) -> None:
        from pipeline.scorers.alignment_statistics import accumulate

        assert isinstance(self._config, LinearAlignmentConfig)
        found = accumulate(features, some.texts, some.owner, some.uids, self._config)
        if self._total is None:
            self._total = found
        else:
            self._total += found

    def fit(self) -> LinearAlignment | None:
        from pipeline.scorers import alignment_fit

        if self._total is None or not isinstance(self._config, LinearAlignmentConfig):
            return None
        return alignment_fit.fit([self._total], self._config)


class _ClipPairs:
    """A caption of each of the images with the lowest hashes, for `alignment: clip`."""

    def __init__(self) -> None:
        self._kept: list[_PAIR_TYPE] = []

    def add(self, some: Captioned, embeddings: NDArray[np.float32]) -> None:
        sound = np.asarray(np.isfinite(embeddings).all(axis=1))
        for uid, captions, vector, usable in zip(
            some.uids, some.captions, embeddings, sound, strict=True
        ):
            if usable and captions:
                texts = [caption["text"] for caption in captions]
                text = min(texts, key=lambda text: key_of(f"{uid}/{text}"))
                self._kept.append((key_of(uid), text, vector))
        self._kept = sorted(self._kept, key=lambda pair: pair[:2])[:SAMPLE_PAIRS]

    def fit(self, embed: EmbedConfig | None) -> ClipAlignment | None:
        from pipeline.scorers import alignment_clip
        from pipeline.scorers.dual_encoder import load_dual_encoder

        if not self._kept:
            return None
        assert embed is not None, "alignment: clip needs the embed section"
        texts = load_dual_encoder(embed).texts([text for _, text, _ in self._kept])
        return alignment_clip.fit(np.stack([vector for *_, vector in self._kept]), texts)
