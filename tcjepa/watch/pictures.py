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
#: Orange against purple, which every colour vision tells apart (ColorBrewer).
_COLOURS = "PuOr_r"


def draw(image: Pixels, caption: str, words: Sequence[tuple[str, Floats]], title: str) -> bytes:
    """Return a PNG: the image (H, W, 3), then each word's map (rows, columns) laid over it.

    Colours say how far a patch's cosine lies from the word's mean over the image, on one scale for
    all words: cosines differ far more between words, which may all be negative, than between the
    patches of one. The mean stands beside the word. Where a patch is like all others, the image
    shows through.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    panels = 1 + len(words)
    columns = min(_COLUMNS, panels)
    rows = -(-panels // columns)
    lines = textwrap.wrap(caption, 24 * columns) or [""]
    head = 0.34 + 0.19 * len(lines)
    height = rows * (_PANEL + 0.28) + head + 0.1
    width = columns * (_PANEL + 0.1) + 0.95
    figure = Figure((width, height), dpi=_DOTS, facecolor="white")
    FigureCanvasAgg(figure)
    centred = [values - values.mean() for _, values in words]
    most = max([1e-6, *(float(np.abs(values).max()) for values in centred)])
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
        values = centred[number - 1]
        extent = (0, image.shape[1], image.shape[0], 0)
        axes.imshow(_faded(image), extent=extent)
        alpha = np.clip(np.abs(values) / most, 0.1, 0.85)
        axes.imshow(values, _COLOURS, vmin=-most, vmax=most, alpha=alpha, extent=extent)
        word, own = words[number - 1]
        mean = f"{float(own.mean()):+.2f}".replace("-", "\N{MINUS SIGN}")
        axes.set_title(_plain(word), fontsize=10, pad=3, weight="bold", loc="left")
        axes.set_title(f"mean {mean}", fontsize=7, pad=3, loc="right", color="#555")
    top = 1 - 0.08 / height
    figure.text(0.1 / width, top, title, fontsize=8, color="#555", va="top")
    figure.text(0.1 / width, top - 0.2 / height, _plain("\n".join(lines)), fontsize=9, va="top")
    if words:
        span = min(rows * (_PANEL + 0.28) - 0.28, 2 * _PANEL)
        place = ((width - 0.75) / width, (height - head - span - 0.28) / height)
        bar = figure.add_axes((*place, 0.11 / width, span / height))
        figure.colorbar(ScalarMappable(Normalize(-most, most), _COLOURS), cax=bar)
        bar.tick_params(labelsize=7)
        bar.set_title("cosine\n− mean", fontsize=7, pad=5)
    buffer = io.BytesIO()
    # No date or version in the file: the same maps give the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def pixels(png: bytes) -> Pixels:
    """Return the pixels (H, W, 3) of a PNG."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as opened:
        return np.asarray(opened.convert("RGB"))


def _faded(image: Pixels) -> Pixels:
    """Return the image in grey and lighter, for colours to lie on."""
    grey = np.repeat(image.mean(2, keepdims=True), 3, 2)
    return (96 + 0.62 * grey).clip(0, 255).astype(np.uint8)


def _plain(text: str) -> str:
    """Return text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


__all__ = ["draw", "pixels"]
