import io
import struct
import time

import cv2
import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from pipeline.filters.image import COLOUR_BYTES, DECODE_ERRORS, ImageMeasures, measure_image
from pipeline.filters.pixels import thumbnail, working_copy


def picture(seed: int, height: int = 240, width: int = 320) -> np.ndarray:
    """A smooth random picture with a few hard edges, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(4):
        x, y = (int(v) for v in rng.integers(0, min(height, width), 2))
        colour = [int(v) for v in rng.integers(0, 256, 3)]
        cv2.circle(image, (x, y), int(rng.integers(10, 60)), colour, -1)
    return image


def encode(image: np.ndarray, extension: str = ".jpg", options: tuple[int, ...] = ()) -> bytes:
    return cv2.imencode(extension, image, list(options))[1].tobytes()


def distance(a: ImageMeasures, b: ImageMeasures) -> int:
    assert a.phash is not None and b.phash is not None
    return (a.phash ^ b.phash).bit_count()


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
def test_size_comes_from_the_stored_image(extension: str) -> None:
    measures = measure_image(encode(picture(0, 600, 900), extension))
    assert measures.decode_error is None
    assert (measures.width, measures.height, measures.pixels) == (900, 600, 540_000)
    assert measures.colours is not None and len(measures.colours) == COLOUR_BYTES


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("alpha", [True, False])
def test_every_kind_of_webp_header_is_read(lossless: bool, alpha: bool) -> None:
    mode = "RGBA" if alpha else "RGB"
    image = PillowImage.fromarray(picture(1, 33, 70)).convert(mode)
    if alpha:
        image.putalpha(100)
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=lossless)
    measures = measure_image(file.getvalue())
    assert (measures.decode_error, measures.width, measures.height) == (None, 70, 33)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "I;16", "LA"])
def test_unusual_pixel_formats_are_measured(mode: str) -> None:
    file = io.BytesIO()
    image = PillowImage.fromarray(picture(2))
    image = image.convert("I").point(lambda v: v * 200).convert("I;16") if ";" in mode else image
    image.convert(mode).save(file, "JPEG" if mode in ("L", "CMYK") else "PNG")
    measures = measure_image(file.getvalue())
    assert measures.decode_error is None
    assert measures.contrast is not None and measures.contrast > 5


def test_hash_agrees_with_imagehash() -> None:
    for seed in range(40):
        data = encode(picture(seed), ".png")
        reference = int(str(imagehash.phash(PillowImage.open(io.BytesIO(data)))), 16)
        phash = measure_image(data).phash
        assert phash is not None and (phash ^ reference).bit_count() <= 6


def test_copies_are_near_and_other_pictures_far() -> None:
    originals = [measure_image(encode(picture(seed))) for seed in range(20)]
    for seed, original in enumerate(originals):
        image = picture(seed)
        worse = measure_image(encode(image, ".jpg", (cv2.IMWRITE_JPEG_QUALITY, 50)))
        half = measure_image(encode(cv2.resize(image, (160, 120), interpolation=cv2.INTER_AREA)))
        assert distance(original, worse) <= 4 and distance(original, half) <= 4
        assert all(distance(original, other) > 8 for other in originals[:seed])


@pytest.mark.parametrize(
    "size", [(300, 500), (257, 256), (1000, 700), (600, 90), (3, 900), (64, 64)]
)
def test_small_copies_are_what_exact_averages_are(size: tuple[int, int]) -> None:
    height, width = size
    image = picture(5, height, width)
    working = working_copy(image)
    scale = min(1.0, 256 / max(size))
    assert working.shape == (max(1, round(height * scale)), max(1, round(width * scale)), 3)
    copies = [working]
    if min(working.shape[:2]) >= 64:  # OpenCV's exact averages do not enlarge
        copies.append(thumbnail(working))
    for copy in copies:
        exact = cv2.resize(image, copy.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(copy.astype(int) - exact).mean() < 4


def test_contrast_and_sharpness_mean_what_they_say() -> None:
    flat = measure_image(encode(np.full((200, 200, 3), 77, np.uint8)))
    assert flat.contrast is not None and flat.contrast < 0.5
    # Two colours of one grey: no luminance contrast, still a picture.
    image = np.full((200, 200, 3), (0, 0, 200), np.uint8)
    image[:, 100:] = (0, 102, 0)
    assert np.ptp(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)) <= 1
    two = measure_image(encode(image, ".png"))
    assert two.contrast is not None and two.contrast > 50
    sharp = measure_image(encode(picture(3)))
    soft = measure_image(encode(cv2.GaussianBlur(picture(3), (0, 0), 4)))
    assert sharp.sharpness is not None and soft.sharpness is not None
    assert sharp.sharpness > 5 * soft.sharpness


def png_claiming(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + bytes(9)


def test_large_claims_are_refused_before_decoding() -> None:
    start = time.perf_counter()
    measures = measure_image(png_claiming(60_000, 60_000))
    assert measures.decode_error == "too_many_pixels" and measures.pixels == 3_600_000_000
    assert time.perf_counter() - start < 0.5
    assert measure_image(encode(picture(0)), max_pixels=1000).decode_error == "too_many_pixels"


def test_each_broken_file_has_its_reason() -> None:
    jpeg, png = encode(picture(0)), encode(picture(0), ".png")
    assert measure_image(b"").decode_error == "empty"
    assert measure_image(b"<html>404</html>").decode_error == "unknown_format"
    assert measure_image(jpeg[:20]).decode_error == "bad_header"
    assert measure_image(png_claiming(0, 5)).decode_error == "bad_header"
    assert measure_image(png_claiming(5, 5) + b"IEND").decode_error == "corrupt"
    assert measure_image(png[:20]).decode_error == "bad_header"


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
def test_a_truncated_file_is_an_error(extension: str) -> None:
    data = encode(picture(0), extension)
    measures = measure_image(data[: len(data) // 2])
    assert (measures.decode_error, measures.width) == ("truncated", 320)


def test_stray_bytes_in_a_jpeg_are_tolerated() -> None:
    jpeg = encode(picture(0))
    assert measure_image(jpeg + b"trailing rubbish").decode_error is None


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_hostile_bytes_never_raise(data: st.DataObject) -> None:
    extension = data.draw(st.sampled_from([".jpg", ".png", ".webp"]))
    content = bytearray(encode(picture(4, 48, 64), extension))
    for _ in range(data.draw(st.integers(0, 8))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    measures = measure_image(bytes(content), max_pixels=10**6)
    assert measures.decode_error is None or measures.decode_error in DECODE_ERRORS
    assert (measures.phash is None) == (measures.decode_error is not None)


@given(st.binary(max_size=60), st.sampled_from([b"", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8"]))
def test_random_bytes_never_raise(tail: bytes, head: bytes) -> None:
    assert measure_image(head + tail).decode_error in DECODE_ERRORS
