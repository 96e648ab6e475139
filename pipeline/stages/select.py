"""The verdict over all parts: thresholds, repeated captions, duplicate images, pooled captions.

Reads measures, never images. Rows of one image (exact duplicates share a uid) and of its
near-duplicates form one group, led by its representative; the alt texts of the others are pooled
into it. Everything is numpy and Arrow columns, about 300 bytes a row with its alt texts at the
peak, so that a run of a hundred million rows fits one worker; texts are read part by part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.filters.blocklist import block_words, has_blocked_word
from pipeline.filters.boilerplate import images_per_caption
from pipeline.filters.config import FilterConfig
from pipeline.filters.duplicates import exact_leaders, near_duplicates, preference_order
from pipeline.filters.keys import Words, uid_texts, uid_words
from pipeline.filters.measures import CAPTION_MEASURES, IMAGE_MEASURES, byte_rows
from pipeline.filters.near_texts import near_captions
from pipeline.filters.pools import REASONS, Pools
from pipeline.filters.reasons import IMAGE_REASONS, PLACE_REASONS, SELECTION_REASONS
from pipeline.filters.semantic import semantic_duplicates
from pipeline.filters.verdicts import (
    Codes,
    caption_codes,
    code_of,
    image_codes,
    reason_array,
    with_repeats,
)
from pipeline.stages.blocked import url_reasons
from pipeline.stages.task import ALL, StageReport, Task, tables_of
from pipeline.storage import Directory

VERSION = 5

Rows = npt.NDArray[np.int64]

_IMAGE_REASONS = [*IMAGE_REASONS, *SELECTION_REASONS]
_COLUMNS = ["uid", "split", *IMAGE_MEASURES.names, "captions"]


@dataclass
class _Corpus:
    """Arrays over all fetched rows (n,) and over all their alt texts (m,), in part order."""

    run: Directory
    parts: list[str]
    ends: Rows  # (parts,) where each part's rows end
    uids: Words  # (n, 2)
    trained: npt.NDArray[np.bool_]
    pixels: Rows
    phash: npt.NDArray[np.uint64]
    colours: npt.NDArray[np.uint8]  # (n, 48)
    code: Codes  # (n,) place in `_IMAGE_REASONS`, from 1; 0 where kept
    first: Rows  # (n + 1,) where each row's captions start
    caption_code: Codes  # (m,) place in `pools.REASONS`, from 1
    caption_key: npt.NDArray[np.uint64]

    def spans(self) -> Iterator[tuple[str, int, int]]:
        """Yield each part's name and its rows [start, end)."""
        starts = [0, *self.ends[:-1].tolist()]
        yield from zip(self.parts, starts, self.ends.tolist(), strict=True)


def select(task: Task, parts: list[str], config: FilterConfig) -> StageReport:
    """Write each part's verdicts, then the stage's mark: one row per part with its kept images.

    A part's table has a row for each fetched one: row, uid, split, reason (null = kept),
    representative (uid of the image that a duplicate is one of), pooled_by (uid of the image that
    has its alt texts; another one where a near-duplicate's image is itself a semantic duplicate),
    captions (the group's alt texts, null where dropped) and caption_reasons (per alt text of the
    row; null = in `captions`).
    """
    corpus = _read(task.run, parts, config)
    order = preference_order(corpus.trained, corpus.pixels, corpus.uids)
    blocked = np.isin(corpus.code, [code_of(_IMAGE_REASONS, reason) for reason in PLACE_REASONS])
    order = order[np.argsort(blocked[order], kind="stable")]
    exact = exact_leaders(corpus.uids, order)
    # A copy from a blocked place neither stands for the others nor lends them its captions.
    exact[blocked] = np.flatnonzero(blocked)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    pooled_by = _group(corpus, rank, exact, config)
    pools = _pool(corpus, exact, pooled_by, config)
    bare = np.bincount(pools.lead[pools.code == 0], minlength=len(order)) == 0
    if config.on_bad_caption == "drop_image":
        corpus.code[(corpus.code == 0) & bare] = code_of(_IMAGE_REASONS, "no_good_caption")
    # An image without captions is no reason to drop one that has some.
    shown = _shown(corpus, rank + len(rank) * bare, config)
    pools.drop_with_images(corpus.code == 0)
    leader = shown[pooled_by]
    kept = _write(task, corpus, (leader, pooled_by), pools)
    task.write(ALL, pa.table({"part": pa.array(parts, pa.string()), "kept": kept}))
    return StageReport(counts={"fetched": len(leader), "kept": int(np.sum(kept))})


