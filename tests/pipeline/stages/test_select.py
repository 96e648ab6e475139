"""The verdict over all parts, against a plain reference that compares everything with everything.

Images by letter: B is a near-duplicate of A and of C, but A and C are not near (a chain); D has
A's hash in other colours; E is too small, F undecodable.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.filters.config import FilterConfig
from pipeline.filters.image import COLOUR_BYTES
from pipeline.filters.measures import IMAGE_MEASURES
from pipeline.filters.near_texts import signatures
from pipeline.settings import build
from pipeline.stages.filter import SCHEMA
from pipeline.stages.select import select
from pipeline.stages.task import Task, is_done, tables_of
from pipeline.storage import Directory

#: letter -> (side, hash, colour)
IMAGES = {
    "A": (300, 0b0, 100),
    "B": (400, 0b1111, 105),
    "C": (300, 0b11111111, 110),
    "D": (500, 0b0, 200),
    "E": (150, 0b0, 100),
    "F": (None, None, None),
}
#: text -> reason of its own
TEXTS = {
    "a red star": None,
    "two green squares": None,
    "a blue ring": None,
    "click here for more": "boilerplate",
    "word": "too_few_words",
}
FAILED = "-"


@dataclass(frozen=True)
class Row:
    """A source row: an image by letter, or `FAILED`."""

    image: str
    captions: tuple[str, ...] = ()
    split: str = "train"


def uid(image: str) -> str:
    return image.lower() * 32


def image_measures(image: str) -> dict[str, Any]:
    side, phash, colour = IMAGES[image]
    if side is None:
        return {**dict.fromkeys(IMAGE_MEASURES.names), "decode_error": "undecodable"}
    return {
        "decode_error": None,
        "width": side,
        "height": side,
        "pixels": side * side,
        "contrast": 50.0,
        "sharpness": 100.0,
        "entropy": 5.0,
        "grey_share": 0.1,
        "animated": False,
        "phash": phash,
        "colours": bytes([colour]) * COLOUR_BYTES,
    }


def caption_measures(text: str) -> dict[str, Any]:
    return {
        "characters": len(text),
        "words": len(text.split()),
        "language": "en",
        "language_score": 1.0,
        "english_score": 1.0,
        "symbol_share": 0.0,
        "repetition": 0.0,
        "bad_encoding": False,
        "filename_like": False,
        "url_like": False,
        "contact_like": False,
        "keyword_share": 0.0,
        "boilerplate": TEXTS[text] == "boilerplate",
        "caption_key": list(TEXTS).index(text),
        "noun_share": None,
        "verb_share": None,
        "proper_noun_share": None,
    }


def run_select(
    run: Directory, parts: list[list[Row]], config: FilterConfig
) -> tuple[list[dict[str, Any]], Any]:
    """Write the tables `select` reads, run it, and return its rows and its report."""
    number = 0
    names = [f"{index:05d}" for index in range(len(parts))]
    for name, rows in zip(names, parts, strict=True):
        numbers = range(number, number + len(rows))
        number += len(rows)
        outcome = pa.table(
            {
                "reason": pa.array(
                    ["timeout" if r.image == FAILED else None for r in rows], pa.string()
                ),
                "captions": pa.array([list(r.captions) for r in rows], pa.list_(pa.string())),
            }
        )
        tables_of(run, "download").write_table(f"{name}.parquet", outcome)
        measured = [
            {
                "row": n,
                "uid": uid(r.image),
                "split": r.split,
                **image_measures(r.image),
                "captions": [caption_measures(text) for text in r.captions],
                "signatures": [made.tobytes() for made in signatures(r.captions)],
            }
            for n, r in zip(numbers, rows, strict=True)
            if r.image != FAILED
        ]
        table = pa.Table.from_pylist(measured, schema=SCHEMA)
        tables_of(run, "filter").write_table(f"{name}.parquet", table)
    report = select(Task(run, "select", "mark"), names, config)
    assert is_done(run, "select", "all", "mark")
    found = []
    for name in names:
        assert is_done(run, "select", name, "mark")
        found += tables_of(run, "select").read_table(f"{name}.parquet").to_pylist()
    return found, report


def near(first: str, second: str) -> bool:
    (_, hash1, colour1), (_, hash2, colour2) = IMAGES[first], IMAGES[second]
    assert hash1 is not None
    assert hash2 is not None
    assert colour1 is not None
    assert colour2 is not None
    return (hash1 ^ hash2).bit_count() <= 4 and abs(colour1 - colour2) <= 12


BAD = {"E": "too_small", "F": "undecodable"}


def group_rows(rows: list[Row]) -> list[dict[str, Any]]:
    """Return why each row is dropped, if it is, and the row that leads its group."""
    ranked = sorted(
        range(len(rows)),
        key=lambda i: (
            rows[i].split == "train",
            -((IMAGES[rows[i].image][0] or 0) ** 2),
            uid(rows[i].image),
        ),
    )
    first = {row.image: i for i, row in reversed([(i, rows[i]) for i in ranked])}
    leader = {i: i for i in first.values()}
    free = [i for i in ranked if i in leader and rows[i].image not in BAD]
    while free:
        centre, *others = free
        for other in others:
            if near(rows[centre].image, rows[other].image):
                leader[other] = centre
        free = [i for i in others if leader[i] == i]
    judged = []
    for i, row in enumerate(rows):
        own = first[row.image]
        reason = BAD.get(row.image)
        if own != i:
            reason = "exact_duplicate"
        elif leader[own] != i:
            reason = "near_duplicate"
        judged.append({"reason": reason, "lead": leader[own]})
    return judged


def reference(
    rows: list[Row], *, drop_image: bool, limit: float, blocked: bool
) -> list[dict[str, Any]]:
    """Judge the fetched rows one by one; `blocked` drops stars and green squares."""
    own = dict(TEXTS)
    if blocked:
        own |= {"a red star": "blocked_word", "two green squares": "blocked_word"}
    judged = group_rows(rows)
    stands_on = {text: len({r.image for r in rows if text in r.captions}) for text in TEXTS}
    caption_reasons = [
        [own[t] or ("repeated" if stands_on[t] > limit else None) for t in row.captions]
        for row in rows
    ]
    for i, row in enumerate(rows):
        dropped = judged[judged[i]["lead"]]["reason"] is not None
        caption_reasons[i] = [
            reason or ("image_dropped" if dropped else None) for reason in caption_reasons[i]
        ]
        assert len(caption_reasons[i]) == len(row.captions)
    for i, verdict in enumerate(judged):
        if verdict["reason"] is not None:
            continue
        pool: list[str] = []
        group = [j for j in range(len(rows)) if judged[j]["lead"] == i]
        for j in sorted(group, key=lambda j: (j != i, j)):
            for place, text in enumerate(rows[j].captions):
                if caption_reasons[j][place] is not None:
                    continue
                if text in pool:
                    caption_reasons[j][place] = "duplicate_text"
                else:
                    pool.append(text)
        verdict["captions"] = pool
        if drop_image and not pool:
            verdict["reason"] = "no_good_caption"
    return [
        {
            "uid": uid(row.image),
            "split": row.split,
            "reason": verdict["reason"],
            "representative": uid(rows[verdict["lead"]].image) if verdict["lead"] != i else None,
            "captions": verdict.get("captions") if verdict["reason"] is None else None,
            "caption_reasons": reasons,
        }
        for i, (row, verdict, reasons) in enumerate(zip(rows, judged, caption_reasons, strict=True))
    ]


ROW = st.builds(
    Row,
    st.sampled_from([*IMAGES, FAILED]),
    st.lists(st.sampled_from(list(TEXTS)), max_size=3).map(tuple),
    st.sampled_from(["train", "test"]),
)


@settings(max_examples=80, deadline=None)
@given(
    parts=st.lists(st.lists(ROW, max_size=6), min_size=1, max_size=3),
    drop_image=st.booleans(),
    limit=st.sampled_from([1, 2, None]),
    rules=st.tuples(st.sampled_from([None, 0.8]), st.sampled_from([[], ["star", "GREEN squares"]])),
)
def test_select_is_the_plain_reference(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[list[Row]],
    drop_image: bool,
    limit: int | None,
    rules: tuple[float | None, list[str]],
) -> None:
    similarity, blocked = rules
    run = Directory(tmp_path_factory.getbasetemp() / "select")
    repeats = {"max_repeats": limit, "min_repeats": limit or 1}
    config = build(
        FilterConfig,
        {
            "on_bad_caption": "drop_image" if drop_image else "drop_caption",
            "caption": {"repeats": repeats, "pool_similarity": similarity},
            "block": {"words": blocked},
        },
    )
    found, report = run_select(run, parts, config)
    fetched = [row for part in parts for row in part if row.image != FAILED]
    numbers = [
        n for n, row in enumerate(row for part in parts for row in part) if row.image != FAILED
    ]
    expected = reference(
        fetched, drop_image=drop_image, limit=limit or float("inf"), blocked=bool(blocked)
    )
    assert [row.pop("row") for row in found] == numbers
    assert found == expected
    # The sums hold: what is kept of the captions is what the kept images have.
    kept = [row for row in found if row["reason"] is None]
    assert report.counts == {"fetched": len(fetched), "kept": len(kept)}
    survivors = sum(r is None for row in found for r in row["caption_reasons"])
    assert survivors == sum(len(row["captions"]) for row in kept)
    assert len({row["uid"] for row in kept}) == len(kept)


def judge(tmp_path: Path, *parts: list[Row], **config: Any) -> list[tuple[Any, ...]]:
    found, _ = run_select(Directory(tmp_path), list(parts), build(FilterConfig, config))
    return [(r["reason"], r["captions"], r["caption_reasons"]) for r in found]


def test_captions_of_exact_copies_are_pooled_once(tmp_path: Path) -> None:
    first = Row("A", ("a red star", "a red star"))
    second = Row("A", ("two green squares", "a red star", "word"))
    assert judge(tmp_path, [first], [second]) == [
        (None, ["a red star", "two green squares"], [None, "duplicate_text"]),
        ("exact_duplicate", None, [None, "duplicate_text", "too_few_words"]),
    ]


@pytest.mark.parametrize("follower", ["A", "B"])
@pytest.mark.parametrize("rule", ["drop_caption", "drop_image"])
def test_the_only_good_caption_of_a_group_is_kept_whoever_brings_it(
    tmp_path: Path, follower: str, rule: str
) -> None:
    leader = Row(follower, ("word",), "test")
    found = judge(tmp_path, [Row("A", ("a red star",))], [leader], on_bad_caption=rule)
    assert found[1] == (None, ["a red star"], ["too_few_words"])
    assert found[0][0] in ("exact_duplicate", "near_duplicate")
    assert found[0][2] == [None]


@pytest.mark.parametrize("copy", ["A", "B"])
def test_a_copy_in_the_test_split_wins_over_training(tmp_path: Path, copy: str) -> None:
    found = judge(tmp_path, [Row("B")], [Row(copy, (), "test")], [Row("B")])
    assert [row[0] for row in found].index(None) == 1


def test_near_duplicates_follow_a_centre_and_never_a_chain(tmp_path: Path) -> None:
    found = judge(tmp_path, [Row("A"), Row("C"), Row("D")], [Row("B", (), "train")])
    assert [row[0] for row in found] == ["near_duplicate", "near_duplicate", None, None]
    kept = judge(tmp_path / "2", [Row("A", (), "test"), Row("C", (), "test")], [Row("B")])
    assert [row[0] for row in kept] == [None, None, "near_duplicate"]


def test_radius_null_keeps_near_duplicates(tmp_path: Path) -> None:
    found = judge(tmp_path, [Row("A"), Row("B"), Row("B")], duplicates={"radius": None})
    assert [row[0] for row in found] == [None, None, "exact_duplicate"]


def test_captions_of_a_dropped_image_and_of_its_copies_go_with_it(tmp_path: Path) -> None:
    found = judge(tmp_path, [Row("E", ("a red star", "word")), Row("E", ("a blue ring",))])
    assert found == [
        ("too_small", None, ["image_dropped", "too_few_words"]),
        ("exact_duplicate", None, ["image_dropped"]),
    ]


def test_an_image_without_good_caption_waits_for_the_captioner_or_goes(tmp_path: Path) -> None:
    rows = [Row("A", ("word",)), Row("D", ())]
    assert [r[:2] for r in judge(tmp_path, rows)] == [(None, []), (None, [])]
    dropped = judge(tmp_path, rows, on_bad_caption="drop_image")
    assert Counter(row[0] for row in dropped) == {"no_good_caption": 2}


def test_parts_without_a_fetched_row_have_empty_tables(tmp_path: Path) -> None:
    assert judge(tmp_path, [Row(FAILED, ("lost",))], []) == []


def test_captions_that_nearly_repeat_one_another_are_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = "An old red boat lies on the quiet beach below the white cliffs of the island"
    again = "an old red boat lies on the quiet beach below the white cliffs of the island."
    close = "An old red boat lies on the quiet beach below the white cliffs of the isle"
    other = "A boat on a beach"
    for text in (first, other, again, close):
        monkeypatch.setitem(TEXTS, text, None)
    rows = [Row("A", (first, other)), Row("A", (again, close))]
    kept, copy = judge(tmp_path, rows)
    assert kept[:2] == (None, [first, other])
    assert copy[2] == ["duplicate_text", "duplicate_text"]
    # Without a similarity, only equal texts are one.
    kept, copy = judge(tmp_path / "all", rows, caption={"pool_similarity": None})
    assert kept[1] == [first, other, again, close]
    assert copy[2] == [None, None]


def test_templates_count_as_one_caption_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"buy the {word} at our shop with free delivery all over" for word in "abc"]
    for text in texts:
        monkeypatch.setitem(TEXTS, text, None)
    rows = [Row(image, (text,)) for image, text in zip("ACD", texts, strict=True)]
    limits = {"max_repeats": 2, "min_repeats": 2}
    off = {"radius": None}
    found = judge(tmp_path, rows, caption={"repeats": limits}, duplicates=off)
    assert [row[2] for row in found] == [[None]] * 3
    near = {**limits, "similarity": 0.5}
    found = judge(tmp_path / "near", rows, caption={"repeats": near}, duplicates=off)
    assert [row[2] for row in found] == [["repeated"]] * 3


def test_blocked_uids_are_dropped_with_all_their_copies(tmp_path: Path) -> None:
    rows = [Row("A", ("a red star",)), Row("A", ("a blue ring",)), Row("D", ("a red star",))]
    found = judge(tmp_path, rows, block={"uids": [uid("A")]})
    assert [row[0] for row in found] == ["blocked_uid", "exact_duplicate", None]
    assert [row[2] for row in found] == [["image_dropped"], ["image_dropped"], [None]]


def embed(run: Directory, name: str, vectors: list[list[float] | None]) -> None:
    column = pa.array(
        [None if v is None else np.array(v, np.float16) for v in vectors],
        pa.list_(pa.float16(), 2),
    )
    tables_of(run, "embed").write_table(f"{name}.parquet", pa.table({"embedding": column}))


def test_semantic_duplicates_go_with_their_captions(tmp_path: Path) -> None:
    run = Directory(tmp_path)
    embed(run, "00000", [[1, 0], [0, 1], None])
    embed(run, "00001", [[0.999, 0.04]])
    rows = [Row("A", ("a red star",)), Row("D", ("a blue ring",)), Row("F")]
    config = build(FilterConfig, {"duplicates": {"semantic": {"threshold": 0.9}}})
    found, _ = run_select(run, [rows, [Row("C", ("two green squares",))]], config)
    # A and C are equally large; the smaller uid stays.
    assert [row["reason"] for row in found] == [None, None, "undecodable", "semantic_duplicate"]
    assert [row["representative"] for row in found] == [None, None, None, uid("A")]
    assert found[0]["captions"] == ["a red star"]
    assert found[3]["caption_reasons"] == ["image_dropped"]
