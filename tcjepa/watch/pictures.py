"""Patch-word maps drawn over their image, one panel per word."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

_PANEL = 1.9
_COLUMNS = 4
_DOTS = 110
#: Perceptually even and legible for every colour vision (matplotlib's successor of viridis).
_COLOURS = "cividis"


def draw(image: Pixels, caption: str, words: Sequence[tuple[str, Floats]], title: str) -> bytes:
    """Return a PNG: the image (H, W, 3), then each word's map (rows, columns) laid over it.

    All panels share one scale of cosines, given by the colour bar; zero is always on it, so that
    words that nothing resembles look empty.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = 1 + len(words)
    columns = min(_COLUMNS, panels)
    rows = -(-panels // columns)
    lines = textwrap.wrap(caption, 24 * columns) or [""]
    head = 0.34 + 0.19 * len(lines)
    height = rows * (_PANEL + 0.28) + head + 0.1
    width = columns * (_PANEL + 0.1) + 0.75
    figure = Figure((width, height), dpi=_DOTS, facecolor="white")
    FigureCanvasAgg(figure)
    low = min([0.0, *(float(values.min()) for _, values in words)])
    high = max([1e-6, *(float(values.max()) for _, values in words)])
    shown = None
    for number in range(panels):
        row, column = divmod(number, columns)
        left = (0.1 + column * (_PANEL + 0.1)) / width
        bottom = (height - head - (row + 1) * (_PANEL + 0.28) + 0.02) / height
        axes = figure.add_axes((left, bottom, _PANEL / width, _PANEL / height))
        axes.set_axis_off()
        if number == 0:
            axes.imshow(image)
            axes.set_title("image", fontsize=9, pad=3, color="#555")
            continue
        word, values = words[number - 1]
        extent = (0, image.shape[1], image.shape[0], 0)
        axes.imshow(np.repeat(image.mean(2, keepdims=True), 3, 2).astype(np.uint8), extent=extent)
        shown = axes.imshow(
            values, _COLOURS, vmin=low, vmax=high, alpha=0.72, extent=extent,
            interpolation="nearest",
        )  # fmt: skip
        axes.set_title(_plain(word), fontsize=10, pad=3, weight="bold")
    top = 1 - 0.08 / height
    figure.text(0.1 / width, top, title, fontsize=8, color="#555", va="top")
    figure.text(0.1 / width, top - 0.2 / height, _plain("\n".join(lines)), fontsize=9, va="top")
    if shown is not None:
        span = rows * (_PANEL + 0.28) - 0.28
        bar = figure.add_axes(
            ((width - 0.62) / width, 0.12 / height, 0.11 / width, min(span, 4.0) / height)
        )
        figure.colorbar(shown, cax=bar).ax.tick_params(labelsize=7)
        bar.set_title("cosine", fontsize=7, pad=4)
    buffer = io.BytesIO()
    # No date or version in the file: the same maps give the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def pixels(png: bytes) -> Pixels:
    """Return the pixels (H, W, 3) of a PNG."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as opened:
        return np.asarray(opened.convert("RGB"))


def _plain(text: str) -> str:
    """Return text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


__all__ = ["draw", "pixels"]
