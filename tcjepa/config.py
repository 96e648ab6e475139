"""The config of a training run, composed of the rooms' own sections, and what it must satisfy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from pipeline.settings import Settings
from tcjepa.data.config import DataConfig
from tcjepa.evaluate.config import LEARNING_TASKS, EvaluateConfig
from tcjepa.masks import MaskConfig
from tcjepa.model.config import ModelConfig
from tcjepa.text import TextConfig
from tcjepa.train.config import TrainSection

#: Keys that change where, how fast or how well watched a run is, but not what it computes, so a run
#: may resume with other values. `data.shards` is free because the data's fingerprint is compared.
FREE_KEYS = (
    "run",
    "evaluate",
    "data.shards",
    "data.workers",
    "data.prefetch",
    "data.cache_dir",
    "data.cache_bytes",
    "data.fetch_ranges",
    "data.timeout_s",
    "data.verify",
    "data.max_bad_share",
    "text.cache",
    "train.micro_batch",
    "train.device",
    "train.compile",
    "train.parallel",
    "train.activation_checkpointing",
    "train.log_every",
    "train.monitor_every",
    "train.monitor_images",
    "train.probe_every",
    "train.probe_images",
    "train.probe_tasks",
    "train.attention_every",
    "train.attention_images",
    "train.checkpoint_every_steps",
    "train.checkpoint_every_minutes",
    "train.keep_checkpoints",
    "train.keep_every_steps",
    "train.async_save",
    "train.trace",
    "train.max_minutes",
    "train.threads",
    "train.wandb_project",
    "train.evaluate_after",
)


#: Keys that change nothing without text conditioning.
TEXT_KEYS = (
    "text",
    "data.captions_per_image",
    "data.caption_sampling",
    "data.caption_sources",
    "data.min_caption_quality",
    "data.min_caption_agreement",
    "data.noise",
)
#: Keys that change nothing but where a JEPA is trained.
JEPA_KEYS = (
    "masks",
    "model.predictor",
    "model.prediction_loss",
    "model.variance_weight",
    "model.covariance_weight",
    "model.text",
    "train.ema",
    "train.final_ema",
)


#: Keys that older checkpoints do not have, and what those runs did.
BEFORE_THERE_WAS_A_CHOICE: dict[str, Any] = {
    "train.objective": "jepa",
    "data.resize": "loader",
    "data.crop_room": None,
    "model.init_std": 0.02,
    "model.variance_weight": 0.0,
    "model.covariance_weight": 0.0,
}


class EvaluationSection(EvaluateConfig):
    """What to measure, and on which images (config section `evaluate`)."""

    shards: str | None = Field(
        None, description="labelled shards; null: those of `data`, whose filter is not applied"
    )
    folder: str | None = Field(
        None,
        description="image folder to use instead: class subfolders, or images/ and masks/ (PNGs of "
        "class numbers), at its top or in train/ and test/ each",
    )
    train_tars: str | None = Field(
        None,
        description="webdataset tars to use instead, a glob: images with .cls or .json members",
    )
    test_tars: str | None = Field(None, description="the tars to test on, likewise")
    train_split: str = Field("train", description="split that the probes learn on")
    test_split: str = Field("test", description="split that they are tested on")
    captioned_images: int = Field(
        2000,
        ge=2,
        description="first images of the test split that agreement and grounding look at; they are "
        "held in memory [images]",
    )
    captions_per_image: int | None = Field(
        None,
        ge=1,
        le=256,
        description="captions shown there of an image; null: data.captions_per_image [captions]",
    )
    caption_sources: list[str] | None = Field(
        None,
        description="only captions from these sources there, whatever their quality; null: "
        "data.caption_sources",
    )

    @property
    def is_elsewhere(self) -> bool:
        """Whether the images are no shards of ours, and so come without captions."""
        return self.folder is not None or self.train_tars is not None

    @model_validator(mode="after")
    def _one_source(self) -> EvaluationSection:
        if (self.train_tars is None) != (self.test_tars is None):
            raise ValueError("train_tars, test_tars: give both or neither")
        if self.folder is not None and self.train_tars is not None:
            raise ValueError("folder, train_tars: give one of them")
        return self

    @model_validator(mode="after")
    def _tested_apart(self) -> EvaluationSection:
        if not LEARNING_TASKS & set(self.tasks):
            return self
        if self.train_tars is not None and self.train_tars == self.test_tars:
            raise ValueError(f"test_tars: {self.test_tars} are the tars that probes learn on")
        if not self.is_elsewhere and self.train_split == self.test_split:
            raise ValueError(
                f"test_split: {self.test_split} is the split that probes learn on; give another, "
                "or a labelled set of its own (folder, or train_tars and test_tars)"
            )
        return self


class TrainConfig(Settings):
    """A training run: what is read, what is trained and how, where it is written."""

    run: str = Field(description="local directory that everything is written to")
    data: DataConfig = Field(description="shards, crops, captions and their noise")
    text: TextConfig = Field(TextConfig(), description="frozen text encoder")
    model: ModelConfig = Field(ModelConfig(), description="encoder, predictor, loss")
    masks: MaskConfig = Field(MaskConfig(), description="context and target blocks")
    train: TrainSection = Field(description="optimizer, length, watching, saving")
    evaluate: EvaluationSection = Field(
        EvaluationSection(), description="probes of frozen features"
    )

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        from tcjepa.model.encoder import encoder_shape

        if "://" in self.run:
            raise ValueError(f"run: {self.run} is a URL; a run directory must be local")
        shape = encoder_shape(self.model.encoder, self.model.encoder_kwargs)
        side = shape.image[0]
        if shape.grid[0] != shape.grid[1] or shape.image[0] != shape.image[1]:
            raise ValueError(
                f"model.encoder: its images {shape.image} and patch grid {shape.grid} must be "
                "square; set one number each for model.encoder_kwargs.img_size and patch_size"
            )
        if self.data.image_size != side:
            raise ValueError(
                f"data.image_size={self.data.image_size}, but model.encoder takes {side}-pixel "
                f"images ({shape.grid[0]} patches of {shape.patch[0]}); set data.image_size={side} "
                f"or model.encoder_kwargs.img_size={self.data.image_size}, a multiple of the patch "
                "size"
            )
        if self.evaluate.image_size != side:
            raise ValueError(
                f"evaluate.image_size={self.evaluate.image_size}, but the encoder takes "
                f"{side}-pixel images; set evaluate.image_size={side}"
            )
        if self.train.evaluate_after and not (self.evaluate.labels or self.evaluate.is_elsewhere):
            raise ValueError(
                "train.evaluate_after=true needs evaluate.labels=[…], the columns to classify, "
                "evaluate.folder or evaluate.train_tars; or set train.evaluate_after=false"
            )
        if self.train.probe_every and not (self.evaluate.labels or self.evaluate.is_elsewhere):
            raise ValueError(
                f"train.probe_every={self.train.probe_every} needs evaluate.labels=[…], the "
                "columns to probe, evaluate.folder or evaluate.train_tars; or set "
                "train.probe_every=0"
            )
        is_jepa = self.train.objective == "jepa"
        if is_jepa and self.model.spreads and self.train.micro_batch is not None:
            raise ValueError(
                f"train.micro_batch={self.train.micro_batch}: model.variance_weight and "
                "model.covariance_weight are of the whole batch, and gradients of its parts do not "
                "add up; set train.micro_batch=null, and to save memory "
                "train.activation_checkpointing=true or more ranks; or set both weights to 0"
            )
        text = self.model.text if is_jepa else None
        if self.train.attention_every and (text is None or text.conditioning != "word_attention"):
            raise ValueError(
                f"train.attention_every={self.train.attention_every} needs a predictor that "
                "attends to words: train.objective=jepa and model.text.conditioning="
                "word_attention; or set train.attention_every=0"
            )
        if self.reads_captions and self.data.captions_per_image < 1:
            reader, other = "model.text", ", or set model.text=null for I-JEPA"
            if text is None:
                reader, other = "train.objective=contrastive", ""
            raise ValueError(
                f"data.captions_per_image=0 leaves {reader} without captions; set it to 1 or "
                f"more{other}"
            )
        return self

    @property
    def reads_captions(self) -> bool:
        """Whether the run needs a text encoder."""
        if self.train.objective == "jepa":
            return self.model.text is not None
        return self.train.objective == "contrastive"


def cached_in_run(config: TrainConfig) -> TrainConfig:
    """Return the config with caches of shards and index maps in its run, unless told where."""
    if config.data.cache_dir is not None:
        return config
    data = config.data.model_copy(update={"cache_dir": f"{config.run}/cache"})
    return config.model_copy(update={"data": data})


def stored(config: dict[str, Any], run: str | Path) -> dict[str, Any]:
    """Return a checkpoint's config, as plain data, for an evaluation in the directory `run`.

    The cache of the run that it came from need not exist here, and settings of evaluations that
    this version does not have say nothing of how it was trained.
    """
    known = {k: v for k, v in config["evaluate"].items() if k in EvaluationSection.model_fields}
    data = {**config["data"], "cache_dir": None}
    return {**config, "run": str(run), "data": data, "evaluate": known}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return "key: old → new" for each key of two resolved configs that changes what is computed.

    Both are `model_dump(mode="json")` of a `TrainConfig`. `FREE_KEYS` never count, and neither do
    keys that neither run reads.
    """
    before = {**BEFORE_THERE_WAS_A_CHOICE, **flat(old)}
    after = flat(new)
    ignored = {*FREE_KEYS, *(set(unread_keys(old)) & set(unread_keys(new)))}
    return [
        f"{key}: {before.get(key, 'absent')} → {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, "absent") != after.get(key, "absent")
        and not any(key == free or key.startswith(f"{free}.") for free in ignored)
    ]


def unread_keys(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the keys and sections of a resolved config, as plain data, that its run never reads.

    They depend on `train.objective` and on whether there is text.
    """
    objective = config["train"].get("objective", "jepa")
    unread: tuple[str, ...] = () if objective == "jepa" else JEPA_KEYS
    if objective != "supervised":
        unread = (*unread, "train.labels")
    if objective != "contrastive":
        unread = (*unread, "model.contrastive")
    if objective == "supervised" or (objective == "jepa" and not config["model"]["text"]):
        unread = (*unread, *TEXT_KEYS)
    return unread


def method(config: dict[str, Any]) -> str:
    """Return what a run of a resolved config, as plain data, trains the encoder with."""
    objective: str = config["train"].get("objective", "jepa")
    if objective == "jepa":
        return "TC-JEPA" if config["model"]["text"] else "I-JEPA"
    return objective


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config as one level of dotted keys; empty sections stay as they are."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
