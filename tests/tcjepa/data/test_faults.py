"""Broken local shards: each fault is a named error, or a ledger line with a fixed substitute."""

import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.schema import INDEX_FILE, MANIFEST_FILE, SchemaError
from pipeline.settings import ConfigError
from tcjepa.data.batch import Batch
from tcjepa.data.config import DataConfig
from tcjepa.data.errors import (
    DamagedShardError,
    DataError,
    ShardUnavailableError,
    TooManyUnreadableError,
    WorkerDiedError,
)
from tcjepa.data.index import Entry, ShardIndex
from tcjepa.data.ledger import SubstitutionLedger
from tcjepa.data.loader import make_loader
from tcjepa.noise import NoiseConfig
from tests.tcjepa.shards import image, write_shards

N, G, STEPS = 24, 4, 12
ROW = 9  # the sample that is spoiled: the second of the second shard

Spoil = Callable[[bytearray, Entry], None]


def config_of(tmp_path: Path, **keys: Any) -> DataConfig:
    keys = {"image_size": 16, "workers": 0, "window": 2, "max_bad_share": 1.0, **keys}
    return DataConfig(shards=str(tmp_path / "shards"), cache_dir=str(tmp_path / "cache"), **keys)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", N)
    return tmp_path / "shards"


def batches(config: DataConfig, ledger: Path | None = None, **keys: Any) -> list[Batch]:
    record = SubstitutionLedger(ledger, config.max_bad_share)
    keys = {"seed": 3, "global_batch": G, "steps": STEPS, **keys}
    return list(make_loader(ShardIndex.open(config), config, ledger=record, **keys))


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.rows, y.rows) and torch.equal(x.images, y.images)
        assert (x.captions, x.replaced) == (y.captions, y.replaced)


