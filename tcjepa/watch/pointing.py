"""Where words point: the patch that is most like each word, beside the object that it names."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

#: Words drawn of an image: one row of panels with the image itself [words]
MOST_WORDS = 4
_PANEL = 1.7
_GAP = 0.1
_DOTS = 110
#: Okabe and Ito's bluish green and vermilion: every colour vision tells them apart.
_HIT, _MISS = "#009e73", "#d55e00"


@dataclass(frozen=True)
class PointedWord:
    """A word, its map and its object's patches, (rows, columns) each."""

    text: str
    values: Floats
    patches: NDArray[np.bool_]


@dataclass(frozen=True)
class PointedImage:
    """An image (H, W, 3), a caption of it, and up to `MOST_WORDS` words."""

    pixels: Pixels
    caption: str
    words: Sequence[PointedWord]


def draw_pointing(images: Sequence[PointedImage], title: str) -> bytes:
    """Return a PNG: a row per image, a panel per word; at least one image.

    The map shows where it is above its own mean, the darker the more; white lines enclose the
    object's patches; the largest patch is marked, with a disc where it hits and a cross where not.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 + max(len(image.words) for image in images)
    row_height, head = _PANEL + 0.42, 0.3
    width, height = columns * (_PANEL + _GAP) + _GAP, len(images) * row_height + head
    figure = Figure((width, height), dpi=_DOTS, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(_GAP / width, 1 - 0.08 / height, title, fontsize=8, color="#555", va="top")
    for row, image in enumerate(images):
        top = height - head - row * row_height
        words = textwrap.shorten(image.caption, 28 * columns, placeholder=" …").replace("$", r"\$")
        figure.text(_GAP / width, (top - 0.02) / height, words, fontsize=8, va="top")
        for column, word in enumerate([None, *image.words]):
            left, bottom = _GAP + column * (_PANEL + _GAP), top - 0.36 - _PANEL
            place = (left / width, bottom / height, _PANEL / width, _PANEL / height)
            axes = figure.add_axes(place)
            axes.set_axis_off()
            _panel(axes, image.pixels, word)
    buffer = io.BytesIO()
    # No date or version in the file: the same maps give the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def pointed_patch(values: Floats) -> tuple[int, int]:
    """Return (row, column) of the largest value, the first of equals."""
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return int(row), int(column)


def _panel(axes: object, pixels: Pixels, word: PointedWord | None) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    if word is None:
        axes.imshow(pixels)
        return
    grey = np.repeat(pixels.mean(2, keepdims=True), 3, 2)
    axes.imshow((96 + 0.62 * grey).clip(0, 255).astype(np.uint8))
    rows, columns = word.values.shape
    step = pixels.shape[0] / rows, pixels.shape[1] / columns
    above = (word.values - word.values.mean()).clip(min=0)
    extent = (-0.5, pixels.shape[1] - 0.5, pixels.shape[0] - 0.5, -0.5)
    alpha = 0.75 * above / max(float(above.max()), 1e-6)
    axes.imshow(np.ones_like(above), "Purples", vmin=0, vmax=1.2, alpha=alpha, extent=extent)
    for colour, thick in (("#333", 2.4), ("white", 1.2)):
        for (y0, x0), (y1, x1) in object_edges(word.patches):
            x = [x0 * step[1] - 0.5, x1 * step[1] - 0.5]
            axes.plot(x, [y0 * step[0] - 0.5, y1 * step[0] - 0.5], color=colour, linewidth=thick)
    row, column = pointed_patch(word.values)
    hit = bool(word.patches[row, column])
    axes.plot(
        [(column + 0.5) * step[1] - 0.5],
        [(row + 0.5) * step[0] - 0.5],
        "o" if hit else "X",
        color=_HIT if hit else _MISS,
        markeredgecolor="white",
        markersize=9,
    )
    said = f"{word.text}: {'hit' if hit else 'miss'}".replace("$", r"\$")
    axes.set_title(said, fontsize=8, pad=2, color=_HIT if hit else _MISS, loc="left")


def object_edges(patches: NDArray[np.bool_]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the lines, as two (row, column) corners, between patches of the object and others."""
    padded = np.pad(patches, 1)
    lines = []
    for row, column in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]).tolist():
        lines.append(((row, column), (row, column + 1)))
    for row, column in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]).tolist():
        lines.append(((row, column), (row + 1, column)))
    return lines


__all__ = [
    "MOST_WORDS",
    "PointedImage",
    "PointedWord",
    "draw_pointing",
    "object_edges",
    "pointed_patch",
]
