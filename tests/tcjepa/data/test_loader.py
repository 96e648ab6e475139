import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.settings import ConfigError
from tcjepa import keyed
from tcjepa.data.augment import crop_box, crop_into
from tcjepa.data.batch import Batch
from tcjepa.data.captions import choose
from tcjepa.data.config import DataConfig, worker_count
from tcjepa.data.decode import open_image
from tcjepa.data.index import ShardIndex
from tcjepa.data.ledger import SubstitutionLedger, TooManyUnreadableError
from tcjepa.data.loader import make_loader
from tcjepa.data.plan import Plan
from tcjepa.data.reader import ShardReader
from tcjepa.noise import NoiseConfig
from tests.tcjepa.shards import image, write_shards

N, G, STEPS = 30, 8, 9  # two epochs and a bit


def config_of(tmp_path: Path, **keys: Any) -> DataConfig:
    keys = {"image_size": 24, "workers": 0, "window": 2, **keys}
    return DataConfig(shards=str(tmp_path / "shards"), cache_dir=str(tmp_path / "cache"), **keys)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    write_shards(tmp_path / "shards", N)
    return config_of(tmp_path, noise=NoiseConfig(kind="derangement", rate=0.4))


@pytest.fixture
def index(config: DataConfig) -> ShardIndex:
    return ShardIndex.open(config)


def batches(index: ShardIndex, config: DataConfig, **keys: Any) -> list[Batch]:
    return list(
        make_loader(index, config, **{"seed": 3, "global_batch": G, "steps": STEPS, **keys})
    )


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.rows, y.rows) and torch.equal(x.images, y.images)
        assert (x.captions, x.position, x.replaced) == (y.captions, y.position, y.replaced)


def test_batches_are_the_plan_done_plainly(index: ShardIndex, config: DataConfig) -> None:
    """One sample at a time, from the documented functions alone."""
    epochs, rows = Plan(index.shard_sizes, index.fingerprint, 3, config.window).rows(0, G * STEPS)
    reader = ShardReader(index, 1)
    config = config.model_copy(update={"noise": NoiseConfig()})
    position = 0
    for batch in batches(index, config):
        assert batch.position == position
        assert batch.images.shape == (G, 3, 24, 24) and batch.images.dtype == torch.uint8
        for place in range(G):
            epoch, row = int(epochs[position]), int(rows[position])
            data, image_format, sample = reader.image_and_sample(row)
            picture = open_image(data, image_format, 10**6)
            crop_key = keyed.key("crop", 3, epoch, sample["uid"])
            box = crop_box(
                picture.height, picture.width, config.crop_scale, config.crop_ratio, crop_key
            )
            crop = np.empty((24, 24, 3), np.uint8)
            crop_into(crop, picture, box)
            assert np.array_equal(batch.images[place].numpy(), crop.transpose(2, 0, 1))
            chosen = choose(sample["captions"], config, 3, epoch, sample["uid"])
            assert batch.captions[place] == [sample["captions"][n]["text"] for n in chosen]
            assert int(batch.rows[place]) == row
            position += 1


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_worker_count_changes_nothing(index: ShardIndex, config: DataConfig) -> None:
    plain = batches(index, config)
    for workers in (2, 8):
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        several = batches(index, config.model_copy(update={"workers": workers}))
        assert torch.equal(torch.rand(1), expected)  # the global generator is left alone
        assert_same(plain, several)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_rank_count_changes_nothing(index: ShardIndex, config: DataConfig, ranks: int) -> None:
    whole = batches(index, config)
    parts = [batches(index, config, rank=rank, world_size=ranks) for rank in range(ranks)]
    for step in range(STEPS):
        pieces = [parts[rank][step] for rank in range(ranks)]
        assert torch.equal(torch.cat([piece.images for piece in pieces]), whole[step].images)
        assert [c for piece in pieces for c in piece.captions] == whole[step].captions
        assert {piece.position for piece in pieces} == {whole[step].position}


