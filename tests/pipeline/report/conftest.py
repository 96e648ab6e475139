"""A run whose captions, file names and metadata attack whoever looks at them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.pipeline.runs import pipeline

#: Each would do something if it were not shown as text.
ATTACKS = (
    "<script>document.title='owned'</script> a red square on a table",
    "<img src=x onerror=\"document.title='owned'\"> a blue circle on a wall",
    '"><svg onload="document.title=\'owned\'"> a green star in the sky',
    "' onmouseover='document.title=1' a picture of two small black cats",
    "</q></li></ol></body><body onload=document.title='owned'> a big white dog",
    "&lt;script&gt;document.title='owned'&lt;/script&gt; a tree in a garden",
    "[click](javascript:document.title='owned') javascript:alert(1) a boat on a lake",
    "</style><style>body{display:none}</style> a house beside a small river",
    "{{ 7*7 }}{% for x in y %} a yellow bus in front of a large school",
    "a harmless picture of a moon \u202egnp.exe\u2066 over a quiet grey city",
    "\x1b]0;owned\x07\x1b[31mred\x1b[2J a horse that stands on a green meadow",
    "a very long story about a castle " + "and a knight who walks " * 420,
    "le\u0301" + "\u0301\u0302\u0303" * 200 + " a stack of marks on a sheet of paper",
)


def _picture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed)
    pixels = np.full((240, 260, 3), noise.integers(40, 215, 3), np.uint8)
    for _ in range(5):
        centre = tuple(int(v) for v in noise.integers(20, 220, 2))
        colour = tuple(int(v) for v in noise.integers(0, 256, 3))
        cv2.circle(pixels, centre, int(noise.integers(15, 60)), colour, -1)
    return pixels


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over hostile captions; one image in three is too small or a copy."""
    folder = tmp_path_factory.mktemp("hostile")
    images = folder / "images"
    images.mkdir()
    rows = []
    for number in range(3 * len(ATTACKS)):
        caption = ATTACKS[number % len(ATTACKS)]
        pixels = _picture(number if number % 7 else 0)
        if number % 5 == 4:
            pixels = cv2.resize(pixels, (40, 40))
        cv2.imwrite(str(images / f"{number:03d}.png"), pixels)
        truth = {"background": "<b>wall</b>", "objects": [
            {"category": "<script>document.title='owned'</script>", "attributes": ["red"],
             "box": [0.1, 0.1, 0.5, 0.5]}], "relations": []}  # fmt: skip
        rows.append(
            {"image": f"{number:03d}.png", "caption": caption, "annotations": json.dumps(truth)}
        )
    rows.append({"image": "missing<i>.png", "caption": "a lost image of a bird"})
    table = folder / "captions.jsonl"
    table.write_text("\n".join(json.dumps(row) for row in rows))
    config = folder / "config.yaml"
    config.write_text(
        f"run: {folder}/run\npart_rows: 15\n"
        f"source: {{kind: folder, images: {images}, captions: {table},"
        " keep_columns: [annotations]}\n"
        "filter: {image: {min_side: 64}}\n"
        "recaption: {captioners: [{kind: annotations}], max_captions: 1}\n"
        "score: {alignment: null}\n"
        "cluster: {workers: 1, dashboard: null}\n"
    )
    done = pipeline("shards", str(config))
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Callable[[], Path]:
    """Return a way to get a private copy of the undisturbed run, to damage."""

    def copy() -> Path:
        return Path(shutil.copytree(run, tmp_path / "run"))

    return copy
