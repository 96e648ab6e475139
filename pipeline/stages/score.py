"""Stage 4: score every caption of every kept image.

Two steps, because the alignment model is fitted on the whole run: one `fit` over all parts in part
order, then the `score` table of each part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.filters.text import measure_captions
from pipeline.schema import ALT_TEXT, SCORES
from pipeline.scorers.config import ScoreConfig
from pipeline.scorers.language import language_scores
from pipeline.scorers.quality import quality_score
from pipeline.stages.task import ALL, StageReport, Task, tables_of
from pipeline.storage import Directory

VERSION = 2
_MODEL = "alignment.npz"

_SPANS = pa.list_(pa.list_(pa.int32()))
_CAPTION = pa.struct([("text", pa.string()), ("source", pa.string())])
_SCORED_CAPTION = pa.struct(
    [
        *_CAPTION,
        *((score, pa.float32()) for score in SCORES),
        ("nouns", _SPANS),
        ("attributes", _SPANS),
    ]
)


def fit(task: Task, parts: list[str], config: ScoreConfig) -> StageReport:
    """Fit the alignment model on all parts' kept images and captions."""
    pairs = 0
    if config.alignment is not None:
        from threadpoolctl import threadpool_limits

        from pipeline.scorers import alignment_fit
        from pipeline.scorers.alignment_statistics import AlignmentStatistics, accumulate

        def statistics(settings: Any) -> Iterator[AlignmentStatistics]:
            nonlocal pairs
            for part in parts:
                images, texts, owner, uids = _pairs(task.run, part)
                if uids:
                    pairs += len(texts)
                    yield accumulate(images, texts, owner, uids, settings)

        # One thread: sums in another order would be other sums, and so other shards.
        with threadpool_limits(limits=1):
            model = alignment_fit.fit(statistics(config.alignment), config.alignment)
        directory = tables_of(task.run, task.stage)
        directory.remove(_MODEL)
        if model is not None:
            directory.write_bytes(_MODEL, model.to_bytes())
    task.write(ALL, pa.table({"pairs": [pairs]}))
    return StageReport(counts={"pairs": pairs})


def score(task: Task, part: str, config: ScoreConfig) -> StageReport:
    """Write the scored captions of each image of a part that `select` kept."""
    from pipeline.scorers.wording import wording_scores
    from pipeline.scorers.words import spans

    table = _kept(task.run, part)
    lists = table["captions"].to_pylist()
    texts = list(dict.fromkeys(caption["text"] for captions in lists for caption in captions))
    place = {text: number for number, text in enumerate(texts)}
    wording = wording_scores(texts) if config.wording else [None] * len(texts)
    language = _language(texts, config)
    alignment = iter(_alignment(task.run, part, config))
    marked = [spans(text) for text in texts]
    rows: list[list[dict[str, Any]]] = []
    for captions in lists:
        row = []
        for caption in captions:
            number = place[caption["text"]]
            scores: dict[str, float | None] = {
                "wording": wording[number],
                "language": language[number],
                "alignment": next(alignment),
                "agreement": None,
            }
            scores["quality"] = quality_score(scores, config.quality)
            nouns, attributes = marked[number]
            row.append({**caption, **scores, "nouns": nouns, "attributes": attributes})
        rows.append(row)
    scored = {
        "row": table["row"],
        "uid": table["uid"],
        "captions": pa.array(rows, pa.list_(_SCORED_CAPTION)),
    }
    task.write(part, pa.table(scored))
    return StageReport(counts={"images": len(rows), "captions": sum(map(len, rows))})


def _kept(run: Directory, part: str) -> pa.Table:
    """Return row, uid and all captions of the images of a part that `select` kept."""
    selected = tables_of(run, "select").read_table(f"{part}.parquet")
    kept = selected.filter(pc.is_null(selected["reason"]))
    written = _written_captions(run, part)
    captions = [
        _join(texts or [], written.get(uid, []))
        for uid, texts in zip(kept["uid"].to_pylist(), kept["captions"].to_pylist(), strict=True)
    ]
    columns = {
        "row": kept["row"],
        "uid": kept["uid"],
        "captions": pa.array(captions, pa.list_(_CAPTION)),
    }
    return pa.table(columns)


def _written_captions(run: Directory, part: str) -> dict[str, list[dict[str, str]]]:
    table = tables_of(run, "recaption").read_table(f"{part}.parquet", ["uid", "captions"])
    return dict(zip(table["uid"].to_pylist(), table["captions"].to_pylist(), strict=True))


def _join(alt_texts: list[str], written: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the distinct captions of an image, alt texts first."""
    distinct: dict[str, dict[str, str]] = {}
    for caption in [{"text": text, "source": ALT_TEXT} for text in alt_texts] + written:
        distinct.setdefault(caption["text"], caption)
    return list(distinct.values())


def _pairs(
    run: Directory, part: str
) -> tuple[npt.NDArray[np.float32], list[str], npt.NDArray[np.int64], list[str]]:
    """Return image features (n, F), texts (m), the row of each text's image (m,), and uids (n)."""
    table = _kept(run, part)
    lists = table["captions"].to_pylist()
    owner = np.repeat(np.arange(len(lists)), [len(captions) for captions in lists])
    texts = [caption["text"] for captions in lists for caption in captions]
    measured = tables_of(run, "filter").read_table(f"{part}.parquet", ["row", "features"])
    found = pc.index_in(table["row"], value_set=measured["row"].combine_chunks())
    column = measured["features"].take(found).combine_chunks()
    flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
    return flat.reshape(len(lists), -1), texts, owner, table["uid"].to_pylist()


def _language(texts: list[str], config: ScoreConfig) -> list[float | None]:
    if config.language is None:
        return [None] * len(texts)
    measures = measure_captions(texts)
    return language_scores(
        [measure.language for measure in measures],
        [measure.language_score for measure in measures],
        [measure.english_score for measure in measures],
        config.language.languages,
    )


def _alignment(run: Directory, part: str, config: ScoreConfig) -> list[float | None]:
    """Return the alignment of each caption of the part; None where there is no such score."""
    images_texts = None
    directory = tables_of(run, "fit")
    if config.alignment is not None and directory.exists(_MODEL):
        images_texts = _pairs(run, part)
    if images_texts is None or not images_texts[3]:
        return [None] * sum(len(captions) for captions in _kept(run, part)["captions"].to_pylist())
    from threadpoolctl import threadpool_limits

    from pipeline.scorers import alignment

    images, texts, owner, uids = images_texts
    model = alignment.LinearAlignment.from_bytes(directory.read_bytes(_MODEL))
    with threadpool_limits(limits=1):
        scores = alignment.score(model, images, texts, owner, uids)
    return [None if math.isnan(value) else float(value) for value in scores]