def cut(data: bytearray, entry: Entry) -> None:
    del data[entry.image_offset + entry.image_size // 2 :]


def flip_image(data: bytearray, entry: Entry) -> None:
    for place in range(entry.image_offset, entry.image_offset + 20):
        data[place] ^= 0xFF


def flip_json(data: bytearray, entry: Entry) -> None:
    data[entry.json_offset] ^= 0xFF


def flip_uid_in_json(data: bytearray, entry: Entry) -> None:
    place = data.index(entry.uid.encode(), entry.json_offset)
    data[place : place + 1] = b"1" if data[place : place + 1] == b"0" else b"0"


def flip_header(data: bytearray, entry: Entry) -> None:
    data[entry.image_offset - 512 + 3] ^= 0xFF


SPOILS = {
    "truncated tar": (cut, "ends before byte"),
    "flipped bytes in the image": (flip_image, "undecodable image"),
    "flipped bytes in the json": (flip_json, "json member of .* is broken"),
    "another uid in the json": (flip_uid_in_json, "another sample's"),
    "flipped bytes in the tar header": (flip_header, "tar header before"),
}


def spoil(shards: Path, index: ShardIndex, how: Spoil) -> Entry:
    entry = index.entry(ROW)
    data = bytearray((shards / entry.shard).read_bytes())
    how(data, entry)
    (shards / entry.shard).write_bytes(data)
    return entry


@pytest.mark.parametrize(("how", "reason"), SPOILS.values(), ids=SPOILS)
def test_a_spoiled_sample_is_replaced_and_written_down(
    shards: Path, tmp_path: Path, how: Spoil, reason: str
) -> None:
    config = config_of(tmp_path, verify="none")
    clean = batches(config)
    entry = spoil(shards, ShardIndex.open(config), how)
    ledger = tmp_path / "unreadable.jsonl"
    found = batches(config, ledger)
    written = [json.loads(line) for line in ledger.read_text().splitlines()]
    mine = [line for line in written if line["uid"] == entry.uid]
    assert len(mine) == 2  # epochs
    assert all(re.search(reason, line["reason"]) for line in mine)
    if how is not cut:  # which takes the samples behind it as well
        assert len(written) == 2
    spoiled = {line["uid"] for line in written}
    index = ShardIndex.open(config)
    for a, b in zip(clean, found, strict=True):
        for place in range(G):
            if index.entry(int(a.rows[place])).uid in spoiled:
                assert index.entry(int(b.rows[place])).uid not in spoiled
            else:
                assert torch.equal(a.images[place], b.images[place])
                assert a.captions[place] == b.captions[place]
    assert_same(found, batches(config))  # the same substitutes in every rerun
    resumed = make_loader(index, config, seed=3, global_batch=G, steps=STEPS)
    state = resumed.state_after(found[4])
    assert_same(found[5:], batches(config, state=state, steps=STEPS - 5))


@pytest.mark.parametrize(
    ("how", "verify", "message"),
    [(cut, "size", "the manifest says"), (None, "size", "No such file"),
     (flip_json, "sha256", "SHA-256"), (flip_image, "sha256", "SHA-256")],
)  # fmt: skip
def test_what_verify_sees_is_said_before_the_first_step(
    shards: Path, tmp_path: Path, how: Spoil | None, verify: str, message: str
) -> None:
    index = ShardIndex.open(config_of(tmp_path, verify=verify))
    if how is None:
        (shards / "train-00001.tar").unlink()
    else:
        spoil(shards, index, how)
    with pytest.raises(DamagedShardError, match=rf"data.shards.*train-00001.tar .*{message}"):
        ShardIndex.open(config_of(tmp_path, verify=verify))
    assert ShardIndex.open(config_of(tmp_path, verify="none"))


def test_sizes_are_judged_without_a_manifest_too(shards: Path, tmp_path: Path) -> None:
    (shards / MANIFEST_FILE).unlink()
    spoil(shards, ShardIndex.open(config_of(tmp_path)), cut)
    with pytest.raises(DamagedShardError, match="the index needs"):
        ShardIndex.open(config_of(tmp_path))


@pytest.mark.parametrize("manifest", [None, "{}"])
def test_hashes_cannot_be_judged_without_a_manifest(
    shards: Path, tmp_path: Path, manifest: str | None
) -> None:
    (shards / MANIFEST_FILE).unlink()
    if manifest is not None:
        (shards / MANIFEST_FILE).write_text(manifest)
    with pytest.raises(ConfigError, match=r"data.verify=sha256: .* use data.verify=size"):
        ShardIndex.open(config_of(tmp_path, verify="sha256"))


def test_manifest_must_know_the_shards_of_the_index(shards: Path, tmp_path: Path) -> None:
    manifest = json.loads((shards / MANIFEST_FILE).read_text())
    (shards / MANIFEST_FILE).write_text(json.dumps(manifest | {"shards": manifest["shards"][:2]}))
    with pytest.raises(DamagedShardError, match=r"train-00002.tar \(not in the manifest\)"):
        ShardIndex.open(config_of(tmp_path))
    (shards / MANIFEST_FILE).write_text("{")
    with pytest.raises(SchemaError, match=r"manifest.json .*damaged.*data.verify=none"):
        ShardIndex.open(config_of(tmp_path))


def test_hashes_are_read_once_per_file(shards: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, verify="sha256")
    ShardIndex.open(config)
    (record,) = (tmp_path / "cache").glob("verified-*.json")
    known = json.loads(record.read_text())
    assert set(known) == {f"train-{n:05d}.tar" for n in range(3)}
    known["train-00000.tar"][-1] = "of another file"
    record.write_text(json.dumps(known))
    with pytest.raises(DamagedShardError, match=r"train-00000.tar \(its SHA-256"):
        ShardIndex.open(config)  # believed, because the file is untouched
    (shards / "train-00000.tar").touch()
    ShardIndex.open(config)  # read again


def rewrite_index(shards: Path, column: str, change: Callable[[list[Any]], list[Any]]) -> None:
    table = pq.read_table(shards / INDEX_FILE)
    field = table.schema.field(column)
    values = pa.array(change(table[column].to_pylist()), field.type)
    pq.write_table(
        table.set_column(table.column_names.index(column), field, values), shards / INDEX_FILE
    )


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("image_offset", lambda values: [value + 512 for value in values]),
        ("json_offset", lambda values: [value - 512 for value in values]),
        ("uid", lambda values: [*values[1:], values[0]]),
        ("image_size", lambda values: [value - 1 for value in values]),
    ],
)
def test_an_index_that_disagrees_with_its_tars_stops_the_run(
    shards: Path, tmp_path: Path, column: str, change: Callable[[list[Any]], list[Any]]
) -> None:
    rewrite_index(shards, column, change)
    with pytest.raises(DataError, match=r"unreadable|could not be read"):
        batches(config_of(tmp_path, max_bad_share=0.01))


