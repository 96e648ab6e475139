"""`train.compile`: few graphs and no breaks; and the hot loop waits for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from tcjepa.train import parallel
from tcjepa.train.distributed import World
from tcjepa.train.loop import Window, optimizer_step
from tcjepa.train.run import Run
from tests.tcjepa.shards import Caption, caption, write_shards
from tests.tcjepa.train.runs import finish, start, tiny_config, write_config
from tests.tcjepa.train.test_ranks import LONG, assert_same_training, config  # noqa: F401

CPU = World(0, 1, 0, 1, torch.device("cpu"))
STEPS = 14


def captions_of_any_length(number: int) -> list[Caption]:
    """Return 0 to 4 captions of 1 to 25 words."""
    count = number * 7 % 5
    return [
        caption("star " * (1 + (number * 11 + i * 5) % 25) + f"w{number}") for i in range(count)
    ]


@pytest.fixture
def aot_eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Count graphs without paying for code generation."""
    monkeypatch.setattr(parallel, "COMPILER", "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.usefixtures("aot_eager")
@pytest.mark.parametrize(
    "given",
    [
        "",
        "train.activation_checkpointing=true",
        "model.variance_weight=1 model.covariance_weight=1",
    ],
)
def test_no_graph_breaks_and_a_bounded_number_of_graphs(tmp_path: Path, given: str) -> None:
    plain_config = write_config(tmp_path, steps=STEPS, log_every=100)
    write_shards(tmp_path / "shards", 64, captions_of_any_length, size=(40, 40), shard_size=16)
    assert plain_config.exists()
    losses, graphs = [], []
    for compiled in ("false", "true"):
        overrides = [f"train.compile={compiled}", "text.max_words=32", *given.split()]
        run = Run(tiny_config(tmp_path, *overrides), CPU, lambda _: None)
        run.model.train()
        losses.append([])
        for batch in run.batches():
            losses[-1].append(float(optimizer_step(run, batch)["loss"]))
            run.step += 1
            graphs.append(counters["stats"]["unique_graphs"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert dict(counters["graph_break"]) == {}
    assert dict(counters["recompile_limit"]) == {}
    compiled_graphs = graphs[STEPS:]
    assert compiled_graphs[0] == 1
    # Words, rows of words and captions per image become dynamic once each; one caption is its own.
    assert compiled_graphs[-1] <= 6
    assert compiled_graphs[-1] == compiled_graphs[STEPS // 2], compiled_graphs


@pytest.mark.skipif(not LONG, reason="minutes; set LONG=1")
def test_compiled_ranks_train_like_one(config: Path) -> None:  # noqa: F811
    """DDP cuts the graph at its buckets, FSDP2 compiles block by block."""
    given = [
        "compiled_ddp:train.compile=true,train.monitor_every=0",
        "compiled_fsdp2:train.compile=true,train.monitor_every=0,train.parallel=fsdp2,"
        "train.activation_checkpointing=true",
    ]
    module = "tests.tcjepa.train.scenarios"
    code, said = finish(start(config, *given, ranks=2, module=module))
    assert code == 0, said
    for name in ("compiled_ddp", "compiled_fsdp2"):
        assert_same_training(config.parent / name, config.parent / "one")


def captions_by_shard(number: int) -> list[Caption]:
    """Return 8, 3 or 1 captions, as many for all 8 images of a shard."""
    count = (8, 3, 1)[number // 8 % 3]
    return [caption("star " * (1 + number % 13) + f"w{number} {i}") for i in range(count)]


def test_compiled_ddp_takes_any_number_of_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And any other size that varies, where it crosses from one bucket's graph into the next."""
    path = write_config(tmp_path, steps=6, log_every=1, batch=16, micro_batch=4, trace=True)
    write_shards(tmp_path / "shards", 64, captions_by_shard, size=(40, 40), shard_size=8)
    monkeypatch.setenv("SMALL_BUCKETS", "1")
    given = [f"{name}:text.max_words=32,train.compile={name}" for name in ("false", "true")]
    code, said = finish(start(path, *given, ranks=2, module="tests.tcjepa.train.scenarios"))
    assert code == 0, said
    assert_same_training(tmp_path / "true", tmp_path / "false")


#: What makes the host wait for a device: values fetched, sizes that depend on values.
FETCHES = (
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "_unique2",
    "is_nonzero",
    "equal",
)


class Fetches(TorchDispatchMode):
    """Counts operations that would stall a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in FETCHES:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("model", ["model.text.sparsity=rectified", "model.text=null"])
def test_the_hot_loop_fetches_nothing_between_log_steps(tmp_path: Path, model: str) -> None:
    """All of a step but reading; `Window.flush`, once per `log_every`, is where values come out."""
    run = Run(tiny_config(tmp_path, model, "train.micro_batch=4", "train.clip_grad=1"), CPU, print)
    with run:
        window = Window()
        for batch in run.batches():
            with Fetches() as fetches:
                window.add(run, batch, optimizer_step(run, batch))
            assert fetches.found == []
            run.step += 1
            if run.step == 3:
                break
        assert run.step == 3
        with Fetches() as fetches:
            float(torch.stack([values for _, values in window.steps]).sum())
        assert fetches.found, "the counter does not count"
        window.flush(run, ())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_step_waits_for_nothing(tmp_path: Path) -> None:
    world = World(0, 1, 0, 1, torch.device("cuda", 0))
    run = Run(tiny_config(tmp_path, "train.device=cuda", "train.micro_batch=4"), world, print)
    for number, batch in enumerate(run.batches()):
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            optimizer_step(run, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        run.step += 1
        if number == 3:
            break
    assert run.step == 4
