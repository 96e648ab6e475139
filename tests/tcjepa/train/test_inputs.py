"""Inputs made ahead are the inputs made on demand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from tcjepa.config import TrainConfig
from tcjepa.data.batch import Batch
from tcjepa.text import TextConfig, open_text_encoder
from tcjepa.train.distributed import World
from tcjepa.train.inputs import InputMaker, Inputs
from tests.tcjepa.train.runs import tiny_config

GRID = (4, 4)


def _batches(steps: int, images: int) -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    return [
        Batch(
            images=torch.randint(256, (images, 3, 32, 32), generator=draw, dtype=torch.uint8),
            captions=[[f"caption {step} of {row}"] * (row % 3) for row in range(images)],
            rows=torch.arange(images),
            position=step * images,
            replaced=[],
        )
        for step in range(steps)
    ]


def _maker(config: TrainConfig, looks_ahead: bool) -> InputMaker:
    world = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu"))
    text = open_text_encoder(TextConfig(width=16, max_words=8))
    maker = InputMaker(config, GRID, world, text)
    maker.looks_ahead = looks_ahead
    return maker


def _train(maker: InputMaker, batches: list[Batch], start: int, measured: int) -> list[Inputs]:
    """Go through the batches as the loop does, with other inputs made after step `measured`."""
    seen = []
    for step, batch in enumerate(maker.ahead(batches, start), start):
        parts = list(maker.micro_batches(batch, step))
        assert sum(share for _, share in parts) == 1
        seen += [inputs for inputs, _ in parts]
        if step == measured:
            list(maker.micro_batches(batches[0], 0))
    return seen


def _equal(one: Inputs, other: Inputs) -> bool:
    pairs = zip(one.tensors(), other.tensors(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


@given(
    steps=st.integers(0, 4),
    micro=st.sampled_from([2, 4, 8]),
    start=st.integers(0, 3),
    measured=st.integers(0, 6),
)
def test_looking_ahead_changes_nothing(
    tmp_path_factory, steps: int, micro: int, start: int, measured: int
) -> None:
    folder = Path(tmp_path_factory.getbasetemp()) / "inputs"
    folder.mkdir(exist_ok=True)
    config = tiny_config(folder, f"train.micro_batch={micro}")
    batches = _batches(steps, images=8)
    plain = _train(_maker(config, looks_ahead=False), batches, start, measured)
    ahead = _train(_maker(config, looks_ahead=True), batches, start, measured)
    assert len(plain) == len(ahead) == steps * 8 // micro
    assert all(map(_equal, plain, ahead))


def test_the_next_batch_is_read_before_and_made_during_a_step(tmp_path: Path) -> None:
    events: list[str] = []

    class Recording(InputMaker):
        def _encode(self, captions):
            events.append(f"made {captions[1][0]}")
            return super()._encode(captions)

    def read() -> Iterator[Batch]:
        for step, batch in enumerate(_batches(3, images=8)):
            events.append(f"read {step}")
            yield batch

    world = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu"))
    text = open_text_encoder(TextConfig(width=16, max_words=8))
    maker = Recording(tiny_config(tmp_path), GRID, world, text)
    maker.looks_ahead = True
    for step, batch in enumerate(maker.ahead(read(), 0)):
        for _ in maker.micro_batches(batch, step):
            events.append(f"launched {step}")
        events.append(f"fetched {step}")
    assert events == [
        "read 0", "read 1",
        "made caption 0 of 1", "launched 0", "made caption 1 of 1", "fetched 0", "read 2",
        "launched 1", "made caption 2 of 1", "fetched 1",
        "launched 2", "fetched 2",
    ]  # fmt: skip


def test_a_compiled_model_meets_few_shapes_of_text(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "train.compile=true")
    maker = _maker(config, looks_ahead=False)
    for batch in _batches(3, images=8):
        ((inputs, _),) = maker.micro_batches(batch, 0)
        assert inputs.text is not None
        assert inputs.text.words.shape == (64, 8, 16)
        assert inputs.text.caption.shape == (8, 2)
