"""Real Hugging Face classes, tiny and randomly initialised, saved with processors built here."""

from __future__ import annotations

import io
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    GemmaTokenizer,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

SENTENCE = "a red blue green dog cat bird on the grass sand runs sits small large and"
WORDS = SENTENCE.split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[EOS]"]
SIDE, LENGTH = 32, 16
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """Return a PNG of noise."""
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer that ends every text with [EOS]."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [EOS]", special_tokens=[("[CLS]", 2), ("[EOS]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        eos_token="[EOS]",
        model_max_length=LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def _spread(model: torch.nn.Module) -> None:
    """Draw weights wide enough that different inputs have different vectors."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)


def save_clip(folder: Path) -> Path:
    """Save a CLIP."""
    words = tokenizer()
    text = {
        **TINY, "vocab_size": len(words), "max_position_embeddings": LENGTH,
        "eos_token_id": words.eos_token_id, "bos_token_id": words.cls_token_id,
        "pad_token_id": words.pad_token_id,
    }  # fmt: skip
    vision = {**TINY, "image_size": SIDE, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    _spread(model)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)
    CLIPProcessor(images, words).save_pretrained(folder)
    return folder


def gemma_tokenizer() -> GemmaTokenizer:
    """Return a tokenizer of letters, which tells capitals from others."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *string.ascii_letters]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return GemmaTokenizer(vocab=vocabulary, merges=[], padding_side="right")


def save_siglip(folder: Path, words: Any = None) -> Path:
    """Save a SigLIP: no attention mask, the last of the padded tokens is pooled."""
    words = words or tokenizer()
    words.model_input_names = ["input_ids"]
    text = {
        **TINY, "vocab_size": len(words), "max_position_embeddings": LENGTH,
        "projection_size": 32, "pad_token_id": words.pad_token_id,
        "bos_token_id": words.cls_token_id, "eos_token_id": words.eos_token_id,
    }  # fmt: skip
    vision = {**TINY, "image_size": SIDE, "patch_size": 8}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    _spread(model)
    model.save_pretrained(folder)
    images = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    SiglipProcessor(images, words).save_pretrained(folder)
    return folder


def save_bert(folder: Path) -> Path:
    """Save a text encoder."""
    words = tokenizer()
    model = BertModel(
        BertConfig(**TINY, vocab_size=len(words), max_position_embeddings=LENGTH, pad_token_id=0)
    )
    _spread(model)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