def _read(run: Directory, parts: list[str], config: FilterConfig) -> _Corpus:
    """Judge every row and caption by itself, part by part, and keep what groups need."""
    blocked = block_words(config.block)
    columns: dict[str, list[npt.NDArray[np.generic]]] = {}
    for part in parts:
        table = tables_of(run, "filter").read_table(f"{part}.parquet", _COLUMNS)
        lists = table["captions"].combine_chunks()
        structs = lists.flatten()
        fields = [structs.field(name) for name in CAPTION_MEASURES.names]
        measures = pa.Table.from_arrays(fields, schema=CAPTION_MEASURES)
        hit = has_blocked_word(_texts(run, part), blocked) if len(blocked) else None
        sound = {
            "uids": uid_words(table["uid"]),
            "trained": pc.equal(table["split"], "train").to_numpy(),
            "pixels": pc.fill_null(table["pixels"], 0).to_numpy(),
            "phash": pc.fill_null(table["phash"], 0).to_numpy(),
            "colours": byte_rows(table["colours"]),
            "code": image_codes(table, config, _blocked_urls(run, part, config)),
            "lengths": pc.list_value_length(lists).to_numpy(zero_copy_only=False),
            "caption_code": caption_codes(measures, config, hit),
            "caption_key": measures["caption_key"].to_numpy(),
        }
        for name, values in sound.items():
            columns.setdefault(name, []).append(values)
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    lengths = joined.pop("lengths")
    ends = np.cumsum([len(values) for values in columns["code"]])
    first = np.concatenate([[0], np.cumsum(lengths)])
    return _Corpus(run, parts, ends, first=first, **joined)


def _blocked_urls(run: Directory, part: str, config: FilterConfig) -> pa.Array | None:
    """Return why the URL of each fetched row is blocked; None if no list names hosts or URLs."""
    if not (config.block.hosts or config.block.urls):
        return None
    table = tables_of(run, "download").read_table(f"{part}.parquet", ["reason", "url"])
    urls = table.filter(pc.is_null(table["reason"]))["url"]
    return pa.array(url_reasons(urls, config.block), pa.string())


def _group(corpus: _Corpus, rank: Rows, exact: Rows, config: FilterConfig) -> Rows:
    """Mark exact and near-duplicates; return for each row (n,) whose pool of captions it joins.

    Of two duplicates that of lower `rank` (n,) is kept.
    """
    copies = exact != np.arange(len(exact))
    leader = exact.copy()
    found = np.flatnonzero(~copies & (corpus.code == 0))
    found = found[np.argsort(rank[found])]  # candidates, best first
    rules = config.duplicates
    if rules.radius is not None:
        labels = near_duplicates(
            corpus.phash[found],
            rules.radius,
            colours=corpus.colours[found],
            tolerance=rules.colour_tolerance,
        )
        leader[found] = found[labels]
        corpus.code[found[leader[found] != found]] = code_of(_IMAGE_REASONS, "near_duplicate")
    corpus.code[copies] = code_of(_IMAGE_REASONS, "exact_duplicate")
    return leader[leader]  # an exact copy follows its near-duplicate


def _shown(corpus: _Corpus, rank: Rows, config: FilterConfig) -> Rows:
    """Mark semantic duplicates; return the row that shows what each row (n,) shows.

    Their captions are pooled with nobody's: they tell of another photograph.
    """
    rules = config.duplicates
    shown = np.arange(len(rank))
    if rules.semantic is not None:
        rows, embeddings = _embeddings(corpus, np.flatnonzero(corpus.code == 0), rank)
        labels = semantic_duplicates(
            embeddings,
            rules.semantic.threshold,
            cluster_size=rules.semantic.cluster_size,
            seed=rules.semantic.seed,
        )
        shown[rows] = rows[labels]
        corpus.code[rows[shown[rows] != rows]] = code_of(_IMAGE_REASONS, "semantic_duplicate")
    return shown


def _embeddings(
    corpus: _Corpus, candidates: Rows, rank: Rows
) -> tuple[Rows, npt.NDArray[np.float16]]:
    """Return the candidates (n,) that have an embedding, best first, and those (n, D)."""
    wanted = np.zeros(len(corpus.code), dtype=bool)
    wanted[candidates] = True
    rows, parts = [np.zeros(0, np.int64)], []
    for part, start, end in corpus.spans():
        table = tables_of(corpus.run, "embed").read_table(f"{part}.parquet", ["embedding"])
        column = table["embedding"].combine_chunks()
        present = np.asarray(pc.is_valid(column)) & wanted[start:end]
        rows.append(np.flatnonzero(present) + start)
        flat = column.filter(pa.array(present)).flatten().to_numpy(zero_copy_only=False)
        parts.append(flat.astype(np.float16, copy=False).reshape(-1, column.type.list_size))
    found = np.concatenate(rows)
    best = np.argsort(rank[found])
    return found[best], np.concatenate(parts)[best]


