"""Truncated images are found; whole ones, with whatever cameras append, are not accused."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from img2dataset.resizer import Resizer
from PIL import Image

from pipeline.stages.failures import classify
from pipeline.stages.integrity import CheckedResizer, is_truncated
from tests.peak_memory import peak_growth

KINDS = [".jpg", ".png", ".webp"]


def resizer(**options: Any) -> CheckedResizer:
    defaults = {"image_size": 16, "resize_mode": "keep_ratio", "resize_only_if_bigger": True}
    return CheckedResizer(**{"max_pixels": 10_000, **defaults, **options})


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_image_is_truncated_wherever_it_is_cut(
    image: Callable[..., bytes], kind: str
) -> None:
    whole = image(kind)
    assert not is_truncated(whole)
    assert not is_truncated(whole + b"\x00" * 100_000)  # padding and previews are no fault
    lengths = range(len(whole) // 4, len(whole) - 8, 13)
    assert len(lengths) > 10
    assert all(is_truncated(whole[:length]) for length in lengths)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_thumbnail_does_not_vouch_for_the_image(
    image: Callable[..., bytes], progressive: bool
) -> None:
    """An embedded preview has an end marker of its own, before the image's first scan."""
    thumbnail = image(".jpg", 1, 16, 16)
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(image(".png", 0, 64, 64)))
    picture.save(buffer, "JPEG", progressive=progressive, exif=b"Exif\0\0" + thumbnail)
    whole = buffer.getvalue()
    assert thumbnail in whole
    assert not is_truncated(whole)
    assert is_truncated(whole[: len(whole) // 2])
    assert is_truncated(whole[:-2])
    cut_in_exif = whole[: whole.index(thumbnail) + len(thumbnail)]
    assert is_truncated(cut_in_exif)


def test_padding_before_a_marker_is_legal(image: Callable[..., bytes]) -> None:
    whole = image(".jpg")
    assert not is_truncated(whole[:2] + b"\xff" * 3 + whole[2:])


@given(data=st.binary(max_size=64), start=st.sampled_from([b"", b"\xff\xd8\xff", b"RIFF"]))
def test_any_bytes_get_an_answer(data: bytes, start: bytes) -> None:
    assert isinstance(is_truncated(start + data), bool)


@pytest.mark.parametrize("kind", KINDS)
def test_the_resizer_refuses_what_img2dataset_would_fill_with_grey(
    image: Callable[..., bytes], kind: str
) -> None:
    resize = resizer()
    whole = image(kind)
    *_, error = resize(io.BytesIO(whole[: len(whole) * 2 // 3]))
    assert classify(error) == "truncated"
    data, width, height, original_width, original_height, error = resize(io.BytesIO(whole))
    assert error is None
    assert (height, original_width, original_height) == (16, 40, 30)
    assert Image.open(io.BytesIO(data)).size == (width, height)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_counted_before_they_are_decoded(image: Callable[..., bytes], kind: str) -> None:
    whole = image(kind)  # 40 x 30
    *_, error = resizer(max_pixels=1200)(io.BytesIO(whole))
    assert error is None
    *_, error = resizer(max_pixels=1199)(io.BytesIO(whole))
    assert classify(error) == "too_many_pixels"


def test_enlarging_a_thin_image_is_bounded(image: Callable[..., bytes]) -> None:
    """1 x 600 px with the shorter side made 512 would be 512 x 307,200."""
    thin = io.BytesIO(image(".png", 0, 600, 1))
    *_, error = resizer(image_size=512, resize_only_if_bigger=False)(thin)
    assert classify(error) == "too_many_pixels"
    *_, error = resizer(image_size=512)(thin)
    assert error is None


def test_what_is_no_image_of_a_known_format_is_not_shown_to_the_decoder() -> None:
    *_, error = resizer()(io.BytesIO(b"P6 60000 60000 255 "))
    assert classify(error) == "not_an_image"


@pytest.mark.parametrize(
    ("mode", "size"),
    [("RGBA", (2049, 2049)), ("RGB", (2049, 2049)), ("LA", (2049, 2049)), ("RGBA", (90_000, 50))],
)
def test_large_pictures_with_an_alpha_channel_come_out_as_img2dataset_makes_them(
    mode: str, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, "PNG", compress_level=1)
    options: dict[str, Any] = {"image_size": 64, "resize_mode": "center_crop"}
    ours = resizer(**options, encode_format="png", encode_quality=1, max_pixels=10_000_000)
    theirs = Resizer(**options, resize_only_if_bigger=True, encode_format="png", encode_quality=1)
    assert ours(buffer)[-1] is None
    assert ours(buffer) == theirs(buffer)


def test_a_large_picture_with_an_alpha_channel_takes_little_memory() -> None:
    large, small = io.BytesIO(), io.BytesIO()
    Image.new("RGBA", (4000, 4000)).save(large, "PNG")
    Image.new("RGBA", (16, 16)).save(small, "PNG")
    error, growth = peak_growth(_error, large.getvalue(), warm_up=(small.getvalue(),))
    assert error is None
    assert growth <= 20 * 4000 * 4000  # img2dataset: 76


def _error(data: bytes) -> str | None:
    *_, error = resizer(max_pixels=20_000_000)(io.BytesIO(data))
    return error
