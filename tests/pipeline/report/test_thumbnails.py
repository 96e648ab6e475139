"""Thumbnails: small, and not to be upset by what the web sends."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.report.thumbnails import SIDE, Thumbnails, shrink
from pipeline.storage import Directory


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (900, 300)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], len(mode)), np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode).save(target, kind)
    return target.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("PNG", "RGBA"), ("WEBP", "RGB"), ("PNG", "L")]
)
def test_images_become_small_jpegs(kind: str, mode: str) -> None:
    small = shrink(encoded(kind, mode))
    assert small is not None
    with Image.open(io.BytesIO(small)) as image:
        assert (image.format, image.mode, max(image.size)) == ("JPEG", "RGB", SIDE)
        assert image.width == pytest.approx(3 * image.height, abs=3)
    assert len(small) < 15_000


def _bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


@pytest.mark.parametrize(
    "data",
    [b"", b"<svg onload=alert(1)>", encoded("JPEG")[:400], encoded("PNG")[:200], _bomb(),
     encoded("GIF", "L")],
    ids=["empty", "svg", "cut jpeg", "cut png", "bomb", "gif"],
)  # fmt: skip
def test_hostile_bytes_give_no_thumbnail(data: bytes) -> None:
    assert shrink(data) is None


def test_the_budget_holds_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    data = encoded("JPEG")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "00000.tar").write_bytes(data)
    place = pa.table({"raw": ["00000.tar"], "image_offset": [0], "image_size": [len(data)]})
    thumbnails = Thumbnails(Directory(tmp_path), budget=5_000)
    uris = [thumbnails.uri(place) for _ in range(10)]
    made = [uri for uri in uris if uri]
    assert sum(map(len, made)) < 5_000 + len(made[0])
    assert thumbnails.left_out == 10 - len(made) > 0
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in made)


def test_a_missing_tar_gives_no_thumbnail(tmp_path: Path) -> None:
    place = pa.table({"raw": ["gone.tar"], "image_offset": [0], "image_size": [9]})
    assert Thumbnails(Directory(tmp_path), budget=20_000).uri(place) is None
