import io

import numpy as np
import pytest
from PIL import Image

from tcjepa.data.decode import DIVISORS, SampleError, Scratch, decode, open_image
from tests.tcjepa.shards import image

MAX = 1_000_000


def encoded(picture: Image.Image, pil_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, pil_format, **options)
    return buffer.getvalue()


def test_jpeg_agrees_with_pillow() -> None:
    data = image(3, 61, 47)
    pixels = decode(data, "jpg", MAX)
    assert pixels.shape == (47, 61, 3) and pixels.dtype == np.uint8
    plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(pixels.astype(int) - plain).max() <= 4  # two builds of libjpeg


@pytest.mark.parametrize(("image_format", "exact"), [("png", True), ("webp", False)])
def test_other_formats(image_format: str, exact: bool) -> None:
    data = image(3, 31, 47, image_format)
    plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode(data, image_format, MAX), plain)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_odd_jpegs(mode: str) -> None:
    picture = Image.open(io.BytesIO(image(3, 31, 47))).convert(mode)
    data = encoded(picture, "JPEG", quality=95)
    plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(decode(data, "jpg", MAX).astype(int) - plain).max() <= 4


def test_transparency_is_laid_on_white() -> None:
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    picture.putpixel((0, 0), (10, 20, 30, 255))
    pixels = decode(encoded(picture, "PNG"), "png", MAX)
    assert pixels[0, 0].tolist() == [10, 20, 30] and pixels[3, 3].tolist() == [255, 255, 255]


def test_sixteen_bit_grey_keeps_its_range() -> None:
    grey = np.array([[0, 32768, 65535]], dtype=np.uint16)
    pixels = decode(encoded(Image.fromarray(grey), "PNG"), "png", MAX)
    assert pixels[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("image_format", ["jpg", "png", "webp"])
def test_pixel_limit_is_judged_before_decoding(image_format: str) -> None:
    data = image(1, 64, 48, image_format)
    if image_format != "webp":  # which Pillow only opens whole
        data = data[:-60]  # would fail in the decoder
    with pytest.raises(SampleError, match="more than max_pixels = 3071"):
        decode(data, image_format, 64 * 48 - 1)


@pytest.mark.parametrize(
    ("data", "image_format", "message"),
    [
        (b"", "jpg", "undecodable"),
        (b"not an image", "png", "undecodable"),
        (image(1, 64, 48)[:-300], "jpg", "undecodable"),
        (image(1, 64, 48, "png"), "jpg", "undecodable"),  # the name decides, not the content
        (encoded(Image.new("RGB", (8, 8)), "BMP"), "png", "undecodable"),
        (b"\x80\x04.", "pkl", "not one of jpg, png, webp"),
    ],
)
def test_refusals(data: bytes, image_format: str, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        decode(data, image_format, MAX)


@pytest.mark.parametrize("divisor", DIVISORS)
def test_smaller_versions(divisor: int) -> None:
    data = image(3, 203, 147)
    pixels = open_image(data, "jpg", MAX).pixels(divisor)
    assert pixels.shape == (-(-147 // divisor), -(-203 // divisor), 3)
    whole = Image.fromarray(decode(data, "jpg", MAX)[: 8 * 18, : 8 * 25])
    plain = np.asarray(whole.reduce(divisor), dtype=float)
    height, width = plain.shape[:2]
    assert np.abs(pixels[:height, :width] - plain).mean() < 2
    # Formats without smaller versions give what they have.
    png = image(3, 31, 47, "png")
    assert np.array_equal(open_image(png, "png", MAX).pixels(divisor), decode(png, "png", MAX))


def test_a_scratch_holds_one_image_at_a_time() -> None:
    scratch = Scratch()
    for number, (width, height) in enumerate([(61, 47), (200, 300), (31, 20), (2500, 2400)]):
        data = image(number, width, height)
        pixels = open_image(data, "jpg", 10**7).pixels(1, scratch)
        assert pixels.shape == (height, width, 3)
        assert np.array_equal(pixels, decode(data, "jpg", 10**7))
    kept = scratch.room(1)
    assert kept is not None and len(kept) < 3 * 2500 * 2400  # the largest got its own memory
    assert scratch.room(3 * 2500 * 2400) is None


def test_damage_behind_the_header_is_found_when_decoding() -> None:
    data = image(1, 64, 48)[:-300]
    opened = open_image(data, "jpg", MAX)
    for scratch in (None, Scratch()):
        with pytest.raises(SampleError, match="undecodable"):
            opened.pixels(2, scratch)
