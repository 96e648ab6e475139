"""Images as vectors for `alignment: linear`: colours and responses to a fixed bank of patches.

Nothing is learned and nothing is loaded. A single layer of patch responses, pooled over the image,
carries surprisingly far (Coates, Ng & Lee 2011, "An Analysis of Single-Layer Networks"); their
patches were sampled from data, ours are drawn once from a fixed seed: two colours meeting at a
line, a corner, an arc or in stripes, which is what local image structure looks like.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_SIDE: Final = 96  # images are squeezed to this square [px]
_COARSE_SIDE: Final = 48
_COLOUR_SIDE: Final = 32
_PATCH: Final = 6  # side of a patch [px]
_PATCHES: Final = 256
_LEVELS: Final = (0.0, 85.0, 170.0, 255.0)  # of each channel, for the 64 reference colours
_COLOUR_WIDTH: Final = 40.0  # reach of a reference colour [units of 0..255]
_THRESHOLD: Final = 0.3  # responses below it count as none: sparse codes pool better
_CONTRAST_FLOOR: Final = 0.3  # keeps flat patches from being blown up to full contrast

#: Width F of the features: 64 colours in the image and in its 4 quarters, then mean and maximum of
#: 256 patch responses at two scales.
WIDTH: Final = 64 * 5 + 2 * 2 * _PATCHES


def image_features(images: Sequence[bytes]) -> Floats:
    """Return (n, WIDTH) float32 features of encoded images; a row of NaN where decoding failed.

    Every image is treated alone, so that the features do not depend on how images are batched.
    """
    features = np.full((len(images), WIDTH), np.nan, np.float32)
    for row, data in zip(features, images, strict=True):
        pixels = _decode(data)
        if pixels is not None:
            row[:] = np.concatenate(
                [
                    _colours(pixels),
                    _responses(_resize(pixels, _COARSE_SIDE), stride=2),
                    _responses(pixels, stride=3),
                ]
            )
    return features


def _decode(data: bytes) -> NDArray[np.uint8] | None:
    if not data:
        return None
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if pixels is None else _resize(pixels, _SIDE)


def _resize(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    resized: NDArray[np.uint8] = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    return resized


def _colours(pixels: NDArray[np.uint8]) -> Floats:
    """Return (320,) root shares of 64 reference colours in the image and in its quarters."""
    small = _resize(pixels, _COLOUR_SIDE).astype(np.int64) >> 3
    shares = _colour_table()[(small[..., 0] << 10) | (small[..., 1] << 5) | small[..., 2]]
    half = _COLOUR_SIDE // 2
    quarters = shares.reshape(2, half, 2, half, 64).mean((1, 3)).reshape(4, 64)
    colours: Floats = np.sqrt(np.concatenate([quarters.mean(0), quarters.ravel()]))
    return colours


@functools.cache
def _colour_table() -> Floats:
    """Return (32768, 64): soft membership of each 15-bit colour in the reference colours."""
    grid = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), -1).reshape(64, 3)
    codes = np.arange(32768)
    colours = np.stack([codes >> 10, (codes >> 5) & 31, codes & 31], -1) * 8.0 + 4.0
    distances = ((colours[:, None] - grid) ** 2).sum(-1)
    nearness = np.exp(-distances / (2 * _COLOUR_WIDTH**2))
    table: Floats = (nearness / nearness.sum(1, keepdims=True)).astype(np.float32)
    return table


def _responses(pixels: NDArray[np.uint8], stride: int) -> Floats:
    """Return (512,) root mean and maximum over the image of each patch's thresholded response."""
    scaled = pixels.astype(np.float32) / 255 - 0.5
    windows = np.lib.stride_tricks.sliding_window_view(scaled, (_PATCH, _PATCH), axis=(0, 1))
    patches = windows[::stride, ::stride].transpose(0, 1, 3, 4, 2).reshape(-1, 3 * _PATCH**2)
    # Half the mean stays: colour and shape are one response, so "red corner" can be told from
    # "red" and "corner" apart.
    patches = patches - 0.5 * patches.mean(1, keepdims=True)
    patches /= np.sqrt((patches**2).sum(1, keepdims=True) + _CONTRAST_FLOOR)
    found = np.maximum(patches @ _bank() - _THRESHOLD, 0)
    return np.concatenate([np.sqrt(found.mean(0)), found.max(0)])


@functools.cache
def _bank() -> Floats:
    """Return the patches, (108, 256), each of unit length."""
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
    return np.ascontiguousarray((flat / np.linalg.norm(flat, axis=1, keepdims=True)).T, np.float32)
