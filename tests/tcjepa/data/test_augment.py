import io
import math

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, RandomResizedCrop, Resize

from tcjepa import keyed
from tcjepa.bench.images import photograph as bench_photograph
from tcjepa.data.augment import (
    Box,
    centre_crop,
    crop_box,
    crop_geometry,
    crop_into,
    divisor_for,
    random_box,
)
from tcjepa.data.decode import Scratch, decode, open_image
from tests.tcjepa.data.plain_crop import plain_crop
from tests.tcjepa.shards import image

SCALE, RATIO = (0.3, 1.0), (3 / 4, 4 / 3)


def boxes(height: int, width: int, count: int) -> list[Box]:
    draws = keyed.uniform(keyed.key("boxes"), 40 * count).reshape(count, 10, 4).tolist()
    return [random_box(height, width, SCALE, RATIO, draw) for draw in draws]


def crop(data: bytes, size: int, some_key: int, image_format: str = "jpg") -> np.ndarray:
    opened = open_image(data, image_format, 10**8)
    out = np.empty((size, size, 3), np.uint8)
    box = crop_box(opened.height, opened.width, SCALE, RATIO, some_key)
    crop_into(out, opened, box, Scratch())
    return out


def photograph(height: int, width: int) -> bytes:
    """Return a JPEG whose detail falls off with frequency, as a photograph's does."""
    square = bench_photograph(1, max(height, width))[:height, :width]
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(square), 90, colorsubsampling="420"))


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * math.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def smooth(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**64))
def test_box_lies_in_the_image(height: int, width: int, some_key: int) -> None:
    box = crop_box(height, width, SCALE, RATIO, some_key)
    tries = np.reshape(keyed.draws(some_key, 40), (10, 4)).tolist()
    assert box == random_box(height, width, SCALE, RATIO, tries)
    assert box.height > 0 and box.width > 0
    assert 0 <= box.top <= height - box.height and 0 <= box.left <= width - box.width


def test_boxes_are_distributed_as_torchvision_draws_them() -> None:
    torch.manual_seed(0)
    count, shape = 3000, torch.zeros(3, 200, 320)
    theirs = np.array(
        [RandomResizedCrop.get_params(shape, list(SCALE), list(RATIO)) for _ in range(count)]
    )
    ours = np.array(boxes(200, 320, count))
    for column in range(4):
        a, b = np.sort(ours[:, column]), np.sort(theirs[:, column])
        grid = np.arange(321)
        distance = np.searchsorted(a, grid, "right") - np.searchsorted(b, grid, "right")
        # Kolmogorov-Smirnov at level 0.001
        assert np.abs(distance).max() / count < 1.95 * math.sqrt(2 / count)


def test_fallback_is_torchvisions() -> None:
    # No allowed aspect fits a 20:1 image at 30% of its area.
    for height, width in ((20, 400), (400, 20)):
        theirs = RandomResizedCrop.get_params(
            torch.zeros(3, height, width), list(SCALE), list(RATIO)
        )
        assert set(boxes(height, width, 20)) == {Box(*theirs)}


def test_crop_depends_on_its_key_alone() -> None:
    data = image(1, 120, 90)
    crops = [crop(data, 32, keyed.key(n)) for n in (1, 1, 2)]
    assert np.array_equal(crops[0], crops[1]) and not np.array_equal(crops[0], crops[2])


@given(st.integers(20, 130), st.integers(20, 130), st.integers(0, 2**64), st.integers(8, 64))
def test_crop_is_the_plain_one(height: int, width: int, some_key: int, size: int) -> None:
    """Pixel for pixel where a PNG is cropped, or a JPEG by less than a halving."""
    png, jpg = image(2, width, height, "png"), image(2, width, height)
    assert np.array_equal(
        crop(png, size, some_key, "png"), plain_crop(png, "png", size, (SCALE, RATIO), some_key)
    )
    if divisor_for(crop_box(height, width, SCALE, RATIO, some_key), size) == 1:
        expected = plain_crop(jpg, "jpg", size, (SCALE, RATIO), some_key)
        assert np.array_equal(crop(jpg, size, some_key), expected)


@pytest.mark.parametrize(("height", "width"), [(301, 467), (640, 480), (1023, 700)])
def test_smaller_decoding_is_nearly_torchvisions_filter(height: int, width: int) -> None:
    """Against a Lanczos-filtered crop of all pixels, to 2 dB; plain bilinear is 5 dB off."""
    data = photograph(height, width)
    pixels = decode(data, "jpg", 10**8)
    ours, theirs = [], []
    for number in range(6):
        some_key = keyed.key("quality", number)
        box = crop_box(height, width, SCALE, RATIO, some_key)
        # Edges on whole pixels of every version, so that only filters differ.
        box = Box(*(8 * (side // 8) for side in box))
        assert divisor_for(box, 64) > 1
        cut = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        best, usual = (
            np.asarray(Image.fromarray(cut).resize((64, 64), method))
            for method in (Image.Resampling.LANCZOS, Image.Resampling.BILINEAR)
        )
        out = np.empty((64, 64, 3), np.uint8)
        crop_into(out, open_image(data, "jpg", 10**8), box)
        ours.append(decibels(out, best))
        theirs.append(decibels(usual, best))
    assert np.mean(ours) > np.mean(theirs) - 2


def test_divisor_leaves_the_crop_its_pixels() -> None:
    for side, divisor in ((223, 1), (447, 1), (448, 2), (895, 2), (896, 4), (1792, 8), (9000, 8)):
        assert divisor_for(Box(0, 0, side, side), 224) == divisor
        assert divisor_for(Box(0, 0, side, 3 * side), 224) == divisor


def test_resize_is_close_to_torchvisions() -> None:
    for side in (256, 320, 448, 700):
        pixels = smooth(side, side)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        some_key = keyed.key("resize", side)
        ours = crop(data.getvalue(), 224, some_key, "png")
        top, left, height, width = crop_box(side, side, SCALE, RATIO, some_key)
        cut = Image.fromarray(pixels).crop((left, top, left + width, top + height))
        theirs = np.asarray(cut.resize((224, 224), Image.Resampling.BILINEAR))
        assert np.abs(ours.astype(float) - theirs).mean() < 1.0


@given(st.integers(1, 900), st.integers(1, 900), st.integers(8, 64))
def test_crop_geometry_is_torchvisions(height: int, width: int, size: int) -> None:
    resized, corner = crop_geometry(height, width, size)
    short = round(size * 256 / 224)
    plain = torch.zeros(1, 1, 1).expand(1, height, width)
    assert tuple(Resize(short, InterpolationMode.NEAREST)(plain).shape[1:]) == resized
    places = torch.arange(resized[0] * resized[1]).reshape(1, *resized)
    first = int(CenterCrop(size)(places)[0, 0, 0])
    assert divmod(first, resized[1]) == corner


def test_centre_crop_is_imagenets() -> None:
    plain = Compose([Resize(256), CenterCrop(224)])
    for height, width in ((300, 400), (511, 333), (256, 256), (100, 120)):
        pixels = smooth(height, width)
        ours = centre_crop(pixels, 224)
        theirs = np.asarray(plain(Image.fromarray(pixels))).transpose(2, 0, 1)
        assert ours.shape == (3, 224, 224)
        assert np.abs(ours.astype(float) - theirs).mean() < 1.0
