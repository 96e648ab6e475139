"""Captions and text encoders for measuring, where neither data nor weights are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from tcjepa import keyed
from tcjepa.text import TextBatch, TextConfig, TextEncoder, open_text_encoder

#: T5's vocabulary, without what it holds for other tasks [words]
VOCABULARY: Final = 32000
#: Deviation of a caption's length over its mean: Flickr8k's human captions have 14.5 ± 4.1 tokens.
SPREAD: Final = 0.28


def captions_of(batch: int, images: int, each: int, words: float) -> list[list[str]]:
    """Return `each` captions per image, of `words` words on average, a pure function of the rest.

    A word is one token of the encoder that `open_or_imitate` makes up. No two captions are equal.
    """
    draw = np.random.Generator(np.random.Philox(key=keyed.key("bench captions", batch)))
    lengths = draw.normal(words, SPREAD * words, (images, each)).round().clip(2, None).astype(int)
    return [
        [
            " ".join(f"w{number}" for number in draw.integers(0, VOCABULARY, length))
            for length in own
        ]
        for own in lengths
    ]


def open_or_imitate(config: TextConfig) -> TextEncoder:
    """Return the config's encoder without a cache, if it is `hashed` or a local folder.

    Nothing is downloaded: for a name, the encoder has the sizes of t5-base and random weights, and
    a tokenizer of one token per word.
    """
    uncached = config.model_copy(update={"cache": 0})
    if config.encoder == "hashed" or Path(config.encoder).is_dir():
        return open_text_encoder(uncached)
    from tcjepa.text_huggingface import HuggingFaceEncoder

    words = [f"w{number}" for number in range(VOCABULARY)]
    return HuggingFaceEncoder(uncached, _tokenizer(words), _t5_base())


def save_t5(folder: Path, words: Sequence[str]) -> None:
    """Save an encoder of t5-base's sizes with random weights that knows `words`."""
    _tokenizer(words).save_pretrained(folder)
    _t5_base().save_pretrained(folder)


def is_imitated(config: TextConfig) -> bool:
    """Return whether `open_or_imitate` makes the encoder up."""
    return config.encoder != "hashed" and not Path(config.encoder).is_dir()


class GivenWords:
    """A text encoder that has encoded everything before: its words cost nothing."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.width = encoder.width
        self._encoder = encoder
        self._known: dict[str, TextBatch] = {}

    def encode(self, captions: Sequence[Sequence[str]], device: torch.device) -> TextBatch:
        """Return the words of B lists of captions; see `TextEncoder`."""
        key = captions[0][0] if captions and captions[0] else ""
        if key not in self._known:
            self._known[key] = self._encoder.encode(captions, device)
        return self._known[key]

    def spans_of(self, caption: str) -> list[tuple[int, int]]:
        """Return the characters of each word; see `TextEncoder`."""
        return self._encoder.spans_of(caption)

    def count_words(self, captions: Sequence[str]) -> list[int]:
        """Return the number of words of each caption; see `TextEncoder`."""
        return self._encoder.count_words(captions)


def _t5_base() -> Any:
    from transformers import T5Config, T5EncoderModel

    sizes = T5Config(
        vocab_size=VOCABULARY + 2, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12
    )
    return T5EncoderModel(sizes)


def _tokenizer(words: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = ["<pad>", "</s>", *words]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, "<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")


__all__ = ["GivenWords", "captions_of", "is_imitated", "open_or_imitate", "save_t5"]
