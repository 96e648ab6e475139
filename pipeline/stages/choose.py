"""Stage `choose`: the last verdicts, which need the scores: who stays once captions are judged.

In this order: captions below a score's threshold go; images with too few captions left go; of the
train images the top fraction by their best caption stays; of those, concepts are balanced. The last
two depend on the corpus, so held-out splits, which measure, are left as they are. Columns only, as
in `select`: about 60 bytes an image, and 16 for each concept of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.filters.balance import balanced, concept_keys, concept_list, span_texts
from pipeline.filters.config import FilterConfig, ScoreFilterConfig
from pipeline.filters.keys import Words, uid_words
from pipeline.filters.phrases import find_phrases
from pipeline.filters.reasons import CHOICE_REASONS, POOL_REASONS, SCORE_REASONS
from pipeline.filters.verdicts import Codes, code_of, reason_array
from pipeline.settings import ConfigError
from pipeline.stages.task import ALL, StageReport, Task, tables_of
from pipeline.storage import Directory

VERSION = 2

Rows = npt.NDArray[np.int64]

_IMAGE_REASONS = list(CHOICE_REASONS)
_CAPTION_REASONS = [*SCORE_REASONS, *POOL_REASONS]


@dataclass
class _Scored:
    """Arrays over all scored images (n,) and their captions (m,), in part order."""

    run: Directory
    parts: list[str]
    ends: Rows  # (parts,) where each part's images end
    uids: Words  # (n, 2)
    trained: npt.NDArray[np.bool_]
    lengths: Rows  # (n,) captions of each image
    best: npt.NDArray[np.float32]  # (n,) highest score of `top_by` among captions that pass
    code: Codes  # (n,) place in `_IMAGE_REASONS`, from 1; 0 where kept
    caption_code: Codes  # (m,) place in `_CAPTION_REASONS`, from 1

    def spans(self) -> Iterator[tuple[str, slice, slice]]:
        """Yield each part's name, its images and its captions."""
        first = np.concatenate([[0], np.cumsum(self.lengths)])
        starts = [0, *self.ends[:-1].tolist()]
        for part, start, end in zip(self.parts, starts, self.ends.tolist(), strict=True):
            yield part, slice(start, end), slice(int(first[start]), int(first[end]))


def choose(task: Task, parts: list[str], config: FilterConfig, min_captions: int) -> StageReport:
    """Write each part's last verdicts, one row per scored image, then the stage's mark.

    Columns: row, uid, split, size (of the stored image [bytes]), reason (null = kept) and
    caption_reasons (per caption of the score table; null = kept). Raises `ConfigError` if a rule
    needs a score that no caption has.
    """
    scored = _read(task.run, parts, config.scores, min_captions)
    if config.scores.top_fraction is not None:
        _keep_top(scored, config.scores.top_fraction)
    if config.balance is not None:
        _balance(scored, config)
    owner = np.repeat(np.arange(len(scored.code)), scored.lengths)
    lost = (scored.caption_code == 0) & (scored.code[owner] != 0)
    scored.caption_code[lost] = code_of(_CAPTION_REASONS, "image_dropped")
    kept = [_write(task, scored, *span) for span in scored.spans()]
    task.write(ALL, pa.table({"part": pa.array(parts, pa.string()), "kept": pa.array(kept)}))
    return StageReport(counts={"scored": len(scored.code), "kept": sum(kept)})


def _read(run: Directory, parts: list[str], rules: ScoreFilterConfig, min_captions: int) -> _Scored:
    """Judge every caption by its scores, and images by what is left of them."""
    columns: dict[str, list[npt.NDArray[np.generic]]] = {}
    missing = rules.needed()
    captions = 0
    for part in parts:
        table = tables_of(run, "score").read_table(f"{part}.parquet", ["row", "uid", "captions"])
        lists = table["captions"].combine_chunks()
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        structs = lists.flatten()
        scores = {name: _score(structs, name) for name in rules.needed()}
        for name in [name for name in missing if not np.isnan(scores[name]).all()]:
            del missing[name]
        captions += len(structs)
        caption_code = _caption_codes(scores, len(structs), rules)
        owner = np.repeat(np.arange(len(table)), lengths)
        alive = caption_code == 0
        left = np.bincount(owner[alive], minlength=len(table))
        best = np.full(len(table), -np.inf, dtype=np.float32)
        if rules.top_fraction is not None:
            np.fmax.at(best, owner[alive], scores[rules.top_by][alive])
        split, _ = _stored(run, part, table["row"])
        found = {
            "uids": uid_words(table["uid"]),
            "trained": pc.equal(split, "train").to_numpy(),
            "lengths": lengths,
            "best": best,
            "code": np.where(left < min_captions, code_of(_IMAGE_REASONS, "no_caption"), 0).astype(
                np.uint8
            ),
            "caption_code": caption_code,
        }
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
    for name, key in missing.items() if captions else ():
        raise ConfigError(
            f"filter.scores.{key}: no caption has the score {name}; "
            f"configure what computes it, or set filter.scores.{key} to null"
        )
    ends = np.cumsum([len(values) for values in columns["code"]])
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    return _Scored(run, parts, ends, **joined)


