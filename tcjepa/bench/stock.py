"""What most people use: webdataset, Pillow and torchvision's transforms, set up as its docs do."""

from __future__ import annotations

import importlib.util
import io
from typing import Any, Final

import torch
from PIL import Image
from torchvision.transforms import v2

from tcjepa.data.config import DataConfig

STOCK: Final = "Pillow + torchvision"
STOCK_LOADER: Final = f"webdataset + {STOCK}"
CROP: Final = 224
BATCH: Final = 32
_SHUFFLED: Final = 1000


def has_webdataset() -> bool:
    """Return whether the stock loader can run here."""
    return importlib.util.find_spec("webdataset") is not None


def open_pillow(data: bytes) -> Image.Image:
    """Return an image as RGB, decoded when its pixels are asked for."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def stock_transform(config: DataConfig) -> Any:
    """Return torchvision's random crop of a Pillow image, as a uint8 tensor (3, 224, 224)."""
    crop = v2.RandomResizedCrop(CROP, config.crop_scale, config.crop_ratio, antialias=True)
    return v2.Compose([crop, v2.PILToTensor()])


def stock_loader(paths: list[str], config: DataConfig, workers: int) -> Any:
    """Return endless batches (images (B, 3, 224, 224) uint8, captions) from shards."""
    import webdataset

    transform = stock_transform(config)

    def captions(sample: Any) -> list[str]:
        texts = [caption["text"] for caption in sample["captions"]]
        return texts[: config.captions_per_image]

    def stack(samples: list[tuple[torch.Tensor, list[str]]]) -> tuple[torch.Tensor, list[Any]]:
        return torch.stack([image for image, _ in samples]), [texts for _, texts in samples]

    dataset = webdataset.WebDataset(paths, shardshuffle=len(paths), empty_check=False)
    dataset = dataset.shuffle(_SHUFFLED).decode("pil").to_tuple("jpg;png;webp", "json")
    dataset = dataset.map_tuple(transform, captions).batched(BATCH, collation_fn=stack).repeat()
    if workers == 0:
        return dataset
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=config.prefetch,
        multiprocessing_context="fork",  # its functions are closures, which nothing else passes on
    )
