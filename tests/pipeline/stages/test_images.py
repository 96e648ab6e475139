"""Images read out of tars by their places, wherever the tars lie."""

from __future__ import annotations

import random
import uuid
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.stages.images import read_images
from pipeline.storage import Directory


@pytest.mark.parametrize("where", ["local", "memory"])
@pytest.mark.parametrize("named", ["in the run", "by URL"])
def test_images_are_the_bytes_at_their_places_in_any_order(
    where: str, named: str, tmp_path: Path
) -> None:
    run = Directory(tmp_path if where == "local" else f"memory://{uuid.uuid4().hex}")
    draw = random.Random(0)
    tars = {"00000.tar": draw.randbytes(30_000_000), "00001.tar": draw.randbytes(100_000)}
    for name, content in tars.items():
        (run / "raw").write_bytes(name, content)
    places = [
        ("00000.tar", offset, size)
        for offset, size in [
            (0, 0),
            (29_999_999, 1),
            (5_000_000, 9_000_000),
            (5_000_000, 9_000_000),
            (512, 3000),
        ]
    ]
    places += [
        ("00000.tar", draw.randrange(29_000_000), draw.randrange(200_000)) for _ in range(99)
    ]
    places += [("00001.tar", 99_000, 1000), ("00001.tar", 10, 20)]
    draw.shuffle(places)
    raw = [name if named == "in the run" else (run / "raw" / name).url for name, _, _ in places]
    rows = pa.table(
        {
            "raw": raw,
            "image_offset": [offset for _, offset, _ in places],
            "image_size": [size for _, _, size in places],
        }
    )
    assert read_images(run, rows) == [tars[name][at : at + size] for name, at, size in places]
    assert read_images(run, rows.slice(0, 0)) == []
