"""Shards: every sample once, byte for byte the same, and readable where the index says."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import webdataset

from pipeline.schema import INDEX_FILE, SCORES, check_index, index_schema
from pipeline.stages.pack import best_caption, image_format, pack
from pipeline.stages.shuffle import PackConfig, plan, planned
from pipeline.stages.task import SHARDS, Task, tables_of
from pipeline.storage import Directory


def caption(text: str, quality: float | None = None, wording: float | None = None) -> dict:
    scores = {**dict.fromkeys(SCORES), "quality": quality, "wording": wording}
    return {"text": text, "source": "alt", **scores, "nouns": [[0, 1]], "attributes": []}


@pytest.fixture
def run(tmp_path: Path, image: Callable[..., bytes]) -> Directory:
    """A run of two scored parts whose metadata differs in type."""
    return make_run(Directory(tmp_path / "run"), image)


def make_run(run: Directory, image: Callable[..., bytes]) -> Directory:
    kinds = [[".jpg", ".png", ".webp"], [".jpg", ".png", ".webp"]]
    metas = [pa.array([1, None, 3], pa.int64()), pa.array(["x", "y", None])]
    captions = [
        [[caption("low", 0.25, 0.5), caption("high — 雨", 0.75)], [caption("dropped")], []],
        [
            [caption("bad", 0.9), caption("one", 0.123456)],
            [caption("null")],
            [caption("tie a", 0.5)],
        ],
    ]
    for number, part in enumerate(("00000", "00001")):
        images = [image(kind, 10 * number + n) for n, kind in enumerate(kinds[number])]
        offsets = [1000 * number + sum(map(len, images[:n])) for n in range(3)]
        (run / "raw").write_bytes(f"{part}.tar", b"\x00" * 1000 * number + b"".join(images))
        rows = [3 * number + n for n in range(3)]
        uids = [f"{row:032x}" for row in rows]
        truth = [json.dumps({"objects": [row]}) if row else "no JSON" for row in rows]
        outcome = pa.table(
            {
                "row": rows,
                "uid": uids,
                "image_offset": offsets,
                "image_size": [len(data) for data in images],
                "raw": [f"{part}.tar"] * 3,
                "width": pa.array([40] * 3, pa.int32()),
                "height": pa.array([30] * 3, pa.int32()),
                "url": [f"http://h/{row}" for row in rows],
                "split": ["train", "train", "test"],
                "meta.id": metas[number],
                "meta.annotations": truth,
                "meta.empty": pa.array([None] * 3, pa.string()),
            }
        )
        tables_of(run, "download").write_table(f"{part}.parquet", outcome)
        scored = pa.table({"row": rows, "uid": uids, "captions": captions[number]})
        tables_of(run, "score").write_table(f"{part}.parquet", scored)
        judged = {
            "row": rows,
            "uid": uids,
            "split": outcome["split"],
            "size": outcome["image_size"],
            "reason": pa.array([None, "no_caption" if number == 0 else None, None], pa.string()),
            "caption_reasons": pa.array(
                [
                    ["low_quality" if c["text"] == "bad" else None for c in row]
                    for row in captions[number]
                ],
                pa.list_(pa.string()),
            ),
        }
        tables_of(run, "choose").write_table(f"{part}.parquet", pa.table(judged))
    return run


def pack_all(run: Directory) -> dict[str, list[str]]:
    """Plan and pack; return the uids of each shard in order."""
    plan(Task(run, "plan", "mark"), ["00000", "00001"], PackConfig())
    for shard in planned(run):
        pack(Task(run, "pack", "mark"), shard.name)
    return {
        shard.name: tables_of(run, "plan").read_table(f"{shard.name}.parquet")["uid"].to_pylist()
        for shard in planned(run)
    }


def index_of(run: Directory, shard: str) -> list[dict[str, Any]]:
    return list(tables_of(run, "pack").read_table(f"{shard}.parquet").to_pylist())


def test_dropped_samples_and_captions_are_not_packed(run: Directory) -> None:
    shards = pack_all(run)
    assert sorted(int(uid, 16) for uids in shards.values() for uid in uids) == [0, 2, 3, 4, 5]
    assert {int(uid, 16) for uid in shards["test-00000"]} == {2, 5}
    packed = (run / SHARDS).read_bytes("train-00000.tar")
    assert b'"bad"' not in packed
    assert b'"one"' in packed


def test_members_lie_where_the_index_says(run: Directory, image: Callable[..., bytes]) -> None:
    for shard, uids in pack_all(run).items():
        tar = (run / SHARDS).read_bytes(f"{shard}.tar")
        rows = index_of(run, shard)
        assert [row["uid"] for row in rows] == uids
        for row in rows:
            number = int(row["uid"], 16)
            data = tar[row["image_offset"] :][: row["image_size"]]
            kind = (".jpg", ".png", ".webp")[number % 3]
            assert data == image(kind, 10 * (number // 3) + number % 3)
            assert row["image_format"] == kind[1:]
            member = json.loads(tar[row["json_offset"] :][: row["json_size"]])
            assert member["uid"] == row["uid"]
            assert member["url"] == f"http://h/{number}"
            assert len(member["captions"]) == row["n_captions"]
            assert row["split"] == shard.split("-")[0]


def test_stock_webdataset_reads_the_shards(run: Directory) -> None:
    read: dict[str, Any] = {}
    for shard in pack_all(run):
        url = f"file:{(run / SHARDS).path(f'{shard}.tar')}"
        for sample in webdataset.WebDataset(url, shardshuffle=False):
            read[sample["__key__"]] = sample
    assert len(read) == 5
    first = read[f"{0:032x}"]
    assert first["txt"].decode() == "high — 雨"
    assert {"jpg", "json", "txt"} <= set(first)
    assert read[f"{2:032x}"]["txt"] == b""
    sample = json.loads(first["json"])
    assert list(sample) == sorted(sample)
    assert sample["captions"][0] == {
        "text": "low",
        "source": "alt",
        "scores": {**dict.fromkeys(SCORES), "quality": 0.25, "wording": 0.5},
        "nouns": [[0, 1]],
        "attributes": [],
    }
    assert sample["meta"] == {"id": 1, "annotations": "no JSON", "empty": None}
    third = json.loads(read[f"{3:032x}"]["json"])
    assert third["captions"][0]["scores"]["quality"] == 0.1235
    assert third["meta"]["annotations"] == '{"objects": [3]}'


def test_the_index_follows_the_schema(run: Directory) -> None:
    pack_all(run)
    table = tables_of(run, "pack").read_table("train-00000.parquet")
    fixed = index_schema([])
    assert table.schema.names[: len(fixed)] == fixed.names
    assert all(table.schema.field(name).type == fixed.field(name).type for name in fixed.names)
    check_index(table.schema.with_metadata(fixed.metadata))
    assert "meta.annotations" not in table.column_names
    by_uid = {int(row["uid"], 16): row for row in table.to_pylist()}
    assert by_uid[0]["quality_best"] == pytest.approx(0.75)
    assert by_uid[0]["quality_mean"] == pytest.approx(0.5)
    assert (by_uid[0]["wording_best"], by_uid[0]["wording_mean"]) == (0.5, 0.5)
    assert by_uid[4]["quality_best"] is None
    # Parts that inferred different types meet in one shard.
    assert [by_uid[n]["meta.id"] for n in (0, 3, 4)] == ["1", "x", "y"]


def test_equal_samples_are_equal_bytes(
    run: Directory, tmp_path: Path, image: Callable[..., bytes]
) -> None:
    again = make_run(Directory(tmp_path / "again"), image)
    pack_all(again)
    for shard, uids in pack_all(run).items():
        name = f"{shard}.tar"
        assert (run / SHARDS).read_bytes(name) == (again / SHARDS).read_bytes(name)
        with tarfile.open((run / SHARDS).path(name)) as tar:
            members = tar.getmembers()
        fixed = {(m.mtime, m.mode, m.uname, m.gname, m.uid, m.gid) for m in members}
        assert fixed == {(0, 0o444, "tcjepa", "tcjepa", 0, 0)}
        extensions = [m.name.rpartition(".")[2] for m in members]
        assert len(extensions) == 3 * len(uids)
    assert (run / SHARDS).names() == ["test-00000.tar", "train-00000.tar"]
    assert not (run / SHARDS).exists(INDEX_FILE)  # written when all shards are there


def test_a_shard_that_fails_midway_is_not_there(
    run: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.stages.pack._index_rows", full)
    with pytest.raises(OSError, match="No space"):
        pack_all(run)
    assert list(Path((run / SHARDS).path()).iterdir()) == []
    assert tables_of(run, "pack").names() == []


def test_packing_works_on_any_file_system(image: Callable[..., bytes]) -> None:
    remote = make_run(Directory("memory://pack-test"), image)
    try:
        shards = pack_all(remote)
        data = (remote / SHARDS).read_bytes("train-00000.tar")
        row = index_of(remote, "train-00000")[0]
        assert json.loads(data[row["json_offset"] :][: row["json_size"]])["uid"] == row["uid"]
        assert (remote / SHARDS).names() == [f"{shard}.tar" for shard in shards]
    finally:
        remote.fs.store.clear()


@pytest.mark.parametrize(
    ("qualities", "best"),
    [([], ""), ([0.1, 0.9, 0.9], "1"), ([None, 0.1], "1"), ([None, None], "0"), ([0.0, None], "0")],
)
def test_the_best_caption_is_the_first_of_the_highest_quality(
    qualities: list[float | None], best: str
) -> None:
    captions = [{"text": str(n), "scores": {"quality": q}} for n, q in enumerate(qualities)]
    assert best_caption(captions) == best  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_the_format_is_read_off_the_bytes(image: Callable[..., bytes], kind: str) -> None:
    assert image_format(image(f".{kind}")) == kind
