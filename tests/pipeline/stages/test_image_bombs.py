"""Small files that would cost a decoder minutes or gigabytes are refused before it sees them."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
from PIL import Image

from pipeline.stages.failures import classify
from pipeline.stages.integrity import CheckedResizer


def reason(data: bytes, **options: Any) -> str | None:
    defaults = {"image_size": 64, "resize_mode": "keep_ratio", "resize_only_if_bigger": True}
    resize = CheckedResizer(**{"max_pixels": 1_000_000, **defaults, **options})
    *_, error = resize(io.BytesIO(data))
    return None if error is None else classify(error)


def saved(kind: str, size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (9, 99, 199)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("claimed", [None, (16, 16)])
def test_avif_is_not_decoded(claimed: tuple[int, int] | None) -> None:
    """Its header may claim 16 x 16 where the AV1 frame has 12,000 x 12,000."""
    data = bytearray(saved("AVIF"))
    if claimed is not None:
        struct.pack_into(">II", data, data.index(b"ispe") + 8, *claimed)
    assert reason(bytes(data)) == "not_an_image"
