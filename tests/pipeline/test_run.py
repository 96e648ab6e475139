"""Whole runs: real Dask cluster, real HTTP server, real processes."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.funnel import check
from pipeline.status import describe_run
from tests.pipeline.runs import ROWS, build, command, digests, pipeline


@pytest.fixture(scope="module")
def manifest(run: Path) -> dict:
    return json.loads((run / "shards" / "manifest.json").read_text())


def test_every_row_is_accounted_for(run: Path, manifest: dict) -> None:
    funnel = manifest["funnel"]
    check(funnel)
    assert funnel["rows"] == ROWS
    selection = pq.read_table(run / "selection.parquet").to_pylist()
    assert sum(row["kept"] for row in selection) == funnel["kept"] == manifest["samples"]
    copies = funnel["dropped"].get("exact_duplicate", 0)
    assert len(selection) == len({row["uid"] for row in selection}) == funnel["fetched"] - copies
    assert all(row["kept"] == (row["reason"] is None) for row in selection)


def test_test_split_is_whole_and_apart(run: Path) -> None:
    index = pq.read_table(run / "shards" / "index.parquet").to_pylist()
    held_out = [row for row in index if row["split"] == "test"]
    assert len(held_out) == 30
    assert {row["shard"].split("-")[0] for row in held_out} == {"test"}
    assert {row["split"] for row in index} == {"train", "test"}


def test_manifest_describes_the_shards(run: Path, manifest: dict) -> None:
    for shard in manifest["shards"]:
        data = (run / "shards" / shard["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        assert len(data) == shard["bytes"]
    assert len(manifest["shards"]) > 2


def test_samples_follow_the_contract(run: Path) -> None:
    index = pq.read_table(run / "shards" / "index.parquet").to_pylist()
    for row in index:
        data = (run / "shards" / row["shard"]).read_bytes()
        image = data[row["image_offset"] : row["image_offset"] + row["image_size"]]
        assert Image.open(io.BytesIO(image)).size == (row["width"], row["height"])
        sample = json.loads(data[row["json_offset"] : row["json_offset"] + row["json_size"]])
        assert sample["uid"] == row["uid"]
        assert len(sample["captions"]) == row["n_captions"] >= 1
        qualities = [caption["scores"]["quality"] for caption in sample["captions"]]
        assert max(qualities) == pytest.approx(row["quality_best"], abs=1e-6)
        assert all(0 <= quality <= 1 for quality in qualities)
        for caption in sample["captions"]:
            for start, end in caption["nouns"] + caption["attributes"]:
                assert caption["text"][start:end].strip() == caption["text"][start:end] != ""
        assert row["meta.shape"] == sample["meta"]["shape"]
        assert isinstance(json.loads(sample["meta"]["annotations"])["objects"], list)


def test_truth_is_in_no_table_that_filters_or_scorers_work_from(run: Path) -> None:
    kept = pq.read_schema(run / "tables" / "filter" / "00000.parquet").names
    scored = pq.read_schema(run / "tables" / "score" / "00000.parquet").names
    assert not [name for name in [*kept, *scored] if name.startswith("meta.")]


def test_webdataset_reads_the_shards(run: Path, manifest: dict) -> None:
    import webdataset

    urls = [str(run / "shards" / shard["name"]) for shard in manifest["shards"]]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert len(samples) == manifest["samples"]
    assert all(sample["json"]["uid"] == sample["__key__"] for sample in samples)
    assert all(sample["txt"] for sample in samples)


def test_hugging_face_datasets_reads_the_shards(
    run: Path, manifest: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    files = {"train": str(run / "shards" / "train-*.tar"), "test": str(run / "shards/test-*.tar")}
    loaded = datasets.load_dataset("webdataset", data_files=files, cache_dir=str(tmp_path))
    assert loaded["train"].num_rows + loaded["test"].num_rows == manifest["samples"]
    assert loaded["train"][0]["json"]["uid"] == loaded["train"][0]["__key__"]


def test_plain_tar_reads_the_shards(run: Path, manifest: dict) -> None:
    for shard in manifest["shards"]:
        path = run / "shards" / shard["name"]
        listed = subprocess.run(
            ["tar", "tf", str(path)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert len(listed) == 3 * shard["samples"]
        with tarfile.open(path) as tar:
            assert {(m.mtime, m.uname, m.mode) for m in tar} == {(0, "tcjepa", 0o444)}


def test_rerun_changes_nothing_and_starts_no_task(run: Path, port: int) -> None:
    before, events = digests(run), (run / "events.jsonl").read_text()
    done = build(run, port)
    assert done.returncode == 0, done.stderr
    assert digests(run) == before
    assert (run / "events.jsonl").read_text() == events


def test_no_part_takes_more_than_five_tasks(run: Path, manifest: dict) -> None:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    shards = {shard["name"].removesuffix(".tar") for shard in manifest["shards"]}
    tasks = Counter(event["part"] for event in events)
    assert max(n for part, n in tasks.items() if part.isdigit()) <= 5
    assert all(tasks[shard] == 1 for shard in shards)
    # Everything else is a task for the whole run, however many parts there are.
    assert set(tasks) - shards - {"all"} == {"00000", "00001", "00002", "00003"}


def test_thresholds_are_tried_without_measuring_again(run: Path, port: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    before = (folder / "events.jsonl").read_text()
    tried = build(folder, port, "--until", "select", "filter.image.min_side=150")
    assert tried.returncode == 0, tried.stderr
    assert "dropped, too_small" in tried.stdout
    events = (folder / "events.jsonl").read_text().removeprefix(before).splitlines()
    assert [json.loads(event)["stage"] for event in events] == ["select"]
    assert digests(folder) == digests(run)
    said = describe_run(str(folder))
    assert "thresholds that were only tried" in said and "at least 150" in said
    back = build(folder, port)
    assert back.returncode == 0, back.stderr
    assert digests(folder) == digests(run)
    assert "only tried" not in describe_run(str(folder))


def test_a_trial_that_is_killed_leaves_no_mark_of_the_run_before(
    run: Path, port: int, tmp_path: Path
) -> None:
    """Tables are written over one after another, and the earlier mark would cover all of them."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    mark = folder / "tables" / "select" / "all.parquet"
    trial = subprocess.Popen(
        command(folder, port, "--until", "select", "filter.image.min_side=150"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while mark.exists():
        assert trial.poll() is None, "it ended without beginning anew"
        time.sleep(0.0005)
    trial.kill()
    trial.wait()
    # As if it had got as far as its first part.
    spoilt = folder / "tables" / "select" / "00000.parquet"
    table = pq.read_table(spoilt)
    reasons = pa.array(["too_small"] * len(table), pa.string())
    place = table.column_names.index("reason")
    pq.write_table(table.set_column(place, "reason", reasons), spoilt)
    back = build(folder, port)
    assert back.returncode == 0, back.stderr
    assert digests(folder) == digests(run)


def test_number_of_workers_does_not_matter(run: Path, port: int, tmp_path: Path) -> None:
    done = build(tmp_path / "run", port, "cluster.workers=1")
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "run") == digests(run)


def test_failed_part_is_listed_and_tried_again(run: Path, port: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    blocked = folder / "raw" / "00001.tar"
    blocked.mkdir(parents=True)  # a folder where the part's images should go
    (blocked / "in the way").touch()
    first = build(folder, port)
    assert first.returncode == 1, first.stderr
    assert "part 00001 failed in download" in first.stderr
    manifest = json.loads((folder / "shards" / "manifest.json").read_text())
    assert manifest["funnel"]["failed"]["transient"]["part_failed"] == 30
    check(manifest["funnel"])
    (blocked / "in the way").unlink()
    blocked.rmdir()
    second = build(folder, port)
    assert second.returncode == 0, second.stderr
    assert digests(folder) == digests(run)


def test_second_run_in_the_same_directory_is_refused(port: int, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = build(tmp_path / "run", port)
    assert done.returncode == 2
    assert "another process is working" in done.stderr


def test_status_and_dry_run(run: Path, port: int) -> None:
    status = pipeline("status", str(run)).stdout
    assert f"{ROWS} rows in 4 parts" in status
    assert "4 of 4 parts" in status
    plan = build(run, port, "--dry-run")
    assert plan.returncode == 0
    assert "download   4 of 4 parts done" in plan.stdout
    changed = build(run, port, "--dry-run", "download.image_size=99")
    assert "download   0 of 4 parts done" in changed.stdout


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("filter.image.min_sde=3", "did you mean filter.image.min_side?"),
        ("source.kind=scene", "did you mean scenes?"),
        ("part_rows=many", "part_rows: got 'many'"),
        ("cluster.address=tcp://127.0.0.1:1", "no scheduler answers"),
        ("nonsense", "must have the form key.sub=value"),
        ("recaption.captioners=[{kind: transformers, model: ./no-such-folder}]", "no-such-folder"),
    ],
)
def test_bad_config_exits_2_before_work(
    override: str, message: str, port: int, tmp_path: Path
) -> None:
    done = build(tmp_path / "run", port, override)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_peak_memory_of_workers_is_bounded(run: Path) -> None:
    """What the kernel recorded of the largest process of the run must fit."""
    peak_kib = int(run.with_name("peak_kib").read_text())
    assert 0 < peak_kib < 3 * 1024 * 1024