def _score(captions: pa.StructArray, name: str) -> npt.NDArray[np.float32]:
    """Return a score of captions (m,), NaN for null or where the table has no such score."""
    if captions.type.get_field_index(name) < 0:
        return np.full(len(captions), np.nan, dtype=np.float32)
    values = captions.field(name).cast(pa.float32()).to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float32)


def _caption_codes(
    scores: dict[str, npt.NDArray[np.float32]], count: int, rules: ScoreFilterConfig
) -> Codes:
    codes = np.zeros(count, dtype=np.uint8)
    for name in ("quality", "cosine", "alignment"):  # the last written is the first of the list
        least = getattr(rules, f"min_{name}")
        if least is not None:  # float32, as stored; a comparison with NaN is false
            codes[scores[name] < np.float32(least)] = code_of(_CAPTION_REASONS, f"low_{name}")
    return codes


def _keep_top(scored: _Scored, fraction: float) -> None:
    """Keep the share of train images whose best caption scores highest, of equals the first uids.

    The number kept is rounded up; images without the score come last.
    """
    rows = np.flatnonzero((scored.code == 0) & scored.trained)
    uids = scored.uids[rows]
    ranked = rows[np.lexsort((uids[:, 1], uids[:, 0], -scored.best[rows]))]
    # Not `len * fraction` alone: 0.07 of 100 is 7, and 7.000000000000001 in floats.
    kept = math.ceil(round(len(rows) * fraction, 6))
    scored.code[ranked[kept:]] = code_of(_IMAGE_REASONS, "below_top_fraction")


def _balance(scored: _Scored, config: FilterConfig) -> None:
    rules = config.balance
    assert rules is not None
    candidates = (scored.code == 0) & scored.trained
    images, concepts, names = _concepts(scored, candidates, concept_list(rules))
    rows = np.flatnonzero(candidates)
    place = np.searchsorted(rows, images)
    kept = balanced(place, concepts, scored.uids[rows], concept_keys(names), rules)
    without = np.bincount(place, minlength=len(rows)) == 0
    scored.code[rows[~kept]] = code_of(_IMAGE_REASONS, "balanced_out")
    scored.code[rows[~kept & without]] = code_of(_IMAGE_REASONS, "no_concept")


def _concepts(
    scored: _Scored, candidates: npt.NDArray[np.bool_], listed: pa.Array | None
) -> tuple[Rows, Rows, pa.Array]:
    """Return the distinct (image, concept) pairs of captions that pass, and the concepts (c,).

    `listed` are the concepts to look for; None takes the captions' nouns.
    """
    known: dict[str, int] = {}
    pairs = [np.zeros((2, 0), np.int64)]
    for part, rows, captions in scored.spans():
        table = tables_of(scored.run, "score").read_table(f"{part}.parquet", ["captions"])
        owner = np.repeat(np.arange(rows.start, rows.stop), scored.lengths[rows])
        wanted = np.flatnonzero((scored.caption_code[captions] == 0) & candidates[owner])
        structs = table["captions"].combine_chunks().flatten().take(pa.array(wanted))
        if listed is not None:
            caption, concept = find_phrases(structs.field("text"), listed)
        else:
            caption, nouns = span_texts(structs.field("text"), structs.field("nouns"))
            coded = pc.dictionary_encode(nouns)
            numbers = [known.setdefault(noun, len(known)) for noun in coded.dictionary.to_pylist()]
            concept = np.array(numbers, dtype=np.int64)[coded.indices.to_numpy()]
        found = np.stack([owner[wanted[caption]], concept])
        pairs.append(np.unique(found, axis=1))
    images, concepts = np.concatenate(pairs, axis=1)
    return images, concepts, pa.array(known, pa.string()) if listed is None else listed


def _write(task: Task, scored: _Scored, part: str, rows: slice, captions: slice) -> int:
    """Write a part's table; return how many images it keeps."""
    table = tables_of(task.run, "score").read_table(f"{part}.parquet", ["row", "uid"])
    split, size = _stored(task.run, part, table["row"])
    offsets = np.concatenate([[0], np.cumsum(scored.lengths[rows])])
    verdicts = {
        "row": table["row"],
        "uid": table["uid"],
        "split": split,
        "size": size,
        "reason": reason_array(scored.code[rows], _IMAGE_REASONS),
        "caption_reasons": pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()),
            reason_array(scored.caption_code[captions], _CAPTION_REASONS),
        ),
    }
    task.write(part, pa.table(verdicts))
    return int((scored.code[rows] == 0).sum())


def _stored(
    run: Directory, part: str, rows: pa.ChunkedArray
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return split and stored size [bytes] of some of a part's rows."""
    columns = ["row", "split", "image_size"]
    outcome = tables_of(run, "download").read_table(f"{part}.parquet", columns)
    found = outcome.take(pc.index_in(rows, value_set=outcome["row"].combine_chunks()))
    return found["split"], found["image_size"]
