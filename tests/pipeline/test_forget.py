"""Takedowns: what is forgotten is nowhere any more, all else stays, and no rerun brings it back."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.forget import run as forget_run
from pipeline.forget.listing import forgotten_uids
from pipeline.funnel import check
from pipeline.stages.failures import FAILURES
from pipeline.storage import Directory
from tests.pipeline.runs import ROWS, build, digests, pipeline


@pytest.fixture
def mine(run: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    return folder


def samples(run: Path) -> dict[str, dict[str, bytes]]:
    """Return uid -> member extension -> bytes, read off the shards."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted((run / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                uid, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(uid, {})[extension] = file.read()
    return found


def texts_of(run: Path, uid: str) -> list[bytes]:
    """Return what only this image has: its bytes, its URL, its uid."""
    sample = samples(run)[uid]
    url = json.loads(sample["json"])["url"]
    return [sample["jpg"], url.encode(), uid.encode()]


def holders(run: Path, needles: list[bytes]) -> set[str]:
    """Return the files of a run that hold one of the byte strings, Parquet files decoded."""
    found = set()
    for path in sorted(run.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            data = repr(
                table.drop_columns(
                    [n for n in table.column_names if n == "representative"]
                ).to_pydict()
            ).encode()
        if any(needle in data for needle in needles):
            found.add(str(path.relative_to(run)))
    return found


def test_a_forgotten_image_is_nowhere(mine: Path, run: Path) -> None:
    before = samples(mine)
    uid = next(uid for uid in before if b"/train/" in before[uid]["json"])
    needles = texts_of(mine, uid)
    assert len(holders(mine, needles)) > 8
    done = pipeline("forget", str(mine), uid)
    assert done.returncode == 0, done.stderr
    assert "images forgotten" in done.stdout
    # The user's list, as it was cut, still has the URL; the block list has the uid.
    allowed = {"forgotten.json", *(f"parts/{p.name}" for p in (mine / "parts").iterdir())}
    assert holders(mine, needles) <= allowed
    after = samples(mine)
    gone = set(forgotten_uids(Directory(mine)))
    assert uid in gone
    assert after == {key: value for key, value in before.items() if key not in gone}


def test_sums_index_and_manifest_follow(mine: Path) -> None:
    uids = list(samples(mine))[:3]
    assert pipeline("forget", str(mine), *uids).returncode == 0
    manifest = json.loads((mine / "shards" / "manifest.json").read_text())
    check(manifest["funnel"])
    assert manifest["funnel"]["rows"] == ROWS
    assert manifest["funnel"]["failed"]["policy"]["forgotten"] >= 3
    index = pq.read_table(mine / "shards" / "index.parquet").to_pylist()
    left = samples(mine)
    assert {row["uid"] for row in index} == set(left)
    for row in index:
        data = (mine / "shards" / row["shard"]).read_bytes()
        image = data[row["image_offset"] : row["image_offset"] + row["image_size"]]
        assert image == left[row["uid"]][row["image_format"]]
    for shard in manifest["shards"]:
        assert (mine / "shards" / shard["name"]).stat().st_size == shard["bytes"]


def test_a_takedown_needs_no_raw_tars(mine: Path, tmp_path: Path) -> None:
    """Deleted, once nothing is to be selected anew: shards are then cut from themselves."""
    twin = tmp_path / "twin"
    shutil.copytree(mine, twin)
    shutil.rmtree(twin / "raw")
    uids = list(samples(mine))[:3]
    for folder in (mine, twin):
        done = pipeline("forget", str(folder), *uids)
        assert done.returncode == 0, done.stderr
    assert digests(mine) == digests(twin)
    assert not set(uids) & set(samples(twin))


def test_a_rerun_of_the_same_config_finds_nothing_to_do(mine: Path, port: int) -> None:
    uid = next(iter(samples(mine)))
    assert pipeline("forget", str(mine), uid).returncode == 0
    before, events = digests(mine), (mine / "events.jsonl").read_text()
    again = build(mine, port)
    assert again.returncode == 0, again.stderr
    assert digests(mine) == before
    assert (mine / "events.jsonl").read_text() == events


def test_forgetting_twice_or_after_a_kill_ends_the_same(mine: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(mine, twin)
    uids = list(samples(mine))[1:3]
    assert pipeline("forget", str(mine), *uids).returncode == 0
    # As if killed when the first of the steps was done.
    Directory(twin).write_json("forgotten.json", dict.fromkeys(uids, "2026-01-01"))
    assert pipeline("forget", str(twin), *uids).returncode == 0
    assert digests(mine) == digests(twin)
    assert pipeline("forget", str(mine), *uids).returncode == 0
    assert digests(mine) == digests(twin)


def test_a_new_fetch_does_not_bring_it_back(mine: Path, port: int) -> None:
    uid = next(iter(samples(mine)))
    image = samples(mine)[uid]["jpg"]
    assert pipeline("forget", str(mine), uid).returncode == 0
    shutil.rmtree(mine / "raw")
    again = build(mine, port, "download.quality=94")  # fetches everything anew
    assert again.returncode == 0, again.stderr
    assert uid not in samples(mine)
    assert holders(mine, [image]) == set()
    manifest = json.loads((mine / "shards" / "manifest.json").read_text())
    assert manifest["funnel"]["failed"]["policy"]["forgotten"] >= 1


def test_near_copies_go_too(mine: Path) -> None:
    selected = [
        row
        for path in (mine / "tables" / "select").glob("0*.parquet")
        for row in pq.read_table(path, columns=["uid", "reason", "representative"]).to_pylist()
    ]
    copies = {r["uid"]: r["representative"] for r in selected if r["reason"] == "near_duplicate"}
    assert copies, "the world has near-duplicates"
    copy, leader = next(iter(copies.items()))
    assert leader in samples(mine)
    assert pipeline("forget", str(mine), copy).returncode == 0
    assert {copy, leader} <= set(forgotten_uids(Directory(mine)))
    assert leader not in samples(mine)


@pytest.mark.parametrize("step", ["drop_elsewhere", "_forget_in_shards"])
def test_near_copies_go_too_after_a_kill(
    mine: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """When it comes, the table that tied a copy to its image has been cut already."""
    selected = [
        row
        for path in (mine / "tables" / "select").glob("0*.parquet")
        for row in pq.read_table(path, columns=["uid", "pooled_by", "reason"]).to_pylist()
    ]
    copy, leader = next(
        (r["uid"], r["pooled_by"]) for r in selected if r["reason"] == "near_duplicate"
    )
    image = samples(mine)[leader]["jpg"]

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(forget_run, step, killed)
        with pytest.raises(KeyboardInterrupt):
            forget_run.forget(str(mine), [copy])
    assert leader in samples(mine)
    again = forget_run.forget(str(mine), [copy])
    assert copy in again.uids
    assert leader not in samples(mine) and holders(mine, [image]) == set()


def test_a_shard_that_becomes_empty_leaves_no_table(mine: Path) -> None:
    index = pq.read_table(mine / "shards" / "index.parquet").to_pylist()
    shard = index[-1]["shard"]
    gone = [row["uid"] for row in index if row["shard"] == shard]
    table = mine / "tables" / "pack" / f"{shard.removesuffix('.tar')}.parquet"
    assert table.exists()
    assert pipeline("forget", str(mine), *gone).returncode == 0
    assert not table.exists() and not (mine / "shards" / shard).exists()


def test_a_part_that_failed_in_a_later_run_does_not_stand_in_the_way(mine: Path, port: int) -> None:
    """Its tables are of an earlier run, and the shards of now have nothing of it."""
    (mine / "raw" / "00001.tar").unlink()
    (mine / "raw" / "00001.tar").mkdir()
    (mine / "raw" / "00001.tar" / "in the way").touch()
    (mine / "tables" / "download" / "00001.parquet").unlink()
    assert build(mine, port).returncode == 1
    assert (mine / "tables" / "choose" / "00001.parquet").exists()
    uid = next(iter(samples(mine)))
    done = pipeline("forget", str(mine), uid)
    assert done.returncode == 0, done.stderr
    assert uid not in samples(mine)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "not-a-uid"], "is no uid"),
        (["RUN"], "no uids given"),
        (["RUN", "--file", "missing.txt"], "cannot be read"),
        (["/no/such/run", "0" * 32], "not a finished run"),
    ],
)
def test_mistakes_are_named(mine: Path, arguments: list[str], message: str) -> None:
    done = pipeline("forget", *[str(mine) if a == "RUN" else a for a in arguments])
    assert done.returncode == 2
    assert message in done.stderr


def test_a_uid_of_no_image_is_told_and_kept_out_all_the_same(mine: Path) -> None:
    stranger, uid = "0" * 32, next(iter(samples(mine)))
    done = pipeline("forget", str(mine), stranger, uid)
    assert done.returncode == 1
    assert f"{stranger} is the uid of no image of this run" in done.stderr
    assert uid not in done.stderr and uid not in samples(mine)
    assert "1 images forgotten" in done.stdout
    assert {stranger, uid} <= set(forgotten_uids(Directory(mine)))
    assert pipeline("forget", str(mine), stranger).returncode == 0, "it was told once"


def test_the_reason_is_a_matter_of_policy() -> None:
    assert FAILURES["forgotten"][0] == "policy"
