"""Captions as unit vectors, by a text encoder: tokens' last states, mean-pooled (Reimers & Gurevych
2019, arXiv 1908.10084). Any Hugging Face encoder; those trained for sentences work best.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.scorers.batching import in_batches, torch_device, torch_dtype
from pipeline.scorers.config import EncoderAgreementConfig
from pipeline.scorers.model_check import check_text_encoder, first_line
from pipeline.settings import ConfigError

Floats = NDArray[np.float32]
_KEY: Final = "score.agreement"
_LOADING: Final = threading.Lock()
_MOST_TOKENS: Final = 256  # per caption; what sentence encoders were trained with


def load_text_encoder(config: EncoderAgreementConfig) -> TextEncoder:
    """Return the model of this process, loading it if it is not the one loaded last.

    Raises `ConfigError` if it is not to be had.
    """
    with _LOADING:
        return _load(config.model_dump_json(exclude={"resources"}))


@functools.lru_cache(maxsize=1)
def _load(settings: str) -> TextEncoder:
    return TextEncoder(EncoderAgreementConfig.model_validate_json(settings))


class TextEncoder:
    """A loaded encoder with its tokenizer, in evaluation mode."""

    def __init__(self, config: EncoderAgreementConfig) -> None:
        from transformers import AutoModel, AutoTokenizer

        check_text_encoder(_KEY, config.model)
        self.config = config
        self.device = torch_device(config.device, _KEY)
        source = {"pretrained_model_name_or_path": config.model, "revision": config.revision}
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(**source)
            dtype = torch_dtype(config.dtype, self.device)
            model: Any = AutoModel.from_pretrained(**source, dtype=dtype)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(
                f"{_KEY}.model: {config.model} cannot be loaded as a text encoder "
                f"({first_line(error)}); give a hub name this machine can reach, or a folder "
                "written by save_pretrained of the model and its tokenizer"
            ) from error
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        self.model = model.eval().to(self.device)
        longest = getattr(model.config, "max_position_embeddings", None) or _MOST_TOKENS
        self._length = int(min(longest, self.tokenizer.model_max_length, _MOST_TOKENS))

    def encode(self, texts: Sequence[str]) -> Floats:
        """Return (n, D) float32 unit vectors of n captions, 5 decimals, in their order."""
        # Captions of like length share a batch: less padding, and batches that do not depend on
        # the order in which captions come.
        order = sorted(range(len(texts)), key=lambda number: (len(texts[number]), texts[number]))
        vectors = in_batches([texts[i] for i in order], self.config.batch_size, self._run)
        found = np.empty_like(vectors)
        found[order] = np.round(vectors, 5)
        return found

    def _run(self, texts: Sequence[str]) -> Floats:
        import torch

        inputs = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._length,
            return_tensors="pt",
        ).to(self.device)  # fmt: skip
        with torch.inference_mode():
            states = self.model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None].float()
            pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            vectors = torch.nn.functional.normalize(pooled, dim=-1)
        found: Floats = vectors.cpu().numpy()
        return found
