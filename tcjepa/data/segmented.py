"""A folder of images with one mask each, for segmentation on any labelled images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.settings import ConfigError
from tcjepa.data.augment import crop_geometry
from tcjepa.data.decode import SampleError
from tcjepa.data.folder import FORMATS, mixed

Mask = NDArray[np.uint8]

IMAGES, MASKS = "images", "masks"
_NAMED: Final = 5
_PNG_DEPTH: Final = 24  # where the header says how many bits a channel has


class SegmentationFolder:
    """Images `<path>/images/**` and masks `<path>/masks/**.png` of the same relative name.

    They come in a fixed order that mixes subfolders: a function of the names.
    A mask is a PNG of class numbers, grey or with a palette, as large as its image: 0 is
    background, 255 is ignored. A sample holds its bytes as `mask`.
    """

    def __init__(self, path: Path, files: list[str]) -> None:
        self.path = path
        self._files = files

    @classmethod
    def is_at(cls, path: Path) -> bool:
        """Return whether a folder has this layout."""
        return (path / IMAGES).is_dir() and (path / MASKS).is_dir()

    @classmethod
    def open(cls, path: str | Path) -> SegmentationFolder:
        """List a folder; raises `ConfigError` without images, or for images that have no mask."""
        root = Path(path)
        files = [
            file.relative_to(root / IMAGES).as_posix()
            for file in (root / IMAGES).rglob("*")
            if file.suffix.lower() in FORMATS and file.is_file()
        ]
        files.sort(key=mixed)
        if not files:
            raise ConfigError(f"no images ({', '.join(FORMATS)}) in {root / IMAGES}")
        bare = [name for name in files if not (root / _mask_of(name)).is_file()]
        if bare:
            raise ConfigError(
                f"{len(bare)} of {len(files)} images in {root / IMAGES} have no mask in "
                f"{root / MASKS}: {', '.join(bare[:_NAMED])}{', …' if len(bare) > _NAMED else ''}. "
                "A mask has its image's name and ends in .png"
            )
        return cls(root, files)

    def __len__(self) -> int:
        return len(self._files)

    def image_and_sample(self, row: int) -> tuple[bytes, str, dict[str, Any]]:
        """Return a row's (image bytes, image format, sample); raises `SampleError`."""
        name = self._files[row]
        try:
            data = (self.path / IMAGES / name).read_bytes()
            sample = {"uid": name, "mask": (self.path / _mask_of(name)).read_bytes()}
        except OSError as error:
            raise SampleError(f"cannot read {name}: {error.strerror}") from error
        return data, FORMATS[Path(name).suffix.lower()], sample


def crop_mask(data: bytes, height: int, width: int, size: int) -> Mask:
    """Return a mask (size, size) in the geometry of `tcjepa.data.augment.centre_crop`.

    Pixels are taken from the nearest one, never mixed. Raises `SampleError` for bytes that are no
    PNG of class numbers, or not of the image's `height` and `width` [pixels].
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode not in ("1", "L", "P") or image.size != (width, height):
                raise SampleError(
                    f"the mask is {image.size[0]} x {image.size[1]}, mode {image.mode}; expected "
                    f"{width} x {height} in grey or palette colours"
                )
            numbers = np.asarray(image, dtype=np.uint8)
            if image.mode == "L":
                numbers = numbers // _grey_step(data)
    except SampleError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, …
        raise SampleError(f"undecodable mask: {type(error).__name__}: {error}"[:200]) from error
    target, (top, left) = crop_geometry(height, width, size)
    resized = cv2.resize(numbers, target[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return np.ascontiguousarray(resized[top : top + size, left : left + size])


def _grey_step(data: bytes) -> int:
    """Return by how much Pillow spreads the levels of a grey PNG of 2 or 4 bits; 1 for 8 bits."""
    return 255 // ((1 << data[_PNG_DEPTH]) - 1)


def _mask_of(name: str) -> str:
    return str(Path(MASKS) / Path(name).with_suffix(".png"))


__all__ = ["SegmentationFolder", "crop_mask"]
