"""Hugging Face text encoders, frozen: T5's encoder half, or any model `AutoModel` can load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.settings import ConfigError
from tcjepa.text import Recent, TextBatch, TextConfig, distinct, to_device
from tcjepa.text_packing import pack

#: Tokens of one forward pass, padding included: fills a GPU, and is a few hundred MB of activations
TOKENS_PER_CHUNK = 16384
#: Without packing, captions of one chunk differ in length by at most this share.
LENGTH_SPREAD: Final = 0.1
#: Models whose captions can share a row, and from where they count positions. None: they look at
#: differences of positions only, which are the same anywhere in a row.
PACKED: Final[dict[str, Literal["zero", "after padding"] | None]] = {
    "t5": None,
    "mt5": None,
    "bert": "zero",
    "electra": "zero",
    "roberta": "after padding",
    "xlm-roberta": "after padding",
}

#: Names of the modules that hold a vector per position, in transformers' models.
_POSITIONS: Final = ("position_embeddings", "position_embedding", "embed_positions", "wpe")


class HuggingFaceEncoder:
    """Last hidden states of a frozen transformer, one per token ("word").

    Captions are encoded once per batch and kept by an LRU cache. Several share a row of tokens
    (`tcjepa.text_packing`) where the model's positions allow it; else they go in chunks of nearly
    equal length. Special tokens (CLS, SEP, end of sentence) go through the model, which was trained
    with them, and are then dropped: attention is to words, and a caption without a word counts as
    none. The model is moved to the device of the first `encode`.

    On a CPU, cached captions are encoded one by one, at about twice the cost. The last bits of a
    state depend on the shapes of the matrix products that made it; a resumed run, whose cache is
    empty, would make it in other company and so not repeat its losses bit for bit.
    """

    def __init__(self, config: TextConfig, tokenizer: Any, model: Any) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._model = model.requires_grad_(False).eval()
        self._kind = str(model.config.model_type)
        self._packs = self._kind in PACKED and _takes_row_masks(self._kind)
        self.width = int(model.config.hidden_size)
        self._device: torch.device | None = None
        self._cache: Recent[Tensor] = Recent(config.cache)

    @classmethod
    def load(cls, config: TextConfig) -> HuggingFaceEncoder:
        """Return the encoder of a name or folder.

        Raises `ConfigError` if it cannot be loaded or has no positions for `max_words`.
        """
        tokenizer, model = _load(config.encoder)
        most = _most_tokens(model)
        words = None if most is None else most - tokenizer.num_special_tokens_to_add()
        if words is not None and config.max_words > words:
            raise ConfigError(
                f"text.max_words={config.max_words}: text.encoder={config.encoder} has positions "
                f"for {words} words beside its special tokens; set text.max_words={words} or less"
            )
        return cls(config, tokenizer, model)

    @property
    def model(self) -> torch.nn.Module:
        """Return the transformer, to count its operations."""
        module: torch.nn.Module = self._model
        return module

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

    def spans_of(self, caption: str) -> list[tuple[int, int]]:
        """Return the characters of each token but the special ones; see `TextEncoder`.

        Raises `ConfigError` if the tokenizer has no record of them (those without a `fast` form).
        """
        if not self._tokenizer.is_fast:
            raise ConfigError(
                f"text.encoder={self._config.encoder}: its tokenizer does not say which characters "
                "a token stands for; save it with a fast tokenizer (tokenizer.json)"
            )
        encoded = self._tokenizer(
            caption,
            truncation=True,
            max_length=self._config.max_words + self._tokenizer.num_special_tokens_to_add(),
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        spans = []
        for (start, end), mark in zip(
            encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
        ):
            if not mark:
                # Some tokenizers count the space before a word as its own.
                blank = len(caption[start:end]) - len(caption[start:end].lstrip())
                spans.append((start + blank, end))
        return spans

    def count_words(self, captions: Sequence[str]) -> list[int]:
        """Return the number of tokens but the special ones; any tokenizer can tell."""
        return [mark.count(0) for mark in self._tokenised(captions)[1]] if captions else []

    def _move(self, device: torch.device) -> None:
        if self._device == device:
            return
        half = self._config.dtype == "bfloat16" or (
            self._config.dtype == "auto" and device.type == "cuda"
        )
        self._model.to(device=device, dtype=torch.bfloat16 if half else torch.float32)
        self._device = device

    def _run(self, texts: list[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Yield each caption's word states (s, F), special tokens and padding left out."""
        if not texts:
            return
        lists, marks = self._tokenised(texts)
        for chunk in self._chunks([len(own) for own in lists], device):
            states, start = self._states([lists[i] for i in chunk], device)
            kept = [
                first + np.flatnonzero(np.asarray(marks[i]) == 0)
                for i, first in zip(chunk, start, strict=True)
            ]
            # Out of inference mode: a new tensor, which autograd may save.
            numbers = to_device(np.concatenate(kept).astype(np.int64), device)
            parts = torch.split(states.index_select(0, numbers), [len(own) for own in kept])
            # A cached view would keep its whole chunk alive; one kernel copies them all.
            copies = torch._foreach_mul(parts, 1.0)
            yield from zip((texts[i] for i in chunk), copies, strict=True)

    def _tokenised(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Return the tokens of each caption, and marks that are 1 at special ones."""
        encoded = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self._config.max_words + self._tokenizer.num_special_tokens_to_add(),
            return_special_tokens_mask=True,
        )
        return encoded["input_ids"], encoded["special_tokens_mask"]

    def _chunks(self, lengths: list[int], device: torch.device) -> Iterator[list[int]]:
        """Yield the captions of each forward pass."""
        if device.type == "cpu" and self._config.cache:
            yield from ([i] for i in range(len(lengths)))
            return
        packs = self._packs
        order = range(len(lengths))
        chunk: list[int] = []
        total = 0
        for i in order if packs else sorted(order, key=lengths.__getitem__):
            tokens = total if packs else len(chunk) * lengths[i]
            uneven = chunk and not packs and lengths[i] > (1 + LENGTH_SPREAD) * lengths[chunk[0]]
            if chunk and (uneven or tokens + lengths[i] > TOKENS_PER_CHUNK):
                yield chunk
                chunk, total = [], 0
            chunk.append(i)
            total += lengths[i]
        yield chunk

    def _states(
        self, lists: list[list[int]], device: torch.device
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """Return last hidden states (tokens, F) of token lists, and where each list begins."""
        if len(lists) == 1:
            arguments, start = {"input_ids": np.array(lists)}, np.zeros(1, dtype=np.int64)
        elif self._packs:
            arguments, start = self._packed(lists)
        else:
            arguments, start = self._padded(lists)
        tensors = {name: to_device(value, device) for name, value in arguments.items()}
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            if "owner" in tensors:
                tensors["attention_mask"] = _blocks(tensors.pop("owner"), self._model.dtype)
            states: Tensor = self._model(**tensors).last_hidden_state
        return states.flatten(0, 1), start

    def _packed(self, lists: list[list[int]]) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
        packing = pack(lists)
        arguments = {"input_ids": packing.tokens, "owner": packing.owner}
        first = PACKED[self._kind]
        if first is not None:
            after = self._model.config.pad_token_id + 1 if first == "after padding" else 0
            arguments["position_ids"] = packing.positions + after
        return arguments, packing.start

    def _padded(self, lists: list[list[int]]) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
        longest = max(map(len, lists))
        tokens = np.full((len(lists), longest), self._tokenizer.pad_token_id or 0, dtype=np.int64)
        mask = np.zeros_like(tokens)
        for row, own in enumerate(lists):
            tokens[row, : len(own)] = own
            mask[row, : len(own)] = 1
        return {"input_ids": tokens, "attention_mask": mask}, np.arange(len(lists)) * longest


def _blocks(owner: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention scores (rows, 1, length, length): captions see themselves.

    Padding sees padding, so that no row of a softmax is empty.
    """
    apart = owner.unsqueeze(1) != owner.unsqueeze(2)
    mask = torch.zeros(apart.shape, dtype=dtype, device=owner.device)
    return mask.masked_fill_(apart, torch.finfo(dtype).min).unsqueeze(1)


def _most_tokens(model: Any) -> int | None:
    """Return the length of text that a model has positions for; None if any length is fine."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _POSITIONS and isinstance(module, torch.nn.Embedding):
            # RoBERTa counts positions from behind its padding's.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return min(module.num_embeddings - first, int(model.config.max_position_embeddings))
    return None


def _takes_row_masks(kind: str) -> bool:
    """Return whether this transformers' model takes a mask of its own per row and token.

    T5 of transformers 4 makes its mask from a padding mask only.
    """
    import transformers

    return kind not in ("t5", "mt5") or int(transformers.__version__.partition(".")[0]) >= 5


def _load(name: str) -> tuple[Any, Any]:
    """Return (tokenizer, model) of a name or folder; raises `ConfigError`."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer, MT5EncoderModel, T5EncoderModel

    # AutoModel would load T5's decoder too.
    halves = {"t5": T5EncoderModel, "mt5": MT5EncoderModel}
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type not in halves and (
            getattr(config, "is_encoder_decoder", False) or not hasattr(config, "hidden_size")
        ):
            raise ValueError(f"a {config.model_type} is no text encoder by itself")
        tokenizer = AutoTokenizer.from_pretrained(name)
        return tokenizer, halves.get(config.model_type, AutoModel).from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"text.encoder: cannot load {name!r} ({first}); give a local folder saved with "
            "save_pretrained (model and tokenizer), a Hugging Face name this machine can download "
            "or has cached, or `hashed`, which needs no weights"
        ) from error


def _pad(
    rows: list[Tensor], caption: NDArray[np.int64], device: torch.device, width: int
) -> TextBatch:
    """Return rows (s, F) padded to one length."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    S = max([1, *lengths.tolist()])
    words = torch.zeros(len(rows), S, width, device=device, dtype=rows[0].dtype if rows else None)
    valid = np.arange(S) < lengths[:, None]
    if lengths.any():
        numbers = to_device(np.flatnonzero(valid), device)
        words.view(-1, width).index_copy_(0, numbers, torch.cat(rows))
    return TextBatch(words, to_device(valid, device), to_device(caption, device))


__all__ = ["TOKENS_PER_CHUNK", "HuggingFaceEncoder"]