@pytest.mark.parametrize("done", [1, 4, 7])
def test_resume_goes_on_with_the_next_sample(
    index: ShardIndex, config: DataConfig, done: int
) -> None:
    whole = batches(index, config)
    loader = make_loader(index, config, seed=3, global_batch=G, steps=STEPS)
    stream = iter(loader)
    for _ in range(done):
        state = loader.state_after(next(stream))
    stream.close()  # type: ignore[attr-defined]
    assert_same(whole[done:], batches(index, config, state=state, steps=STEPS - done))
    # Also on another number of ranks and with another batch.
    rows = torch.cat([batch.rows for batch in whole[done:]])
    smaller = batches(index, config, state=state, global_batch=4, steps=2 * (STEPS - done))
    assert torch.equal(torch.cat([batch.rows for batch in smaller]), rows)


def test_killed_process_resumes(index: ShardIndex, config: DataConfig, tmp_path: Path) -> None:
    """A real process is killed in the middle; what it saved is enough to go on exactly."""
    script = f"""
import json, os, pathlib, signal
from tcjepa.data.config import DataConfig
from tcjepa.data.index import ShardIndex
from tcjepa.data.loader import make_loader
config = DataConfig.model_validate_json({config.model_dump_json()!r})
loader = make_loader(ShardIndex.open(config), config, seed=3, global_batch={G}, steps={STEPS})
rows = []
for batch in loader:
    rows += batch.rows.tolist()
    saved = {{"rows": rows, "state": loader.state_after(batch).to_dict()}}
    pathlib.Path({str(tmp_path / "saved.json")!r}).write_text(json.dumps(saved))
    if batch.position >= 4 * {G}:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert done.returncode == -9
    saved = json.loads((tmp_path / "saved.json").read_text())
    loader = make_loader(index, config, seed=3, global_batch=G, steps=STEPS)
    state = type(loader.plan.state(0)).from_dict(saved["state"])
    rest = batches(index, config, state=state, steps=STEPS - 5)
    rows = saved["rows"] + [row for batch in rest for row in batch.rows.tolist()]
    assert rows == [row for batch in loader for row in batch.rows.tolist()]
    assert sorted(rows[:N]) == sorted(rows[N : 2 * N]) == list(range(N))


def test_dropped_tail(index: ShardIndex, config: DataConfig) -> None:
    """30 samples in batches of 8: three steps an epoch, six samples left out, others each time."""
    config = config.model_copy(update={"tail": "drop"})
    whole = batches(index, config)
    rows = [torch.cat([b.rows for b in whole[e : e + 3]]).tolist() for e in (0, 3, 6)]
    assert all(len(set(epoch)) == 24 for epoch in rows)
    assert len({frozenset(range(N)) - frozenset(epoch) for epoch in rows}) == 3
    loader = make_loader(index, config, seed=3, global_batch=G, steps=STEPS)
    state = loader.state_after(whole[3])
    assert (state.epoch, state.consumed) == (1, 8)
    assert_same(whole[4:], batches(index, config, state=state, steps=STEPS - 4))
    smaller = batches(index, config, state=state, global_batch=4, steps=2)
    assert torch.equal(torch.cat([b.rows for b in smaller]), whole[4].rows)
    with pytest.raises(ConfigError, match=r"8 samples of epoch 1.*global batches of 3"):
        batches(index, config, state=state, global_batch=3)


@pytest.mark.parametrize("samples", [1, 3])
def test_fewer_samples_and_shards_than_ranks(tmp_path: Path, samples: int) -> None:
    write_shards(tmp_path / "shards", samples)
    config = config_of(tmp_path)
    index = ShardIndex.open(config)
    parts = [
        batches(index, config, rank=rank, world_size=4, global_batch=4, steps=3)
        for rank in range(4)
    ]
    seen = [int(parts[rank][step].rows[0]) for step in range(3) for rank in range(4)]
    for epoch in range(12 // samples):
        assert sorted(seen[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


def test_unequal_ranks_are_refused(index: ShardIndex, config: DataConfig) -> None:
    with pytest.raises(ConfigError, match="multiple of 3"):
        make_loader(index, config, seed=0, global_batch=8, steps=1, world_size=3)


def test_image_without_captions(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 4, captions=lambda n: [])
    config = config_of(tmp_path)
    assert batches(ShardIndex.open(config), config, steps=1)[0].captions == [[]] * G


class TestUnreadable:
    BAD = (4, 11)

    @pytest.fixture
    def config(self, tmp_path: Path) -> DataConfig:
        def encode(number: int) -> bytes:
            data = image(number, 48, 40)
            return data[: len(data) // 2] if number in self.BAD else data

        write_shards(tmp_path / "shards", N, encode=encode)
        return config_of(tmp_path, max_bad_share=1.0)

    def test_substitutes_are_deterministic(self, config: DataConfig, tmp_path: Path) -> None:
        index = ShardIndex.open(config)
        ledger = SubstitutionLedger(tmp_path / "run" / "ledger.jsonl", limit=1.0)
        first = batches(index, config, ledger=ledger)
        assert_same(first, batches(index, config.model_copy(update={"workers": 2})))
        _, planned = Plan(index.shard_sizes, index.fingerprint, 3, 2).rows(0, G * STEPS)
        used = torch.cat([batch.rows for batch in first]).numpy()
        assert set(np.flatnonzero(used != planned)) == set(
            np.flatnonzero(np.isin(planned, self.BAD))
        )
        assert not np.isin(used, self.BAD).any()
        lines = (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()
        written = [(line["uid"], line["reason"]) for line in map(json.loads, lines)]
        assert written == [pair for batch in first for pair in batch.replaced]
        assert {uid for uid, _ in written} == {index.entry(row).uid for row in self.BAD}
        assert all("undecodable" in reason for _, reason in written)
        assert ledger.replaced == len(lines) and ledger.seen == G * STEPS

    def test_too_many_stop_the_run(self, config: DataConfig) -> None:
        index = ShardIndex.open(config)
        config = config.model_copy(update={"max_bad_share": 0.03})  # three in the first hundred
        replaced, bad = [], 0
        with pytest.raises(TooManyUnreadableError, match=r"^4 of .*max_bad_share = 0.03"):
            for batch in make_loader(index, config, seed=0, global_batch=G, steps=100):
                replaced += batch.replaced
        _, rows = Plan(index.shard_sizes, index.fingerprint, 0, 2).rows(0, 2 * N)
        while np.isin(rows[:bad], self.BAD).sum() < 4:
            bad += G
        assert len(replaced) < 4 and bad <= 2 * N

    def test_nothing_readable(self, tmp_path: Path) -> None:
        write_shards(tmp_path / "shards", 4, encode=lambda n: b"no image")
        config = config_of(tmp_path, max_bad_share=1.0)
        with pytest.raises(RuntimeError, match="all unreadable"):
            batches(ShardIndex.open(config), config)


def test_worker_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    assert worker_count(DataConfig(shards="x")) == 16
    assert worker_count(DataConfig(shards="x", workers=3)) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert worker_count(DataConfig(shards="x")) == 7
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    assert worker_count(DataConfig(shards="x")) == 0
    monkeypatch.delattr("os.sched_getaffinity")  # macOS
    monkeypatch.setattr("os.cpu_count", lambda: 32)
    assert worker_count(DataConfig(shards="x")) == 3


@pytest.mark.parametrize(
    "keys",
    [{"crop_scale": (0.5, 0.3)}, {"crop_scale": (0.0, 1.0)}, {"crop_ratio": (2.0, 1.0)},
     {"workers": -1}, {"workers": "many"}, {"window": 0}, {"max_bad_share": 2}],
)  # fmt: skip
def test_config_refusals(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        DataConfig(shards="x", **keys)


def test_workers_outlive_sigterm(index: ShardIndex, config: DataConfig) -> None:
    """Schedulers signal a whole job; the trainer still gets batches until it has saved."""
    known = set(multiprocessing.active_children())
    loader = make_loader(
        index, config.model_copy(update={"workers": 2}), seed=3, global_batch=G, steps=STEPS
    )
    stream = iter(loader)
    found = [next(stream), next(stream)]  # one of each: both have started
    workers = set(multiprocessing.active_children()) - known
    assert len(workers) == 2
    for worker in workers:
        worker.terminate()
    found += stream
    assert_same(found, batches(index, config))


def test_iterating_again_gives_the_same(index: ShardIndex, config: DataConfig) -> None:
    loader = make_loader(index, config, seed=3, global_batch=G, steps=3)
    assert_same(list(loader), list(loader))
