"""Ranks, sharding, accumulation, recomputation, loader workers: the same samples and losses."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.storage import Directory
from tcjepa.train import checkpoint, trace
from tcjepa.train.distributed import World
from tcjepa.train.log import read
from tcjepa.train.run import Run
from tests.tcjepa.train.runs import finish, start, tiny_config, write_config
from tests.tcjepa.train.scenarios import run_scenarios

CPU = World(0, 1, 0, 1, torch.device("cpu"))

ONE_RANK = [
    "one:",
    "uneven:train.micro_batch=3",
    "recomputed:train.activation_checkpointing=true",
    "clipped:train.clip_grad=0.5",
    "spread:model.variance_weight=5,model.covariance_weight=0.2",
]
#: Whether to run every combination, which takes minutes.
LONG = bool(os.environ.get("LONG"))
#: What several ranks do, and the run on one rank that it must equal.
SEVERAL_RANKS = {
    "ddp": "one",
    "fsdp2:train.parallel=fsdp2": "one",
    "ddp_parts:train.micro_batch=1": "one",
    "fsdp2_parts:train.parallel=fsdp2,train.micro_batch=1,train.activation_checkpointing=true": (
        "one"
    ),
    "ddp_clipped:train.clip_grad=0.5,train.activation_checkpointing=true": "clipped",
    "ddp_spread:model.variance_weight=5,model.covariance_weight=0.2": "spread",
    "fsdp2_spread:train.parallel=fsdp2,model.variance_weight=5,model.covariance_weight=0.2": (
        "spread"
    ),
    "fsdp2_clipped:train.parallel=fsdp2,train.clip_grad=0.5,train.async_save=true": "clipped",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the config of runs of 6 steps, some already trained on one rank."""
    folder = tmp_path_factory.mktemp("ranks")
    # A target encoder that moves by more than the tolerance of `assert_same_end`.
    ema = {"ema": 0.5, "final_ema": 0.5}
    path = write_config(folder, steps=6, trace=True, monitor_every=3, seed=3, **ema)
    run_scenarios(path, ONE_RANK, CPU)
    return path


def samples(run: Path) -> list[list[str]]:
    """Return the uids of each step's global batch, in order of position."""
    steps: dict[int, list[str]] = {}
    for line in trace.read(run):
        steps.setdefault(line.step, []).extend(line.uids)
    return [steps[step] for step in sorted(steps)]


def exact_losses(run: Path) -> list[tuple[int, float]]:
    return [(line.step, line.loss) for line in trace.read(run)]


def assert_same_training(run: Path, expected: Path) -> None:
    """Same samples per step; losses, their terms and the gradient's norm within rounding."""
    assert samples(run) == samples(expected)
    for own, other in zip(read(run), read(expected), strict=True):
        for key in ("loss", "predict", "sparse", "consistency", "grad_norm"):
            assert own[key] == pytest.approx(other[key], rel=2e-5), (own["step"], key)


def assert_same_end(run: Path, expected: Path) -> None:
    """The target encoders, whole, differ by rounding only."""
    ends = [checkpoint.resolve(path, print) for path in (run, expected)]
    for key, value in ends[1].model.items():
        torch.testing.assert_close(ends[0].model[key], value, rtol=1e-3, atol=2e-4)


def test_the_target_encoder_moves_by_more_than_is_tolerated(config: Path) -> None:
    """Or `assert_same_end` would pass without any of its updates."""
    began = Run(tiny_config(config.parent, f"run={config.parent / 'unstarted'}"), CPU, print)
    start, end = began.model.state_dict(), checkpoint.resolve(config.parent / "one", print).model
    key = "target_encoder.vit.blocks.0.attn.qkv.weight"
    assert float((end[key] - start[key]).abs().mean()) > 2e-4


def test_micro_batches_of_any_size_are_the_large_batch(config: Path) -> None:
    assert_same_training(config.parent / "uneven", config.parent / "one")
    assert_same_end(config.parent / "uneven", config.parent / "one")


def test_recomputed_activations_change_no_bit(config: Path) -> None:
    assert exact_losses(config.parent / "recomputed") == exact_losses(config.parent / "one")


@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_follow_one(config: Path, ranks: int) -> None:
    """All of `SEVERAL_RANKS` on two ranks, the plain ones on four; with LONG=1, all on both."""
    scenarios = list(SEVERAL_RANKS)[: len(SEVERAL_RANKS) if ranks == 2 or LONG else 2]
    given = [f"{ranks}_{scenario}" for scenario in scenarios]
    module = "tests.tcjepa.train.scenarios"
    code, said = finish(start(config, *given, ranks=ranks, module=module))
    assert code == 0, said
    for scenario in scenarios:
        expected = SEVERAL_RANKS[scenario]
        run = config.parent / f"{ranks}_{scenario.partition(':')[0]}"
        assert [line.rank for line in trace.read(run)] == list(range(ranks)) * 6
        assert_same_training(run, config.parent / expected)
        assert_same_end(run, config.parent / expected)
        sharded = "fsdp2" in scenario
        assert checkpoint.path_of(Directory(run), "step-00000006").is_dir() == sharded


def test_loader_workers_change_no_bit(config: Path) -> None:
    workers = os.environ.get("WORKERS", "8")
    code, said = finish(
        start("pretrain", config, f"run={config.parent / 'workers'}", f"data.workers={workers}")
    )
    assert code == 0, said
    one = (config.parent / "one" / trace.TRACE_FILE).read_bytes()
    assert (config.parent / "workers" / trace.TRACE_FILE).read_bytes() == one


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"] if LONG else ["fsdp2"])
def test_a_run_moves_between_numbers_of_ranks(config: Path, parallel: str) -> None:
    """Two steps each on 2, 1 and 4 ranks, out of time in between, are six steps on one."""
    run = config.parent / f"moving_{parallel}"
    own = [f"run={run}", f"train.parallel={parallel}", "train.log_every=2", "train.monitor_every=0"]
    for ranks in (2, 1, 4):
        limit = ["train.max_minutes=1e-9"] if ranks != 4 else []
        code, said = finish(start("pretrain", config, *own, *limit, ranks=ranks))
        assert code == 0, said
    assert [line.rank for line in trace.read(run)] == [0, 1] * 2 + [0] * 2 + [0, 1, 2, 3] * 2
    assert_same_training(run, config.parent / "one")


def test_one_rank_that_reads_rubbish_ends_all_with_its_reason(tmp_path: Path) -> None:
    """No rank waits for ever for one that stopped; what was unreadable is named."""
    path = write_config(tmp_path, steps=12)
    shards = tmp_path / "shards"
    victim = pq.read_table(shards / "index.parquet").to_pylist()[7]
    with (shards / victim["shard"]).open("r+b") as tar:
        tar.seek(victim["image_offset"])
        tar.write(b"\0" * victim["image_size"])
    code, said = finish(start("pretrain", path, "data.max_bad_share=0.001", ranks=2))
    assert code != 0
    assert "max_bad_share" in said and victim["uid"] in said, said
    code, said = finish(start("pretrain", path, "data.max_bad_share=0.5", ranks=2))
    assert code == 0, said
    assert victim["uid"] in (tmp_path / "run" / "unreadable.jsonl").read_text()
