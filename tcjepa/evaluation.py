"""Evaluate a run's target encoder beside an untrained one of the same architecture.

Probes learn on one split of the shards (or of an image folder) and are tested on another. The text
gain is measured on the test split of the shards: the prediction loss with captions swapped between
images minus the loss with the right ones.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.settings import ConfigError
from tcjepa import keyed
from tcjepa.config import EvaluationSection, TrainConfig
from tcjepa.data.config import DataConfig, worker_count
from tcjepa.data.folder import ImageFolder
from tcjepa.data.index import ShardIndex
from tcjepa.data.labelled import Source, labelled
from tcjepa.data.loader import make_loader
from tcjepa.data.segmented import SegmentationFolder
from tcjepa.data.tars import LabelledTars
from tcjepa.evaluate.features import LabelError
from tcjepa.evaluate.report import EvaluationResult, format_table
from tcjepa.evaluate.runner import evaluate
from tcjepa.evaluate.tally import Tally
from tcjepa.model.jepa import TCJEPA, normalise
from tcjepa.noise import NoiseConfig
from tcjepa.text import open_text_encoder
from tcjepa.train import monitors
from tcjepa.train.checkpoint import Checkpoint
from tcjepa.train.distributed import World
from tcjepa.train.inputs import InputMaker, Inputs

#: An image folder without train/ and test/ of its own gives every fifth image to the test set.
_FOLDER_TEST_SHARE = 0.2
TRAINED, UNTRAINED = "trained", "random weights"


@dataclass(frozen=True)
class LabelledSet:
    """Images of one side of an evaluation, as `tcjepa.evaluate.runner.evaluate` reads them."""

    source: Source
    image_size: int
    batch: int
    config: DataConfig
    part: bool | None = None
    """Of an undivided image folder: True its test images, False the others; None takes all."""

    def __iter__(self) -> Iterator[tuple[Tensor, list[dict[str, Any]]]]:
        """Yield (images (B, 3, H, H) uint8, B records); may be iterated any number of times."""
        workers = worker_count(self.config)
        batches = labelled(self.source, self.image_size, self.batch, self.config, workers)
        for images, _, samples in batches:
            chosen = [i for i, s in enumerate(samples) if self._has(s["uid"])]
            if chosen:
                yield images[chosen], [record(samples[i]) for i in chosen]

    def _has(self, uid: str) -> bool:
        if self.part is None:
            return True
        share = float(keyed.uniform(keyed.key("folder split", uid), 1)[0])
        return (share < _FOLDER_TEST_SHARE) == self.part


def record(sample: dict[str, Any]) -> dict[str, Any]:
    """Return what an evaluation knows of a sample: meta with and without `meta.`, uid, size, mask.

    Meta cannot hide the others.
    """
    meta = sample.get("meta") or {}
    own = {key: sample[key] for key in ("uid", "width", "height", "mask") if key in sample}
    return {**meta, **{f"meta.{key}": value for key, value in meta.items()}, **own}


def evaluation_sets(config: EvaluationSection, data: DataConfig) -> tuple[LabelledSet, LabelledSet]:
    """Return the images to learn on and those to test on.

    Raises `ConfigError` if the shards, a split, a tar or the folder is missing.
    """

    def images(source: Source, part: bool | None = None) -> LabelledSet:
        return LabelledSet(source, config.image_size, config.batch, data, part)

    if config.folder is not None:
        root = Path(config.folder)
        if (root / "train").is_dir() and (root / "test").is_dir():
            train, test = (_open_folder(root / name) for name in ("train", "test"))
            return images(train), images(test)
        if any((root / name).is_dir() for name in ("train", "test", "val")):
            raise ConfigError(
                f"evaluate.folder={root} has some of train/, test/ and val/, but not both train/ "
                "and test/; rename or link the folder of held-out images to test/, or name a "
                "folder of classes"
            )
        whole = _open_folder(root)
        return images(whole, False), images(whole, True)
    if config.train_tars is not None and config.test_tars is not None:
        return (
            images(LabelledTars.open(config.train_tars)),
            images(LabelledTars.open(config.test_tars)),
        )
    opened = [
        ShardIndex.open(_without_selection(config, data, split))
        for split in (config.train_split, config.test_split)
    ]
    return images(opened[0]), images(opened[1])


def evaluate_encoder(
    encoder: nn.Module,
    sets: tuple[LabelledSet, LabelledSet],
    config: EvaluationSection,
    device: torch.device,
) -> tuple[EvaluationResult, dict[str, Tally]]:
    """Probe a frozen encoder of normalised images (B, 3, H, H) -> (B, P, D) patch features.

    Raises `ConfigError` for labels that the images do not have, and for what cannot be evaluated.
    """
    train, test = sets
    try:
        return evaluate(
            encoder,
            train,
            test,
            config,
            device,
            prepare=normalise,
            train_total=len(train.source) if train.part is None else None,
            test_total=len(test.source) if test.part is None else None,
        )
    except LabelError as error:
        known = sorted(next(iter(train))[1][0])
        raise ConfigError(
            f"evaluate: {error}. Labels found in the data: {', '.join(known)}; choose with "
            "evaluate.labels=[…]"
        ) from error
    except ValueError as error:
        raise ConfigError(f"evaluate: {error}") from error


def evaluate_checkpoint(
    checkpoint: Checkpoint, config: TrainConfig, device: torch.device
) -> tuple[dict[str, EvaluationResult], dict[str, Tally]]:
    """Return the results of a checkpoint's target encoder and of an untrained one.

    The tallies of both are named `<encoder>/<measure>`, such as "trained/linear shape".

    `config.model` and `config.text` must be the checkpoint's. Raises `ConfigError` as
    `evaluation_sets` and `evaluate_encoder` do.
    """
    sets = evaluation_sets(config.evaluate, config.data)
    text = open_text_encoder(config.text) if config.model.text else None
    torch.manual_seed(config.train.seed)
    model = TCJEPA(config.model, text.width if text else None).to(device)
    untrained, chance = evaluate_encoder(model.target_encoder, sets, config.evaluate, device)
    model.load_state_dict(checkpoint.model)
    trained, tallies = evaluate_encoder(model.target_encoder, sets, config.evaluate, device)
    if text is not None and config.evaluate.text_gain_images and not config.evaluate.is_elsewhere:
        world = World(rank=0, size=1, local_rank=0, local_size=1, device=device)
        gain = text_gain(model, config, world)
        trained = dataclasses.replace(trained, text_gain=gain)
    named = {f"{TRAINED}/{name}": tally for name, tally in tallies.items()}
    named |= {f"{UNTRAINED}/{name}": tally for name, tally in chance.items()}
    return {TRAINED: trained, UNTRAINED: untrained}, named


def text_gain(model: TCJEPA, config: TrainConfig, world: World) -> float:
    """Return a model's text gain on the test split, captions as they are (no noise added).

    Masks are a function of the seed. Raises `ConfigError` if the split has fewer than two images.
    """
    data = _without_selection(config.evaluate, config.data, config.evaluate.test_split)
    index = ShardIndex.open(data)
    images = min(config.evaluate.text_gain_images, len(index))
    if images < 2:
        raise ConfigError(
            f"evaluate.test_split={data.split} has {len(index)} images: no captions to swap; set "
            "evaluate.text_gain_images=0"
        )
    if config.evaluate.batch < 2:
        raise ConfigError(
            "evaluate.batch=1: captions are swapped within a batch; set it to 2 or more, or "
            "evaluate.text_gain_images=0"
        )
    steps = -(-images // config.evaluate.batch)
    batch = images // steps
    section = config.train.model_copy(update={"batch": batch, "micro_batch": None})
    maker = InputMaker(
        config.model_copy(update={"train": section}),
        model.encoder.shape.grid,
        world,
        open_text_encoder(config.text),
    )
    loader = make_loader(index, data, seed=config.train.seed, global_batch=batch, steps=steps)

    def held() -> Iterator[Inputs]:
        for step, loaded in enumerate(loader):
            for inputs, _ in maker.micro_batches(loaded, step):
                yield inputs

    model.eval()
    return monitors.measure(model, held())["monitor/text_gain"]


def table(results: dict[str, EvaluationResult], config: TrainConfig) -> str:
    """Return the results as a table for people, the trained encoder named after its method."""
    method = "TC-JEPA" if config.model.text else "I-JEPA"
    return format_table({method: results[TRAINED], UNTRAINED: results[UNTRAINED]})


def to_json(results: dict[str, EvaluationResult], step: int) -> dict[str, Any]:
    """Return the results as plain data, with the step of the checkpoint they belong to."""
    return {"step": step} | {name: json.loads(result.to_json()) for name, result in results.items()}


def _open_folder(path: Path) -> ImageFolder | SegmentationFolder:
    if SegmentationFolder.is_at(path):
        return SegmentationFolder.open(path)
    return ImageFolder.open(path)


def _without_selection(config: EvaluationSection, data: DataConfig, split: str) -> DataConfig:
    """Return the training data's config for an evaluation split: all its rows, no noise added."""
    return data.model_copy(
        update={
            "shards": config.shards or data.shards,
            "split": split,
            "filter": None,
            "noise": NoiseConfig(),
        }
    )


__all__ = [
    "LabelledSet",
    "evaluate_checkpoint",
    "evaluate_encoder",
    "evaluation_sets",
    "record",
    "table",
    "text_gain",
    "to_json",
]
