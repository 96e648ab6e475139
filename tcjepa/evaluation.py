"""Evaluate a run's encoder beside an untrained one of the same architecture.

Of a JEPA that is the target encoder, of a baseline its only one. Probes learn on one split of the
shards (or of an image folder) and are tested on another. Agreement and grounding, which need
captions, are measured on the test split of the shards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.settings import ConfigError
from tcjepa import keyed
from tcjepa.config import EvaluationSection, TrainConfig, method
from tcjepa.data.captions import choose
from tcjepa.data.config import DataConfig, worker_count
from tcjepa.data.folder import ImageFolder
from tcjepa.data.index import ShardIndex
from tcjepa.data.labelled import Source, labelled
from tcjepa.data.segmented import SegmentationFolder
from tcjepa.data.tars import LabelledTars
from tcjepa.evaluate.captioned import CaptionedImages
from tcjepa.evaluate.features import LabelError
from tcjepa.evaluate.report import EvaluationResult, format_table
from tcjepa.evaluate.runner import evaluate
from tcjepa.evaluate.tally import Tally
from tcjepa.evaluate.text_path import TEXT_TASKS, Found, with_text_path, without_text_path
from tcjepa.model.jepa import TCJEPA, normalise
from tcjepa.model.learner import Learner
from tcjepa.noise import NoiseConfig
from tcjepa.text import TextEncoder
from tcjepa.train import hardware
from tcjepa.train.checkpoint import Checkpoint
from tcjepa.train.labels import class_column
from tcjepa.train.objective import model_like, text_encoder_of

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

    Meta can neither hide the others nor pretend to be a mask.
    """
    meta = {key: value for key, value in (sample.get("meta") or {}).items() if key != "mask"}
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


def check_evaluable(config: EvaluationSection, data: DataConfig) -> None:
    """Raise `ConfigError` for images or labels that an evaluation would find missing.

    An evaluation after training is to fail before it. What folders and tars call their classes is
    only seen when they are read.
    """
    splits = (
        ("evaluate.train_split", config.train_split),
        ("evaluate.test_split", config.test_split),
    )
    for images, (key, split) in zip(evaluation_sets(config, data), splits, strict=True):
        if not isinstance(images.source, ShardIndex):
            continue
        table = images.source.table
        for name in config.labels:
            column = class_column(table, name, "evaluate.labels")
            if table.column(column).null_count == len(table):
                raise ConfigError(
                    f"evaluate.labels: no image of {key}={split} has {column}; leave the label "
                    "out, or choose another split"
                )


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
    """Return the results of a checkpoint's kept encoder and of an untrained one.

    The tallies of both are named `<encoder>/<measure>`, such as "trained/linear shape".

    `config`'s objective, labels, model and text must be the checkpoint's. Raises `ConfigError` as
    `evaluation_sets` and `evaluate_encoder` do.
    """
    hardware.keep_fp32(device)
    sets = evaluation_sets(config.evaluate, config.data)
    text = text_encoder_of(config)
    torch.manual_seed(config.train.seed)
    model = model_like(config, text, checkpoint.model).to(device)
    probed = evaluate_encoder(model.kept_encoder, sets, config.evaluate, device)
    add = _text_path(model, text, config, device)
    untrained, chance = add(probed)
    model.load_state_dict(checkpoint.model)
    trained, tallies = add(evaluate_encoder(model.kept_encoder, sets, config.evaluate, device))
    named = {f"{TRAINED}/{name}": tally for name, tally in tallies.items()}
    named |= {f"{UNTRAINED}/{name}": tally for name, tally in chance.items()}
    return {TRAINED: trained, UNTRAINED: untrained}, named


def _text_path(
    model: Learner, text: TextEncoder | None, config: TrainConfig, device: torch.device
) -> Callable[[Found], Found]:
    """Return what adds the text tasks of the model, as it then is, to a result and its tallies."""
    section = config.evaluate
    if not set(section.tasks).intersection(TEXT_TASKS):
        return lambda found: found
    if text is None:
        return lambda found: without_text_path(found, section, "the model reads no captions")
    if not isinstance(model, TCJEPA):
        return lambda found: without_text_path(found, section, "captions condition no prediction")
    if section.is_elsewhere:
        return lambda found: without_text_path(found, section, "these images have no captions")
    shown = captioned_images(config)
    return lambda found: with_text_path(
        found, model, text, shown, masks=config.masks, config=section, device=device
    )


def captioned_images(config: TrainConfig) -> CaptionedImages:
    """Return the first images of the test split with the captions that they are shown with.

    Those are a function of the uid, the same for all models that are shown as many from the same
    sources: neither noise nor a selection by quality, which training may have, is applied. Raises
    `ConfigError` if the shards or the split is missing.
    """
    section = config.evaluate
    data = _without_selection(section, config.data, section.test_split).model_copy(
        update={
            "captions_per_image": section.captions_per_image or config.data.captions_per_image,
            "caption_sources": section.caption_sources or config.data.caption_sources,
            "caption_sampling": "uniform",
            "min_caption_quality": None,
            "min_caption_agreement": None,
        }
    )
    index = ShardIndex.open(data)
    most = min(section.captioned_images, section.max_test or len(index), len(index))
    images, samples = [], []
    for pixels, _, read in labelled(
        index, section.image_size, section.batch, data, worker_count(data)
    ):
        images.append(pixels)
        samples += read
        if len(samples) >= most:
            break
    samples = samples[:most]
    chosen = [choose(sample["captions"], data, 0, 0, sample["uid"]) for sample in samples]
    return CaptionedImages(
        uids=tuple(sample["uid"] for sample in samples),
        images=torch.cat(images)[:most],
        captions=[
            [sample["captions"][number] for number in numbers]
            for sample, numbers in zip(samples, chosen, strict=True)
        ],
        records=[record(sample) for sample in samples],
    )


def table(results: dict[str, EvaluationResult], config: TrainConfig) -> str:
    """Return the results as a table for people, the trained encoder named after its method."""
    trained = method(config.model_dump(mode="json"))
    return format_table({trained: results[TRAINED], UNTRAINED: results[UNTRAINED]})


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
    "captioned_images",
    "check_evaluable",
    "evaluate_checkpoint",
    "evaluate_encoder",
    "evaluation_sets",
    "record",
    "table",
    "to_json",
]
