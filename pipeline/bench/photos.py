"""Photograph-sized JPEGs made on the spot, and a server that does nothing but send them.

The bytes lie in files that are made before anything is timed, so that on the cores that everybody
shares the server costs as little as one can: what remains is what fetching photographs costs.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.sources.scenes.rows import HOST

#: Width and height in turns [px]: what the web holds most of, landscape and portrait.
_SIZES: Final = ((1024, 768), (768, 1024))
_QUALITY: Final = 90
#: Contrast of the noise at its coarsest octave [levels]; each finer one has `_FALL` of it. All
#: alike would be the 1/f amplitude spectrum of natural images (Field 1987), which lenses and
#: cameras' noise reduction cut at its fine end.
_CONTRAST, _FALL = 30.0, 0.8
_OCTAVES: Final = 8
_NOISE_SIDE: Final = 1100  # of the field that all noise is cut from [px]
_SHAPES: Final = 6
_TASKS: Final = 16  # that the photographs are made in


def photograph(number: int) -> bytes:
    """Return a JPEG of octaves of noise with a few hard-edged shapes on it, about 200 kB."""
    width, height = _SIZES[number % len(_SIZES)]
    draw = np.random.Generator(np.random.Philox(key=number))
    field = _noise()
    image = np.full((1, 1, 3), 118.0, np.float32)
    for octave in range(_OCTAVES, 0, -1):
        size = (width >> (octave - 1), height >> (octave - 1))
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        x, y = draw.integers(0, _NOISE_SIDE - np.array(size), endpoint=True)
        contrast = _CONTRAST * _FALL ** (_OCTAVES - octave)
        image += np.float32(contrast) * field[y : y + size[1], x : x + size[0]]
    for _ in range(_SHAPES):
        centre = [int(draw.integers(0, width)), int(draw.integers(0, height))]
        radius = int(draw.integers(height // 20, height // 5))
        cv2.circle(image, centre, radius, draw.integers(0, 256, 3).tolist(), -1, cv2.LINE_AA)
    pixels: NDArray[np.uint8] = image.clip(0, 255).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(pixels, _QUALITY, colorsubsampling="420"))


@functools.cache
def _noise() -> NDArray[np.float32]:
    """Return noise (side, side, 3) that varies in brightness much more than in colour."""
    draw = np.random.Generator(np.random.Philox(key=0))
    mix = np.array([[1.0, 1.0, 1.0], [0.25, 0.0, -0.25], [-0.1, 0.2, -0.1]], np.float32)
    field: NDArray[np.float32] = draw.standard_normal((_NOISE_SIDE, _NOISE_SIDE, 3), np.float32)
    return field @ mix


def write_photographs(folder: str, numbers: Sequence[int]) -> int:
    """Write `<number>.jpg` for each number; return their size [bytes]."""
    cv2.setNumThreads(1)
    return sum((Path(folder) / f"{n}.jpg").write_bytes(photograph(n)) for n in numbers)


@contextmanager
def photo_server(folder: Path, count: int, pool: Executor) -> Iterator[int]:
    """Make `count` photographs with `pool` and yield the port on which they are served."""
    folder.mkdir()
    step = -(-count // _TASKS)
    starts = range(0, count, step)
    tasks = [
        pool.submit(write_photographs, str(folder), range(at, min(at + step, count)))
        for at in starts
    ]
    for task in tasks:
        task.result()
    command = [sys.executable, "-m", "pipeline.bench.photo_server", str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()  # its sign to end


def photo_urls(port: int, count: int) -> list[str]:
    """Return the URLs of all photographs."""
    return [f"http://{HOST}:{port}/{number}.jpg" for number in range(count)]
