"""Model steps measured in turns: a bare encoder, I-JEPA and TC-JEPA from the same code.

A step is what training does: inputs to the device, masks, forward, backward, AdamW, EMA
(`tcjepa.train.loop.optimizer_step`). TC-JEPA runs twice, with its words given and with the text
encoder at work. The bare encoder is the same ViT on all patches, forward and backward only.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from pipeline.settings import ConfigError, load
from pipeline.timing import Bench, Case, measure
from tcjepa.bench.captions import GivenWords, captions_of, open_or_imitate
from tcjepa.bench.flops import (
    Captions,
    Flops,
    bare_encoder_flops,
    flops_per_image,
    peak_flops,
)
from tcjepa.bench.images import photographs
from tcjepa.bench.shards import write_shards
from tcjepa.cli import config_path
from tcjepa.config import TrainConfig
from tcjepa.data.loader import Batch
from tcjepa.model.encoder import Encoder
from tcjepa.model.jepa import TCJEPA
from tcjepa.text import TextEncoder
from tcjepa.train.distributed import World, pick_device
from tcjepa.train.inputs import InputMaker
from tcjepa.train.loop import optimizer_step
from tcjepa.train.run import Run

BARE, IJEPA, TCJEPA_GIVEN, TCJEPA_LIVE = "encoder", "I-JEPA", "TC-JEPA", "TC-JEPA + text encoder"
TEXT_ALONE, OPTIMIZER = "text encoder alone", "AdamW and EMA alone"
#: Steps of a case per round: enough on a GPU that its queue is never empty.
CPU_STEPS, GPU_STEPS = 1, 10
#: Batches that a case goes through in turns, so that no cache holds one.
BATCHES = 2
#: Images of a step on a CPU, unless told.
CPU_BATCH: Final = 4
#: Mean length of a caption: Flickr8k's human ones in T5's or BERT's tokens [words]
WORDS: Final = 14.0
_LENGTH: Final = (
    "train.epochs=null", "train.warmup_epochs=null", "train.steps=1000000",
    "train.warmup_steps=1000", "train.evaluate_after=false",
)  # fmt: skip


@dataclass(frozen=True)
class StepCase:
    """One of the things compared; `steps(n)` takes n steps without waiting for the device."""

    name: str
    steps: Callable[[int], None]
    flops: float | None  # per image
    modules: tuple[Any, ...] = ()  # whose tensors it needs: for the memory it would take alone


class StepBench:
    """The steps of one training config, on the device that it names."""

    def __init__(self, config: TrainConfig, folder: Path, words: float) -> None:
        """Build both models; `folder` holds what runs write, `words` is a caption's mean length.

        The config's text may be null: then there is no TC-JEPA. A baseline raises `ConfigError`.
        """
        if config.train.objective != "jepa":
            raise ConfigError(
                f"train.objective={config.train.objective}: the bench compares JEPAs; "
                "leave it at jepa"
            )
        self.device = pick_device(config.train.device)
        self.world = World(rank=0, size=1, local_rank=0, local_size=1, device=self.device)
        self.images = config.train.batch
        shards = folder / "shards"
        if not shards.exists():
            write_shards(shards, photographs(1, 32), 32, 2, 2)
        self.batches = _batches(config, words, self.device)
        self._config, self._folder = config, folder
        conditioned = config.model.text is not None
        self._live = open_or_imitate(config.text) if conditioned else None
        self._ijepa = self._run({"text": None})
        self._tcjepa = self._run({}) if conditioned else None

    def cases(self) -> list[StepCase]:
        """Return the cases, in the order in which they take turns."""
        ijepa = self._ijepa
        found = [
            StepCase(BARE, self._bare(), bare_encoder_flops(ijepa.model), (ijepa.model.encoder,)),
            self._case(IJEPA, ijepa, ijepa.inputs, self.flops(IJEPA).total),
            StepCase(OPTIMIZER, self._optimizer_alone, None),
        ]
        if self._tcjepa is None:
            return found
        assert self._live is not None
        config, grid = self._tcjepa.config, ijepa.model.encoder.shape.grid
        given = InputMaker(config, grid, self.world, GivenWords(self._live))
        live = InputMaker(config, grid, self.world, self._live)
        flops = self.flops(TCJEPA_LIVE)
        return [
            *found,
            self._case(TCJEPA_GIVEN, self._tcjepa, given, flops.model),
            self._case(TCJEPA_LIVE, self._tcjepa, live, flops.total),
            StepCase(TEXT_ALONE, self._text_alone, flops.text or None),
        ]

    def flops(self, name: str) -> Flops:
        """Return the count of I-JEPA's or TC-JEPA's step, for the captions at hand."""
        masks = self._config.masks
        if name == IJEPA or self._tcjepa is None:
            return flops_per_image(_jepa(self._ijepa), masks)
        assert self._live is not None
        transformer = getattr(self._live, "model", None)
        captions = _lengths(self._live, self.batches)
        return flops_per_image(_jepa(self._tcjepa), masks, captions, transformer)

    def _run(self, model: dict[str, Any]) -> Run:
        """Return a run of the config without its data, its text encoder, and with other text."""
        config, tag = self._config, "ijepa" if model else "tcjepa"
        width = self._live.width if self._live is not None else config.text.width
        changed = config.model_copy(
            update={
                "run": str(self._folder / tag),
                "data": config.data.model_copy(
                    update={"shards": str(self._folder / "shards"), "workers": 0, "filter": None,
                            "cache_dir": str(self._folder / "cache")}
                ),
                "text": config.text.model_copy(update={"encoder": "hashed", "width": width}),
                "model": config.model.model_copy(update={**model, "init": None}),
            }
        )  # fmt: skip
        run = Run(changed, self.world, print)
        run.model.train()
        return run

    def _case(self, name: str, run: Run, inputs: InputMaker, flops: float) -> StepCase:
        def steps(count: int) -> None:
            run.inputs = inputs
            for batch in inputs.ahead(itertools.islice(self._endless(), count), run.step):
                optimizer_step(run, batch)
                run.step += 1

        return StepCase(name, steps, flops, (run.model, run.optimizer))

    def _bare(self) -> Callable[[int], None]:
        run = self._ijepa
        objective: nn.Module = _Bare(run.model.encoder)
        if run.config.train.compile:
            objective.compile()

        def steps(count: int) -> None:
            for batch in itertools.islice(self._endless(), count):
                for inputs, _ in run.inputs.micro_batches(batch, 0):
                    run.optimizer.zero_grad(set_to_none=True)
                    with run.autocast():
                        loss = objective(inputs.images)
                    loss.backward()

        return steps

    def _optimizer_alone(self, count: int) -> None:
        run = self._ijepa
        for parameter in run.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for _ in range(count):
            run.optimizer.step()
            run.model.finish_step(0.999)

    def _text_alone(self, count: int) -> None:
        assert self._live is not None
        for batch in itertools.islice(self._endless(), count):
            self._live.encode(batch.captions, self.device)

    def _endless(self) -> Iterator[Batch]:
        return itertools.cycle(self.batches)


def _jepa(run: Run) -> TCJEPA:
    assert isinstance(run.model, TCJEPA)  # the bench takes no other objective
    return run.model


class _Bare(nn.Module):
    """An encoder with a loss behind it, so that all of its parameters get gradients."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean square of the features of all patches."""
        features: Tensor = self.encoder(images)
        return features.float().square().mean()


