import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, RandomResizedCrop, Resize

from tcjepa import keyed
from tcjepa.data.augment import Box, centre_crop, random_box, random_crop

SCALE, RATIO = (0.3, 1.0), (3 / 4, 4 / 3)


def boxes(height: int, width: int, count: int) -> list[Box]:
    draws = keyed.uniform(keyed.key("boxes"), 40 * count).reshape(count, 10, 4)
    return [random_box(height, width, SCALE, RATIO, draw) for draw in draws]


def smooth(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**64))
def test_box_lies_in_the_image(height: int, width: int, some_key: int) -> None:
    box = random_box(height, width, SCALE, RATIO, keyed.uniform(some_key, 40).reshape(10, 4))
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
    pixels = smooth(90, 120)
    crops = [random_crop(pixels, 32, SCALE, RATIO, keyed.key(n)) for n in (1, 1, 2)]
    assert crops[0].shape == (3, 32, 32) and crops[0].dtype == np.uint8
    assert np.array_equal(crops[0], crops[1]) and not np.array_equal(crops[0], crops[2])


def test_resize_is_close_to_torchvisions() -> None:
    pixels = smooth(256, 320)
    for size in (112, 224, 300):
        some_key = keyed.key("resize", size)
        ours = random_crop(pixels, size, SCALE, RATIO, some_key)
        draws = keyed.uniform(some_key, 40).reshape(10, 4)
        top, left, height, width = random_box(256, 320, SCALE, RATIO, draws)
        cut = Image.fromarray(pixels).crop((left, top, left + width, top + height))
        theirs = np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(ours.astype(float) - theirs.transpose(2, 0, 1)).mean() < 1.0


def test_centre_crop_is_imagenets() -> None:
    plain = Compose([Resize(256), CenterCrop(224)])
    for height, width in ((300, 400), (511, 333), (256, 256), (100, 120)):
        pixels = smooth(height, width)
        ours = centre_crop(pixels, 224)
        theirs = np.asarray(plain(Image.fromarray(pixels))).transpose(2, 0, 1)
        assert ours.shape == (3, 224, 224)
        assert np.abs(ours.astype(float) - theirs).mean() < 1.0
