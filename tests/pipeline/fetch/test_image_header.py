"""Sizes read from headers are those that decoders see; lies are seen before a decoder is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetch.image_header import image_size
from tests.pipeline.fetch.pictures import CLAIMS, decodes, picture, png

KINDS: list[tuple[str, dict[str, object]]] = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"exif": b"Exif\0\0" + b"\xff\xc0\0\x11" * 9}),
    ("PNG", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"exif": b"Exif\0\0"}),
    ("GIF", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"big_tiff": True}),
    ("TIFF", {"compression": "tiff_lzw"}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("size", [(1, 1), (47, 30), (300, 2)])
def test_the_header_says_what_the_decoder_sees(
    kind: str, options: dict[str, object], size: tuple[int, int]
) -> None:
    data = picture(kind, *size, **options)
    assert image_size(data) == decodes(data) == size


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_is_read_as_it_is_made(name: str) -> None:
    data = CLAIMS[name]
    assert len(data) < 20_000
    width, height = image_size(data) or (0, 0)
    assert width * height > 100_000_000


def test_stray_bytes_between_segments_hide_no_size() -> None:
    data = picture("JPEG")
    place = data.index(b"\xff\xdb")
    assert image_size(data[:place] + b"stray" + data[place:]) == (47, 30)


@given(
    st.sampled_from([picture(kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]),
    st.data(),
)
def test_any_damage_is_survived(whole: bytes, draw: st.DataObject) -> None:
    """And where OpenCV still decodes it, no larger than the header says."""
    data = bytearray(whole)
    for place in draw.draw(st.lists(st.integers(0, min(len(data), 300) - 1), max_size=4)):
        data[place] = draw.draw(st.integers(0, 255))
    cut = bytes(data[: draw.draw(st.integers(0, len(data)))])
    size = image_size(cut)
    if size is not None and size[0] * size[1] < 1_000_000:
        seen = decodes(cut)
        assert seen is None or seen[0] * seen[1] <= size[0] * size[1]


@given(st.binary(max_size=200))
def test_any_bytes_get_an_answer(data: bytes) -> None:
    for start in (
        b"",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"BM",
        b"II*\0",
        b"MM\0+",
        b"\0\0\0\x1cftypavif",
    ):
        size = image_size(start + data)
        assert size is None or min(size) > 0


def test_no_pixels_are_no_size() -> None:
    assert image_size(png(0, 5)) is None
