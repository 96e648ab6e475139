"""Hugging Face text encoders, frozen: T5's encoder half, or any model `AutoModel` can load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.settings import ConfigError
from tcjepa.text import Recent, TextBatch, TextConfig, distinct

#: Padded tokens of one forward pass: fills a GPU, and is a few hundred MB of activations [tokens]
TOKENS_PER_CHUNK = 16384


class HuggingFaceEncoder:
    """Last hidden states of a frozen transformer, one per token ("word").

    Captions are encoded once per batch, in chunks of similar length, so that hardly any padding is
    computed, and kept by an LRU cache. Special tokens (CLS, SEP, end of sentence) go through the
    model, which was trained with them, and are then dropped: attention is to words, and a caption
    without a word counts as none. The model is loaded at construction and moved to the device of
    the first `encode`.
    """

    def __init__(self, config: TextConfig) -> None:
        self._config = config
        self._tokenizer, self._model = _load(config.encoder)
        self._model.requires_grad_(False).eval()
        self.width = int(self._model.config.hidden_size)
        self._device: torch.device | None = None
        self._cache: Recent[Tensor] = Recent(config.cache)

    def encode(self, captions: Sequence[Sequence[str]], device: torch.device) -> TextBatch:
        """Return words of B lists of captions; see `TextEncoder`."""
        self._move(device)
        texts, caption = distinct(captions)
        rows = {text: self._cache.get(text) for text in texts}
        missing = [text for text, row in rows.items() if row is None]
        for text, row in self._run(missing, device):
            rows[text] = row
            self._cache.put(text, row)
        return _pad([row for row in rows.values() if row is not None], caption, device, self.width)

    def _move(self, device: torch.device) -> None:
        if self._device == device:
            return
        half = self._config.dtype == "bfloat16" or (
            self._config.dtype == "auto" and device.type == "cuda"
        )
        self._model.to(device=device, dtype=torch.bfloat16 if half else torch.float32)
        self._device = device

    def _run(self, texts: list[str], device: torch.device) -> list[tuple[str, Tensor]]:
        """Return each caption's word states (s, F), special tokens and padding left out."""
        if not texts:
            return []
        special = self._tokenizer.num_special_tokens_to_add()
        encoded = self._tokenizer(
            texts,
            truncation=True,
            max_length=self._config.max_words + special,
            return_special_tokens_mask=True,
        )
        lengths = [len(ids) for ids in encoded["input_ids"]]
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        results = []
        for chunk in _chunks(order, lengths):
            ids = [encoded["input_ids"][i] for i in chunk]
            states = self._states(ids, device)
            marks = [encoded["special_tokens_mask"][i] for i in chunk]
            kept = [[column for column, mark in enumerate(own) if not mark] for own in marks]
            S = states.shape[1]
            flat = [row * S + column for row, columns in enumerate(kept) for column in columns]
            numbers = torch.tensor(flat, dtype=torch.int64, device=device)
            # Out of inference mode: a new tensor, which autograd may save.
            chosen = states.flatten(0, 1).index_select(0, numbers)
            parts = torch.split(chosen, [len(columns) for columns in kept])
            # A cached view would keep its whole chunk alive.
            results += [(texts[i], part.clone()) for i, part in zip(chunk, parts, strict=True)]
        return results

    def _states(self, ids: list[list[int]], device: torch.device) -> Tensor:
        """Return last hidden states (n, longest, F) of token lists."""
        longest = max(map(len, ids))
        pad = self._tokenizer.pad_token_id or 0
        tokens = torch.tensor([row + [pad] * (longest - len(row)) for row in ids], device=device)
        mask = torch.tensor(
            [[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=device
        )
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            states: Tensor = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return states


def _load(name: str) -> tuple[Any, Any]:
    """Return (tokenizer, model) of a name or folder; raises `ConfigError`."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer, T5EncoderModel

    try:
        config = AutoConfig.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
        # AutoModel would load T5's decoder too.
        cls = T5EncoderModel if config.model_type == "t5" else AutoModel
        return tokenizer, cls.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"text.encoder: cannot load {name!r} ({first}); give a local folder saved with "
            "save_pretrained (model and tokenizer), a Hugging Face name this machine can download "
            "or has cached, or `hashed`, which needs no weights"
        ) from error


def _chunks(order: list[int], lengths: list[int]) -> list[list[int]]:
    """Cut indices, sorted by length, into runs of at most TOKENS_PER_CHUNK padded tokens."""
    chunks: list[list[int]] = [[]]
    for i in order:
        if chunks[-1] and (len(chunks[-1]) + 1) * lengths[i] > TOKENS_PER_CHUNK:
            chunks.append([])
        chunks[-1].append(i)
    return chunks


def _pad(rows: list[Tensor], caption: Any, device: torch.device, width: int) -> TextBatch:
    """Return rows (s, F) padded to one length; on a GPU to a multiple of 8, for few shapes."""
    lengths = [len(row) for row in rows]
    S = max([1, *lengths])
    S = -(-S // 8) * 8 if device.type == "cuda" else S
    words = torch.zeros(len(rows), S, width, device=device, dtype=rows[0].dtype if rows else None)
    if any(lengths):
        flat = [row * S + column for row, length in enumerate(lengths) for column in range(length)]
        words.view(-1, width).index_copy_(0, torch.tensor(flat, device=device), torch.cat(rows))
    valid = torch.arange(S).unsqueeze(0) < torch.tensor(lengths, dtype=torch.int64).unsqueeze(1)
    return TextBatch(words, valid.to(device), torch.from_numpy(caption).to(device))


__all__ = ["TOKENS_PER_CHUNK", "HuggingFaceEncoder"]
