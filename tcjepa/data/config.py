"""What is read, how it is cropped, and which captions go with it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.settings import ConfigError, Settings
from tcjepa.cores import usable_cores
from tcjepa.noise import NoiseConfig

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class DataConfig(Settings):
    """The training (or evaluation) data and what is done to it before the model sees it."""

    shards: str = Field(description="directory or fsspec URL that holds index.parquet")
    split: str = Field("train", description="rows of the index with this split")
    filter: str | None = Field(
        None,
        description='further condition on index columns, e.g. "quality_best >= 0.5 and '
        'n_captions >= 2"; meta columns as meta.x',
    )
    image_size: Positive = Field(224, description="side of the square the model sees [px]")
    crop_scale: tuple[float, float] = Field(
        (0.3, 1.0), description="area of the random crop [share of the image]"
    )
    crop_ratio: tuple[float, float] = Field(
        (3 / 4, 4 / 3), description="aspect of the random crop [width/height]"
    )
    resize: Literal["loader", "device"] = Field(
        "loader",
        description="what resizes crops to image_size: the loader's processes, or the training "
        "device, to which crops of up to crop_room px are carried as decoded",
    )
    crop_room: Positive | None = Field(
        None,
        description="with resize=device, side of the square a crop is carried in; larger crops are "
        "resized by the loader; null: 256/224 of image_size, at most twice of it [px]",
    )
    max_pixels: Positive = Field(
        64_000_000, description="larger images are refused from their header, undecoded [px]"
    )
    captions_per_image: Annotated[int, Field(ge=0, le=256)] = Field(
        8,
        description="captions drawn per image and epoch; at most 256, since pooling keeps the "
        "winner's number in a byte [captions]",
    )
    caption_sampling: Literal["uniform", "quality"] = Field(
        "uniform", description="how they are drawn: all alike, or weighted by their quality score"
    )
    min_caption_quality: Share | None = Field(
        None, description="captions with a lower quality score are left out; unscored ones stay"
    )
    min_caption_agreement: Share | None = Field(
        None, description="the same by the agreement score, which sees single false words"
    )
    caption_sources: list[str] | None = Field(
        None,
        description='only captions from these sources, e.g. [alt, "annotations:*"]; [] trains '
        "without words, as a control in studies",
    )
    noise: NoiseConfig = Field(NoiseConfig(), description="caption noise, for studies")
    window: Positive = Field(
        16, description="samples are shuffled within this many shards at a time [shards]"
    )
    tail: Literal["carry", "drop"] = Field(
        "carry",
        description="samples after an epoch's last whole global batch: carry goes on through a "
        "batch of both epochs, drop leaves them out, other ones in each epoch",
    )
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="loader processes per rank; 0 loads inline [processes]"
    )
    prefetch: Positive = Field(
        2, description="batches each worker prepares ahead, in shared memory [batches]"
    )
    cache_dir: str | None = Field(
        None,
        description="local folder for remote shards and the mapped index, shared by the "
        "processes of a node; null: `cache` in the run directory",
    )
    cache_bytes: Positive = Field(
        64 * 2**30, description="remote shards kept on disk, least recently used go first [bytes]"
    )
    fetch_ranges: Positive = Field(
        4,
        description="pieces of a remote shard that are fetched at a time, where the store serves "
        "ranges [connections]",
    )
    timeout_s: Annotated[float, Field(gt=0)] = Field(
        60.0,
        description="a remote read that takes longer for a piece of up to 8 MiB is broken off and "
        "tried again, 4 times in all; 60 as in botocore [s]",
    )
    verify: Literal["none", "size", "sha256"] = Field(
        "size",
        description="shards against manifest.json: size compares local files before the first "
        "step and checksums of remote ones when fetched; sha256 also reads every local shard "
        "once; none trusts them",
    )
    max_bad_share: Share = Field(
        0.01,
        description="stop when more samples than this had to be replaced, on all ranks and since "
        "the run began; fewer than 100 samples count as 100 [share]",
    )

    @model_validator(mode="after")
    def _check_crop(self) -> DataConfig:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale {low, high} must satisfy 0 < low <= high <= 1")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio {low, high} must satisfy 0 < low <= high")
        least, most = self.image_size, 2 * self.image_size
        if self.crop_room is not None and not least <= self.crop_room <= most:
            raise ValueError(
                f"crop_room={self.crop_room} must lie between image_size={least} and twice that, "
                "beyond which bilinear resizing would alias"
            )
        return self


def cache_folder(config: DataConfig) -> Path:
    """Return the node's cache folder, created; raises `ConfigError` if another user owns it.

    The default lies in a folder that anybody may write to, so it is made private and its owner is
    checked: an index planted there would choose what we read.
    """
    if config.cache_dir is not None:
        folder = Path(config.cache_dir).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    folder = Path(tempfile.gettempdir()) / f"tcjepa-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or folder.is_symlink():
        raise ConfigError(f"data.cache_dir: {folder} belongs to another user; name a folder")
    folder.chmod(0o700)
    return folder


def worker_count(config: DataConfig) -> int:
    """Return the number of loader processes of this rank; `auto` shares the cores among ranks."""
    if config.workers != "auto":
        return config.workers
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return workers_for(usable_cores() // ranks)


def workers_for(cores: int) -> int:
    """Return the number of loader processes of a rank that has so many cores."""
    return max(0, min(16, cores - 1))
