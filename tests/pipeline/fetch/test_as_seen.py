"""Pictures as viewers see them: turned, opaque, of 8 bits."""

from __future__ import annotations

import io
import struct
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.fetch.as_seen import as_seen, opaque
from pipeline.fetch.image_header import jpeg_orientation

RNG = np.random.default_rng(0)


def jpeg(orientation: int, mode: str = "RGB", tagged: bool = True) -> bytes:
    pixels = Image.fromarray(RNG.integers(0, 256, (6, 9, 3), np.uint8)).resize((90, 60))
    exif = Image.Exif()
    exif[271] = "a camera"
    if tagged:
        exif[274] = orientation
    buffer = io.BytesIO()
    pixels.convert(mode).save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


def seen(data: bytes) -> np.ndarray[Any, Any] | None:
    found = as_seen(data)
    return None if found is None else np.asarray(Image.open(found).convert("RGB"), np.int16)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_photograph_is_turned_as_its_camera_noted(orientation: int, mode: str) -> None:
    data = jpeg(orientation, mode)
    assert jpeg_orientation(data) == orientation
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    found = seen(data)
    assert found is not None
    assert found.shape == np.asarray(upright).shape
    assert np.abs(found - np.asarray(upright, np.int16)).mean() < 2  # two JPEG decoders


@pytest.mark.parametrize("orientation", [0, 1, 9, 65535])
def test_an_upright_photograph_is_stored_as_it_came(orientation: int) -> None:
    assert jpeg_orientation(jpeg(orientation)) == 1
    assert as_seen(jpeg(orientation)) is None
    assert as_seen(jpeg(6, tagged=False)) is None


@given(cut=st.integers(2, 140), at=st.integers(2, 140), byte=st.integers(0, 255))
def test_a_damaged_header_never_raises(cut: int, at: int, byte: int) -> None:
    data = bytearray(jpeg(6))
    data[at] = byte
    assert 1 <= jpeg_orientation(bytes(data)) <= 8
    assert 1 <= jpeg_orientation(bytes(data[:cut])) <= 8
    as_seen(bytes(data[:cut]))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_scaled_to_eight(suffix: str, channels: int) -> None:
    shape = (20, 30) if channels == 1 else (20, 30, channels)
    deep = RNG.integers(0, 1 << 16, shape, np.uint16)
    found = seen(cv2.imencode(suffix, deep)[1].tobytes())
    shallow = (deep >> 8).astype(np.float64)
    if channels == 4:
        alpha = shallow[..., 3:] / 255
        shallow = shallow[..., :3] * alpha + 255 * (1 - alpha)
    expected = shallow[..., ::-1] if channels > 1 else np.repeat(shallow[..., None], 3, -1)
    assert found is not None
    assert np.abs(found - expected).max() <= 0.5


def test_what_img2dataset_stores_rightly_is_left_to_it() -> None:
    for mode, kind in [("RGB", "PNG"), ("RGBA", "PNG"), ("L", "TIFF"), ("RGBA", "WEBP")]:
        buffer = io.BytesIO()
        Image.new(mode, (30, 20)).save(buffer, kind)
        assert as_seen(buffer.getvalue()) is None
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIB", 13, b"IHDR", 9, 9, 16)
    assert as_seen(header) is None  # nothing to decode


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([np.uint8, np.uint16]))
def test_opaque_is_the_same_in_strips_and_at_once(height: int, width: int, depth: type) -> None:
    image = RNG.integers(0, np.iinfo(depth).max + 1, (height, width, 4), depth)
    tall = np.repeat(image, 1 + (1 << 18) // (height * width), axis=0)
    whole = image if depth is np.uint8 else (image >> 8).astype(np.uint8)
    alpha = whole[..., 3:]
    laid = np.rint((alpha / 255 * whole[..., :3] + 255 - alpha).clip(0, 255))
    assert (opaque(image) == laid).all()
    assert (opaque(tall)[:: len(tall) // height] == laid).all()
