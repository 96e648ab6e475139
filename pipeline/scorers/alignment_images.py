"""Images as vectors for `alignment: linear`: colours and responses to a fixed bank of patches.

Nothing is learned and nothing is loaded. A single layer of patch responses, pooled over the image,
carries surprisingly far (Coates, Ng & Lee 2011, "An Analysis of Single-Layer Networks"); their
patches were sampled from data, ours are drawn once from a fixed seed: two colours meeting at a
line, a corner, an arc or in stripes, which is what local image structure looks like.

Numbers of patches, sizes and strides were chosen for speed: twice the patches, half as much again
of the side and every third position instead of every fourth cost eight times as much and brought
nothing to speak of (docs/decisions.md, "Speed of the pipeline").
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Image = NDArray[np.uint8]

#: Side of the square images that features are made of [px]: `pipeline.filters.pixels.thumbnail`.
SIDE: Final = 64
_PATCH: Final = 6  # side of a patch [px]
_PATCHES: Final = 128
_FINE_STRIDE: Final = 4  # between patches of the image [px]
_COARSE_STRIDE: Final = 3  # between patches of the image at half the side [px]
_LEVELS: Final = (0.0, 85.0, 170.0, 255.0)  # of each channel, for the 64 reference colours
_COLOUR_WIDTH: Final = 40.0  # reach of a reference colour [units of 0..255]
_THRESHOLD: Final = 0.3  # responses below it count as none: sparse codes pool better
_CONTRAST_FLOOR: Final = 0.3  # keeps flat patches from being blown up to full contrast

#: Width F of the features: 64 colours in the image and in its 4 quarters, then mean and maximum of
#: 128 patch responses at two scales.
WIDTH: Final = 64 * 5 + 2 * 2 * _PATCHES


def image_features(images: Sequence[Image | None]) -> Floats:
    """Return (n, WIDTH) float32 features of BGR images (SIDE, SIDE, 3); a row of NaN for None.

    Every image is treated alone, so that the features do not depend on how images are batched.
    """
    features = np.full((len(images), WIDTH), np.nan, np.float32)
    for row, pixels in zip(features, images, strict=True):
        if pixels is not None:
            half = _resize(pixels, SIDE // 2)
            row[:320] = _colours(half)
            row[320 : 320 + 2 * _PATCHES] = _responses(half, _COARSE_STRIDE)
            row[320 + 2 * _PATCHES :] = _responses(pixels, _FINE_STRIDE)
    return features


def feature_column(images: Sequence[Image | None]) -> pa.FixedSizeListArray:
    """Return `image_features` as tables hold them: half floats, whose three digits are enough."""
    values = image_features(images).astype(np.float16).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float16()), WIDTH)


def _resize(pixels: Image, side: int) -> Image:
    resized: Image = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    return resized


def _colours(pixels: Image) -> Floats:
    """Return (320,) root shares of 64 reference colours in the image and in its quarters.

    A pixel belongs to the reference colours (b, g, r) softly, by a Gaussian of its distance, which
    is a product over the channels; so is what it must be divided by for the shares to sum to 1.
    """
    half = pixels.shape[0] // 2
    levels = _level_table()[pixels >> 3].reshape(2, half, 2, half, 3, 4)  # y, Y, x, X, channel, 4
    blue, green, red = levels.transpose(4, 0, 2, 5, 1, 3).reshape(3, 4, 4, half**2)
    pairs = (blue[:, :, None] * green[:, None]).reshape(4, 16, half**2)
    quarters = (pairs @ red.transpose(0, 2, 1)).reshape(4, 64) / np.float32(half**2)
    colours: Floats = np.sqrt(np.concatenate([quarters.mean(0), quarters.ravel()]))
    return colours


@functools.cache
def _level_table() -> Floats:
    """Return (32, 4): soft membership of each 5-bit channel value in the reference levels."""
    values = np.arange(32)[:, None] * 8.0 + 4.0
    nearness = np.exp(-((values - _LEVELS) ** 2) / (2 * _COLOUR_WIDTH**2))
    table: Floats = (nearness / nearness.sum(1, keepdims=True)).astype(np.float32)
    return table


def _responses(pixels: Image, stride: int) -> Floats:
    """Return (2 · _PATCHES,) root mean and maximum over the image of thresholded responses.

    The response of a place with pixels p to patch b is b · q / √(|q|² + floor) with q = p - m/2, m
    the mean of p. Half the mean stays: colour and shape are one response, so "red corner" can be
    told from "red" and "corner" apart. The subtraction is part of `_bank`'s patches, and
    |q|² = |p|² - ¾ d m² with d numbers in a patch.
    """
    scaled = pixels * np.float32(1 / 255) - np.float32(0.5)
    count = (len(scaled) - _PATCH) // stride + 1
    rows, columns, step = scaled.strides
    windows = np.lib.stride_tricks.as_strided(
        scaled,
        (count, count, _PATCH, 3 * _PATCH),
        (stride * rows, stride * columns, rows, step),
        writeable=False,
    )
    patches = windows.reshape(count**2, 3 * _PATCH**2)
    total, square = patches.sum(1), np.einsum("nd,nd->n", patches, patches)
    length = np.sqrt(square - np.float32(0.75 / patches.shape[1]) * total**2 + _CONTRAST_FLOOR)
    found = (patches / length[:, None]) @ _bank()
    found -= np.float32(_THRESHOLD)
    np.maximum(found, 0, out=found)
    return np.concatenate([np.sqrt(found.mean(0)), found.max(0)])


@functools.cache
def _bank() -> Floats:
    """Return the patches, (108, 128), of unit length, made to subtract half the mean of a place."""
    # RandomState, not Generator: its sequence for a seed is guaranteed across NumPy versions.
    draw = np.random.RandomState(0)
    y, x = (np.mgrid[:_PATCH, :_PATCH] / (_PATCH - 1)) - 0.5
    patches = np.empty((_PATCHES, _PATCH, _PATCH, 3))
    for patch in patches:
        front, back = draw.random_sample((2, 3))
        angle, offset = draw.uniform(0, 2 * np.pi), draw.uniform(-0.25, 0.25)
        across = x * np.cos(angle) + y * np.sin(angle) - offset
        along = y * np.cos(angle) - x * np.sin(angle)
        opening, radius, rhythm = draw.uniform(0.3, 1.4), draw.uniform(0.3, 1), draw.uniform(8, 30)
        masks = (
            across > 0,
            (across > 0) & (across * np.tan(opening) > np.abs(along)),
            (across - radius) ** 2 + along**2 < radius**2,
            np.sin(across * rhythm) > 0,
            np.zeros_like(across, dtype=bool),
        )
        patch[:] = np.where(masks[draw.randint(len(masks))][..., None], front, back)
    flat = patches.reshape(_PATCHES, -1) - 0.5
    flat -= 0.5 * flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    flat -= 0.5 * flat.mean(1, keepdims=True)
    return np.ascontiguousarray(flat.T, np.float32)