def bench_demo(shards: Path, batch: int | None, rounds: int) -> Bench:
    """Compare the steps at the demo's config; `batch` [images] replaces the config's."""
    # Threads as the environment says, so that a bench can be kept to one core.
    threads = f"train.threads={torch.get_num_threads()}"
    batches = [] if batch is None else [f"train.batch={batch}"]
    config = bench_config(config_path("scenes_tiny"), [threads, *batches])
    return _bench_both(config, shards, rounds, "model step, demo config")


def bench_published(shards: Path, rounds: int) -> Bench:
    """Compare the steps of ViT-B/16 at 224 px in bf16, compiled; needs CUDA.

    The text encoder is `hashed` at the width of t5-base, and its time does not count.
    """
    overrides = ["text.encoder=hashed", "text.width=768", "train.batch=128", "train.precision=bf16"]
    config = bench_config(config_path("vit_b16"), overrides)
    return _bench_both(config, shards, rounds, "model step, ViT-B/16 at 224 px in bf16")


def bench_config(path: Path, overrides: Sequence[str]) -> TrainConfig:
    """Return a training config for steps of one forward pass each, of no particular length.

    Unless `train.batch` is given, it is what the config lets one GPU do at a time
    (`train.micro_batch`), and on a CPU a few. Raises `ConfigError` as `load` does.
    """
    whole = [*_LENGTH, *overrides, "train.micro_batch=null"]
    if any(item.startswith("train.batch=") for item in overrides):
        return load(TrainConfig, path, whole)
    train = load(TrainConfig, path, [*_LENGTH, *overrides]).train
    batch = train.micro_batch or train.batch
    if pick_device(train.device).type == "cpu":
        batch = min(batch, CPU_BATCH)
    return load(TrainConfig, path, [*whole, f"train.batch={batch}"])


