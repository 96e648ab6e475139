"""Crops: the random one for training, keyed by (seed, epoch, uid), and the evaluation one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import cv2

from tcjepa import keyed
from tcjepa.data.decode import DIVISORS, OpenedImage, Pixels, Scratch

_TRIES: Final = 10
#: ImageNet's evaluation crop: the shorter side becomes 256/224 of the crop's, which is its centre.
EVALUATION_MARGIN: Final = 256 / 224


class Box(NamedTuple):
    """A rectangle of an image [px]."""

    top: int
    left: int
    height: int
    width: int


def random_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    draws: Iterable[Sequence[float]],
) -> Box:
    """Return torchvision's `RandomResizedCrop` box for tries of four uniform draws in [0, 1).

    Area is uniform in `scale`, log aspect uniform in `ratio`, position uniform; after tries that
    all do not fit, the largest centred box with an allowed aspect.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area_draw, ratio_draw, top_draw, left_draw in draws:
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
        aspect = math.exp(low + (high - low) * ratio_draw)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1)), h, w)
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return Box((height - h) // 2, (width - w) // 2, h, w)


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], crop_key: int
) -> Box:
    """Return the random crop of an image [px]; a function of its stored size and the key."""
    return random_box(height, width, scale, ratio, _tries(crop_key))


def _tries(crop_key: int) -> Iterator[list[float]]:
    """Yield ten tries of four draws; the first nearly always fits, so only that is drawn alone."""
    yield keyed.draws(crop_key, 4)
    draws = keyed.draws(crop_key, 4 * _TRIES)
    yield from (draws[start : start + 4] for start in range(4, 4 * _TRIES, 4))


def divisor_for(box: Box, size: int) -> int:
    """Return how much smaller a JPEG may be decoded when a box of it becomes (size, size)."""
    least = min(box.height, box.width)
    for divisor in DIVISORS:
        if least >= divisor * size:
            return divisor
    return 1


def crop_into(out: Pixels, image: OpenedImage, box: Box, scratch: Scratch | None = None) -> None:
    """Decode an image and write a box of it, resized, into `out` (size, size, 3).

    JPEGs are decoded no larger than the crop needs: libjpeg-turbo leaves out high frequencies at
    no cost, and what remains is less than a halving. That comes as close to a Lanczos-filtered crop
    as torchvision's antialiased one does, measured on synthetic photographs, and a 12-megapixel one
    costs a third of the time. The box is then off by less than one pixel of `out`.
    """
    size = out.shape[0]
    _resize(_decoded(image, box, size, scratch), size, size, out)


def cut_into(
    out: Pixels, image: OpenedImage, box: Box, size: int, scratch: Scratch | None = None
) -> tuple[int, int]:
    """Decode an image as `crop_into` does and write a box of it into the corner of `out` (R, R, 3).

    Return its (height, width) there [px]: those of the box in the decoded version where that fits,
    else `size` twice, to which it is then resized.
    """
    pixels = _decoded(image, box, size, scratch)
    height, width = pixels.shape[:2]
    if max(height, width) > out.shape[0]:
        out[:size, :size] = _resize(pixels, size, size)
        return size, size
    out[:height, :width] = pixels
    return height, width


def resize_into(out: Pixels, pixels: Pixels, box: Box) -> None:
    """Resize a box of an image that was decoded whole into `out`."""
    _resize(_cut(pixels, box), out.shape[0], out.shape[1], out)


def _decoded(image: OpenedImage, box: Box, size: int, scratch: Scratch | None) -> Pixels:
    """Return a box of an image in the smallest version that is enough for (size, size)."""
    divisor = divisor_for(box, size)
    pixels = image.pixels(divisor, scratch)
    if pixels.shape[:2] == (image.height, image.width):
        divisor = 1  # a format that has no smaller versions, or nothing to divide
    return _cut(pixels, box, divisor)


def _cut(pixels: Pixels, box: Box, divisor: int = 1) -> Pixels:
    top, left, bottom, right = box.top, box.left, box.top + box.height, box.left + box.width
    if divisor > 1:
        top, left, bottom, right = (round(side / divisor) for side in (top, left, bottom, right))
    return pixels[top:bottom, left:right]


class CropGeometry(NamedTuple):
    """Where an evaluation crop lies: (height, width) to resize to, its (top, left) in that [px]."""

    resized: tuple[int, int]
    corner: tuple[int, int]


def crop_geometry(height: int, width: int, size: int) -> CropGeometry:
    """Return the evaluation crop (size, size) of an image [px]; roundings are torchvision's.

    The shorter side is resized to `EVALUATION_MARGIN` of `size`, then the centre is cut out.
    """
    short = round(size * EVALUATION_MARGIN)
    if height <= width:
        resized = (short, int(short * width / height))
    else:
        resized = (int(short * height / width), short)
    return CropGeometry(
        resized, (round((resized[0] - size) / 2.0), round((resized[1] - size) / 2.0))
    )


def centre_crop(pixels: Pixels, size: int) -> Pixels:
    """Return ImageNet's evaluation crop (3, size, size) uint8 of an image (H, W, 3)."""
    (height, width), (top, left) = crop_geometry(pixels.shape[0], pixels.shape[1], size)
    resized = _resize(pixels, height, width)
    return resized[top : top + size, left : left + size].transpose(2, 0, 1)


def _resize(pixels: Pixels, height: int, width: int, out: Pixels | None = None) -> Pixels:
    """Resize an image (H, W, 3), into `out` if it is given.

    Bilinear up to a halving, which is as far as OpenCV's fixed 2x2 footprint sees every pixel, and
    five times as fast as averaging areas. Beyond that it would alias, so areas are averaged;
    torchvision's filter widens instead.
    """
    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    halves = pixels.shape[0] <= 2 * height and pixels.shape[1] <= 2 * width
    method = cv2.INTER_AREA if shrinks and not halves else cv2.INTER_LINEAR
    resized: Pixels = cv2.resize(pixels, (width, height), dst=out, interpolation=method)
    return resized
