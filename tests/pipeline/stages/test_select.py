"""The verdict over all parts, rule by rule."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.filters.config import FilterConfig
from pipeline.forget.tables import copies_of
from pipeline.settings import build
from pipeline.stages.task import tables_of
from pipeline.storage import Directory
from tests.peak_memory import peak_growth
from tests.pipeline.stages.measured_rows import FAILED, TEXTS, Row, run_select, uid


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


def test_a_copy_from_a_blocked_host_takes_no_other_with_it(tmp_path: Path) -> None:
    """As if it had never been fetched; its captions are not lent either."""
    rows = [
        Row("A", (text,), url=f"http://{host}.example/a.jpg")
        for text, host in (("a red star", "bad"), ("a blue ring", "good"), ("word", "bad"))
    ]
    config = build(FilterConfig, {"block": {"hosts": ["bad.example"]}})
    found, _ = run_select(Directory(tmp_path), [rows], config)
    assert [row["reason"] for row in found] == ["blocked_host", None, "blocked_host"]
    assert found[1]["captions"] == ["a blue ring"]
    assert [row["caption_reasons"] for row in found] == [
        ["image_dropped"],
        [None],
        ["too_few_words"],
    ]


def embed(run: Directory, name: str, vectors: list[list[float] | None]) -> None:
    column = pa.array(
        [None if v is None else np.array(v, np.float16) for v in vectors],
        pa.list_(pa.float16(), 2),
    )
    tables_of(run, "embed").write_table(f"{name}.parquet", pa.table({"embedding": column}))


def test_a_near_copy_of_a_semantic_duplicate_names_both(tmp_path: Path) -> None:
    """It is shown beside the photograph that stays, and belongs to the one whose picture it is."""
    run = Directory(tmp_path)
    embed(run, "00000", [[1, 0], [0.999, 0.04], [0, 1]])
    rows = [Row("D", ("a red star",)), Row("B", ("a blue ring",)), Row("A", ("two green squares",))]
    config = build(FilterConfig, {"duplicates": {"semantic": {"threshold": 0.9}}})
    found, _ = run_select(run, [rows], config)
    assert [row["reason"] for row in found] == [None, "semantic_duplicate", "near_duplicate"]
    assert [row["representative"] for row in found] == [None, uid("D"), uid("D")]
    assert [row["pooled_by"] for row in found] == [None, None, uid("B")]
    assert copies_of(run, {uid("B")}) == copies_of(run, {uid("A")}) == {uid("A"), uid("B")}
    assert copies_of(run, {uid("D")}) == {uid("D")}


@pytest.mark.parametrize("rule", ["drop_caption", "drop_image"])
def test_an_image_without_captions_drops_no_image_that_shows_the_same(
    tmp_path: Path, rule: str
) -> None:
    run = Directory(tmp_path)
    embed(run, "00000", [[1, 0], [0.999, 0.04]])
    rows = [Row("D", ("word",)), Row("A", ("a red star",))]  # D has more pixels
    rules = {"duplicates": {"semantic": {"threshold": 0.9}}, "on_bad_caption": rule}
    found, _ = run_select(run, [rows], build(FilterConfig, rules))
    lost = "semantic_duplicate" if rule == "drop_caption" else "no_good_caption"
    assert [row["reason"] for row in found] == [lost, None]
    assert found[1]["captions"] == ["a red star"]


def test_one_long_caption_among_many_costs_its_own_length(tmp_path: Path) -> None:
    """Equal texts of a pool are one; they are compared without padding all to the longest."""
    long = "a red star " + "x" * 40_000
    warm_up = (tmp_path / "warm-up", "a red star")
    found, growth = peak_growth(_pooled_lengths, tmp_path / "run", long, warm_up=warm_up)
    assert found == [len("two green squares"), len(long)]
    assert growth < 100e6  # 3,002 captions of 40,011 characters would be 480 MB


def _pooled_lengths(folder: Path, long: str) -> list[int]:
    TEXTS[long] = None
    rows = [Row("A", ("two green squares",) * 3000), Row("A", (long, "two green squares"))]
    rules = {"caption": {"pool_similarity": None, "max_characters": None}}
    found, _ = run_select(Directory(folder), [rows], build(FilterConfig, rules))
    return sorted(map(len, found[0]["captions"]))


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