def _bench_both(config: TrainConfig, shards: Path, rounds: int, name: str) -> Bench:
    bench = StepBench(config, shards.parent, WORDS)
    both = [case for case in bench.cases() if case.name in (IJEPA, TCJEPA_GIVEN)]
    return measure_steps(bench, both[::-1], rounds, name)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_steps(bench: StepBench, cases: Sequence[StepCase], rounds: int, name: str) -> Bench:
    """Run the cases in turns; the device is waited for at the end of a case's round only.

    On a CPU the clock is the process's CPU time, which other processes disturb less.
    """
    on_gpu = bench.device.type == "cuda"
    count = GPU_STEPS if on_gpu else CPU_STEPS

    def timed(case: StepCase) -> Case:
        def once() -> int:
            case.steps(count)
            synchronize(bench.device)
            return count * bench.images

        return Case(case.name, once, case.flops)

    clock = time.perf_counter if on_gpu else time.process_time
    peak = peak_flops(torch.cuda.get_device_name()) if on_gpu else None
    return measure(
        name,
        "images/s" if on_gpu else "images per second of CPU time",
        [timed(case) for case in cases],
        rounds,
        baseline=IJEPA,
        clock=clock,
        peak_flops=peak,
    )


def _batches(config: TrainConfig, words: float, device: torch.device) -> list[Batch]:
    size, images = config.data.image_size, config.train.batch
    draw = torch.Generator().manual_seed(0)
    batches = []
    for number in range(BATCHES):
        pixels = torch.randint(256, (images, 3, size, size), generator=draw, dtype=torch.uint8)
        captions = captions_of(number, images, config.data.captions_per_image, words)
        batch = Batch(pixels, captions, torch.arange(images), number * images, [])
        batches.append(batch.pin_memory() if device.type == "cuda" else batch)
    return batches


def _lengths(encoder: TextEncoder, batches: Sequence[Batch]) -> Captions:
    """Return how many captions and words an image has, as the model will see them."""
    captions = batches[0].captions
    texts = [caption for own in captions for caption in own]
    different = list(set(texts))
    words = dict(zip(different, encoder.count_words(different), strict=True))
    count = max(1, len(texts))
    return Captions(
        len(texts) / len(captions), sum(words[text] for text in texts) / count, len(words) / count
    )


__all__ = [
    "WORDS",
    "StepBench",
    "StepCase",
    "bench_config",
    "bench_demo",
    "bench_published",
    "measure_steps",
    "peak_flops",
    "synchronize",
]
