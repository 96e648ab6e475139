"""Text encoders of a few thousand weights, saved as Hugging Face folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ByT5Tokenizer,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def vocabulary_size(words: Sequence[str]) -> int:
    """Return how many tokens a tokenizer of `save_tokenizer` knows."""
    return len(_SPECIAL) + len(words)


def save_tokenizer(folder: Path, words: Sequence[str], *, end_only: bool) -> None:
    """Save a tokenizer of one token per word, with an end token and maybe one before the words."""
    known = {word: number for number, word in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(known, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "$A [SEP]" if end_only else "[CLS] $A [SEP]"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]",
    ).save_pretrained(folder)  # fmt: skip


def save_t5(folder: Path, words: Sequence[str], *, multilingual: bool = False) -> None:
    """Save a whole T5 or mT5, decoder included, and its tokenizer; torch draws the weights."""
    config, model = T5Config, T5ForConditionalGeneration
    if multilingual:
        config, model = MT5Config, MT5ForConditionalGeneration
    sizes = config(
        vocab_size=vocabulary_size(words), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    model(sizes).save_pretrained(folder)
    save_tokenizer(folder, words, end_only=True)


def save_seeded_t5(folder: Path, words: Sequence[str]) -> Path:
    """Save the same T5 each time, and return its folder."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        save_t5(folder, words)
    return folder


def save_byt5(folder: Path) -> Path:
    """Save a T5 that reads bytes, whose tokenizer has no fast form, and return its folder."""
    tokenizer = ByT5Tokenizer()
    sizes = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    T5EncoderModel(sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