def test_another_packing_of_the_same_samples_is_noticed(shards: Path, tmp_path: Path) -> None:
    """Same names, same sizes, valid JPEGs and jsons in other places: no caption meets its image."""
    config = config_of(tmp_path, verify="none", max_bad_share=0.01)
    index = ShardIndex.open(config)
    sizes = {path.name: path.stat().st_size for path in shards.glob("*.tar")}
    for name in index.shards:
        with tarfile.open(shards / name) as tar:
            members = [(member, tar.extractfile(member)) for member in tar.getmembers()]
            contents = [(member, file.read()) for member, file in members if file]
        with tarfile.open(shards / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for start in reversed(range(0, len(contents), 3)):
                for member, content in contents[start : start + 3]:
                    tar.addfile(member, io.BytesIO(content))
    assert sizes == {path.name: path.stat().st_size for path in shards.glob("*.tar")}
    with pytest.raises(DataError, match=r"unreadable|could not be read"):
        batches(config)
    with pytest.raises(DamagedShardError, match="SHA-256"):
        ShardIndex.open(config_of(tmp_path, verify="sha256"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_goes_during_the_run(shards: Path, tmp_path: Path, workers: int) -> None:
    config = config_of(tmp_path, workers=workers, prefetch=1, window=1)
    loader = make_loader(ShardIndex.open(config), config, seed=3, global_batch=2, steps=100)
    stream = iter(loader)
    next(stream)
    for path in shards.glob("*.tar"):
        path.unlink()
    with pytest.raises(ShardUnavailableError, match=r"^shard train-0000\d.tar is in the index but"):
        for _ in stream:
            pass


def test_a_shard_that_is_replaced_during_the_run(shards: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, window=1)
    loader = make_loader(ShardIndex.open(config), config, seed=3, global_batch=2, steps=100)
    stream = iter(loader)
    next(stream)
    write_shards(tmp_path / "new", N, encode=lambda n: image(n, 400, 400))
    for path in (tmp_path / "new").glob("*"):
        path.replace(shards / path.name)
    with pytest.raises(DamagedShardError, match="was replaced during the run"):
        for _ in stream:
            pass


def test_rubbish_stops_a_small_run(tmp_path: Path) -> None:
    """Three steps of four: a rule that waits for a hundred samples would never judge it."""
    encoded = {True: lambda n: b"no image", False: lambda n: image(n, 40, 40)}
    write_shards(tmp_path / "shards", N, encode=lambda n: encoded[n % 2 == 1](n))
    with pytest.raises(TooManyUnreadableError, match=r"data.max_bad_share = 0.01"):
        batches(config_of(tmp_path, max_bad_share=0.01), steps=3)


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_is_an_error(shards: Path, tmp_path: Path, kill: int) -> None:
    config = config_of(tmp_path, workers=2)
    loader = make_loader(ShardIndex.open(config), config, seed=3, global_batch=G, steps=10**6)
    stream = iter(loader)
    before = set(_loader_processes())
    next(stream)
    ours = set(_loader_processes()) - before
    assert len(ours) == 2
    os.kill(ours.pop(), kill)
    with pytest.raises(WorkerDiedError, match=r"data.workers or data.prefetch"):
        for _ in stream:
            pass
    for _ in range(3000):  # and nobody is left behind
        if not ours & set(_loader_processes()):
            break
        time.sleep(0.01)
    assert not ours & set(_loader_processes())


_TRAINS = """
import multiprocessing, sys, time
from tcjepa.data.config import DataConfig
from tcjepa.data.index import ShardIndex
from tcjepa.data.loader import make_loader
config = DataConfig.model_validate_json(sys.argv[1])
stream = iter(make_loader(ShardIndex.open(config), config, seed=3, global_batch=4, steps=10**6))
next(stream)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
time.sleep(1000)
"""


def test_workers_end_with_a_killed_trainer(shards: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, workers=2)
    trainer = subprocess.Popen(
        [sys.executable, "-c", _TRAINS, config.model_dump_json()], stdout=subprocess.PIPE
    )
    assert trainer.stdout is not None
    workers = [int(text) for text in trainer.stdout.readline().split()]
    assert len(workers) == 2 and all(map(_lives, workers))
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    for _ in range(3000):
        if not any(map(_lives, workers)):
            return
        time.sleep(0.02)
    raise AssertionError("workers outlived their trainer by a minute")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _loader_processes() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def test_an_unreadable_lender_of_a_caption_costs_no_sound_image(
    shards: Path, tmp_path: Path
) -> None:
    """The image keeps its caption; the lender is replaced where it stands itself."""
    config = config_of(tmp_path, noise=NoiseConfig(kind="derangement", rate=1.0))
    sound = batches(config)
    entry = ShardIndex.open(config).entry(ROW)
    path = shards / entry.shard
    data = bytearray(path.read_bytes())
    flip_json(data, entry)
    path.write_bytes(data)
    kept = 0
    for own, other in zip(batches(config), sound, strict=True):
        for place, row in enumerate(other.rows.tolist()):
            if row == ROW:
                assert own.rows[place] != ROW
                assert entry.uid in [uid for uid, _ in own.replaced]
                continue
            assert own.rows[place] == row and torch.equal(own.images[place], other.images[place])
            kept += own.captions[place] != other.captions[place]
        assert {uid for uid, _ in own.replaced} <= {entry.uid}
    assert kept > 0