def _pool(corpus: _Corpus, exact: Rows, pooled_by: Rows, config: FilterConfig) -> Pools:
    """Judge every caption by its corpus, where `exact` (n,) numbers the images, and its group."""
    owner = np.repeat(np.arange(len(pooled_by)), np.diff(corpus.first))
    rules = config.caption
    everything = np.ones(len(owner), dtype=bool)
    keys = corpus.caption_key
    if rules.repeats.similarity is not None and len(keys):
        labels = near_captions(_signatures(corpus, everything), rules.repeats.similarity)
        keys = keys[labels]
    images = images_per_caption(keys, exact[owner])
    total = int((exact == np.arange(len(exact))).sum())
    pools = Pools(owner, pooled_by[owner], with_repeats(corpus.caption_code, images, total, config))
    pools.drop_with_images(corpus.code == 0)
    shared = pools.shared(len(pooled_by))
    if len(shared):
        wanted = np.zeros(len(owner), dtype=bool)
        wanted[shared] = True
        place = np.searchsorted(np.sort(shared), shared)
        if rules.pool_similarity is None:
            texts = _gathered(corpus, wanted).take(pa.array(place))
            equal = texts.dictionary_encode().indices.to_numpy()
            label = exact_leaders(
                np.stack([pools.lead[shared], equal], axis=1).astype(np.uint64),
                np.arange(len(shared)),
            )
        else:
            made = _signatures(corpus, wanted)[place]
            label = near_captions(made, rules.pool_similarity, pools.lead[shared])
        pools.drop_repeats(shared, label)
    if rules.max_per_image is not None:
        pools.drop_beyond(rules.max_per_image, len(pooled_by))
    return pools


def _signatures(corpus: _Corpus, wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Return the signatures of the wanted captions (m,), in their order."""
    found = []
    for part, start, end in corpus.spans():
        mask = wanted[corpus.first[start] : corpus.first[end]]
        if mask.any():
            table = tables_of(corpus.run, "filter").read_table(f"{part}.parquet", ["signatures"])
            flat = table["signatures"].combine_chunks().flatten()
            found.append(byte_rows(flat.filter(pa.array(mask))))
    return np.concatenate(found)


def _gathered(corpus: _Corpus, wanted: npt.NDArray[np.bool_]) -> pa.Array:
    """Return the texts of the wanted captions (m,), in their order."""
    found = [pa.array([], pa.large_string())]  # of all parts, maybe more than 2 GiB
    for part, start, end in corpus.spans():
        mask = wanted[corpus.first[start] : corpus.first[end]]
        if mask.any():
            texts = _texts(corpus.run, part).filter(pa.array(mask))
            found.append(texts.cast(pa.large_string()))
    return pa.concat_arrays(found)


def _write(task: Task, corpus: _Corpus, leaders: tuple[Rows, Rows], pools: Pools) -> list[int]:
    """Write the parts' tables; return how many images each keeps.

    `leaders` are each row's representative and whose pool it joined.
    """
    leader, pooled_by = leaders
    moved = np.flatnonzero((pools.code == 0) & (pools.owner != pools.lead))
    wanted = np.zeros(len(pools.code), dtype=bool)
    wanted[moved] = True
    moved_texts = _gathered(corpus, wanted)
    by_lead = np.argsort(pools.lead[moved], kind="stable")
    leads = pools.lead[moved][by_lead]
    kept = []
    for part, start, end in corpus.spans():
        low, high = corpus.first[start], corpus.first[end]
        own = low + np.flatnonzero(
            (pools.code[low:high] == 0) & (pools.owner[low:high] == pools.lead[low:high])
        )
        ahead, behind = np.searchsorted(leads, [start, end])
        coming = by_lead[ahead:behind]
        captions = pools.ordered(np.concatenate([own, moved[coming]]))
        # Where each caption's text is: in the part, or after it among those that come.
        arrived = np.sort(coming)
        here = _texts(corpus.run, part).cast(pa.large_string())
        texts = pa.concat_arrays([here, moved_texts.take(pa.array(arrived))])
        stays = pools.lead[captions] == pools.owner[captions]
        place = high - low + np.searchsorted(moved[arrived], captions)
        place[stays] = captions[stays] - low
        lengths = np.bincount(pools.lead[captions] - start, minlength=end - start)
        code = corpus.code[start:end]
        own_columns = ["row", "uid", "split"]
        table = tables_of(corpus.run, "filter").read_table(f"{part}.parquet", own_columns)
        verdicts = {
            **{name: table[name] for name in own_columns},
            "reason": reason_array(code, _IMAGE_REASONS),
            "representative": _representatives(corpus.uids, leader, start, end),
            "pooled_by": _representatives(corpus.uids, pooled_by, start, end),
            "captions": _lists(lengths, texts.take(pa.array(place)).cast(pa.string()), code != 0),
            "caption_reasons": _lists(
                np.diff(corpus.first[start : end + 1]),
                reason_array(pools.code[low:high], REASONS),
            ),
        }
        task.write(part, pa.table(verdicts))
        kept.append(int((code == 0).sum()))
    return kept


def _representatives(uids: Words, leader: Rows, start: int, end: int) -> pa.Array:
    """Return the uid of the row that leads each row [start, end), null where it is itself."""
    own = leader[start:end] == np.arange(start, end)
    places = np.where(own, -1, np.cumsum(~own) - 1)
    return uid_texts(uids[leader[start:end][~own]]).take(pa.array(places, mask=own))


def _lists(lengths: Rows, values: pa.Array, null: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    mask = None if null is None else pa.array(null)
    return pa.ListArray.from_arrays(offsets, values, mask=mask)


def _texts(run: Directory, part: str) -> pa.Array:
    """Return the alt texts of a part's fetched rows, in order."""
    table = tables_of(run, "download").read_table(f"{part}.parquet", ["reason", "captions"])
    return table.filter(pc.is_null(table["reason"]))["captions"].combine_chunks().flatten()
