"""Attention images of a run: a few held images and what their patches make of the caption's words.

Files are `attention/step-00000500-<uid>.png` in the run directory. Captions are the best ones and
carry no noise; images get the evaluation crop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.storage import Directory
from tcjepa.config import TrainConfig
from tcjepa.data.index import ShardIndex
from tcjepa.data.labelled import labelled
from tcjepa.model.jepa import TCJEPA, normalise
from tcjepa.text import TextBatch, TextEncoder
from tcjepa.watch.attention import word_maps
from tcjepa.watch.pictures import draw
from tcjepa.watch.words import Word, content_words

FOLDER = "attention"
#: Words shown of a caption: with the image itself two rows of four panels [words]
MOST_WORDS = 7


@dataclass(frozen=True)
class _Held:
    uid: str
    image: Tensor  # (3, H, H) uint8
    caption: str
    words: list[Word]


class AttentionImages:
    """Draws the same images again and again, as a run learns.

    The images are the first `train.attention_images` rows of the index that have a caption with a
    word in it.
    """

    def __init__(
        self,
        config: TrainConfig,
        index: ShardIndex,
        text: TextEncoder,
        encode: Callable[[list[list[str]]], TextBatch],
        device: torch.device,
    ) -> None:
        self._config, self._index, self._device = config, index, device
        self._text, self._encode = text, encode
        self._held: list[_Held] | None = None

    def draw(self, model: TCJEPA, step: int, is_shown: bool = True) -> Iterator[tuple[str, bytes]]:
        """Yield (uid, PNG) of each held image after `step` optimizer steps.

        Unless `is_shown`, the maps are computed (other ranks may need this one) and not drawn.
        """
        if self._held is None:
            self._held = self._hold()
        if not self._held:
            return
        images = normalise(torch.stack([held.image for held in self._held]).to(self._device))
        text = self._encode([[held.caption] for held in self._held])
        maps = word_maps(model, images, text)
        if not is_shown:
            return
        cosine = maps.cosine[:, 0].float().cpu().numpy()
        for held, own_SP in zip(self._held, cosine, strict=True):
            panels = [
                (word.text, own_SP[list(word.pieces)].mean(0).reshape(maps.grid))
                for word in held.words
            ]
            pixels = np.ascontiguousarray(held.image.permute(1, 2, 0).numpy())
            title = f"step {step:,}   {held.uid[:12]}   mean of all conditioned layers"
            yield held.uid, draw(pixels, held.caption, panels, title)

    def _hold(self) -> list[_Held]:
        wanted = self._config.train.attention_images
        size = self._config.data.image_size
        held: list[_Held] = []
        for images, _, samples in labelled(self._index, size, wanted, self._config.data):
            for image, sample in zip(images, samples, strict=True):
                caption = best_caption(sample["captions"])
                spans = self._text.spans_of(caption)
                words = content_words(caption, spans, MOST_WORDS)
                if words and len(held) < wanted:
                    held.append(_Held(sample["uid"], image, caption, words))
            if len(held) == wanted:
                break
        return held


def best_caption(captions: Sequence[dict[str, object]]) -> str:
    """Return the text of the caption with the highest quality, the first of equals; "" of none."""

    def quality(caption: dict[str, object]) -> float:
        scores = caption.get("scores")
        value = scores.get("quality") if isinstance(scores, dict) else None
        return float(value) if value is not None else -1.0

    return str(max(captions, key=quality)["text"]) if captions else ""


def file_name(step: int, uid: str) -> str:
    """Return the name of an attention image inside `FOLDER`."""
    return f"step-{step:08d}-{uid}.png"


def save(run: str | Path, step: int, uid: str, png: bytes) -> Path:
    """Write an attention image of a run, whole or not at all; return its path."""
    folder = Directory(run) / FOLDER
    folder.write_bytes(file_name(step, uid), png)
    return Path(folder.path(file_name(step, uid)))


__all__ = ["FOLDER", "AttentionImages", "best_caption", "file_name", "save"]
