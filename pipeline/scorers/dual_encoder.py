"""Images and captions as unit vectors of one space, by a CLIP-like model.

Any transformers model with `get_image_features` and `get_text_features`: CLIP (Radford et al. 2021,
arXiv 2103.00020), SigLIP (Zhai et al. 2023, arXiv 2303.15343), SigLIP 2 (arXiv 2502.14786) and
others. Pictures and captions are prepared by the model's own processor.

Dimensions: n items, D width of the space.
"""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.scorers.batching import in_batches, torch_device, torch_dtype
from pipeline.scorers.embedding import EmbedConfig
from pipeline.scorers.model_check import check_dual_encoder, first_line
from pipeline.settings import ConfigError

Floats = NDArray[np.float32]
_LOADING: Final = threading.Lock()
#: Threads that decode and resize pictures; both work outside the interpreter's lock.
_PREPARERS: Final = min(8, os.cpu_count() or 1)

#: Images that are not embedded: processors take a side of 1 or 3 pixels for the colours, and resize
#: the shorter side, which makes a strip of 10,000 x 8 px a picture of 10⁸.
_SHORTEST: Final = 8  # px
_LONGEST_ASPECT: Final = 20.0


def load_dual_encoder(config: EmbedConfig) -> DualEncoder:
    """Return the model of this process, loading it if it is not the one loaded last.

    Raises `ConfigError` if it is not to be had or has no two towers.
    """
    with _LOADING:
        return _load(config.model_dump_json(exclude={"resources"}))


@functools.lru_cache(maxsize=1)
def _load(settings: str) -> DualEncoder:
    return DualEncoder(EmbedConfig.model_validate_json(settings))


class DualEncoder:
    """A loaded model with its processor, in evaluation mode; `width` is D."""

    def __init__(self, config: EmbedConfig) -> None:
        from transformers import AutoModel, AutoProcessor

        check_dual_encoder("embed", config.model)
        self.config = config
        self.device = torch_device(config.device, "embed")
        self.dtype = torch_dtype(config.dtype, self.device)
        source = {"pretrained_model_name_or_path": config.model, "revision": config.revision}
        try:
            self.processor: Any = AutoProcessor.from_pretrained(**source)
            model: Any = AutoModel.from_pretrained(**source, dtype=self.dtype)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(
                f"embed.model: {config.model} cannot be loaded as a CLIP-like model "
                f"({first_line(error)}); give a hub name this machine can reach, or a folder "
                "written by save_pretrained of the model and its processor"
            ) from error
        if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
            raise ConfigError(
                f"embed.model: {config.model} is a {type(model).__name__}, which has no image and "
                "text tower; give a CLIP-like model such as openai/clip-vit-base-patch32"
            )
        self.model = model.eval().to(self.device)
        self._lowers = _reads_lowercase(model.config.model_type, self.processor)
        self._length = int(model.config.text_config.max_position_embeddings)
        self.width = int(self.texts(["a"]).shape[1])

    def images(self, encoded: Sequence[bytes]) -> tuple[Floats, NDArray[np.bool_]]:
        """Return (n, D) float32 unit vectors of encoded images, and (n,) which have one.

        Rows of zeros could not be decoded, or are slivers (`_SHORTEST`, `_LONGEST_ASPECT`).
        """
        with ThreadPoolExecutor(_PREPARERS) as pool:
            prepared = list(pool.map(self._prepare, encoded))
        sound = np.array([inputs is not None for inputs in prepared], bool)
        whole = [inputs for inputs in prepared if inputs is not None]
        vectors = in_batches(whole, self.config.batch_size, self._run_images)
        found = np.zeros((len(prepared), self.width), np.float32)
        if whole:
            found[sound] = vectors
        return found, sound

    def texts(self, texts: Sequence[str]) -> Floats:
        """Return (n, D) float32 unit vectors of captions, cut to what the model can read.

        Captions are padded to the model's full length, as SigLIP was trained, so that a vector
        does not depend on how long the captions of its batch are.
        """
        return in_batches(texts, self.config.batch_size, self._run_texts)

    def _prepare(self, data: bytes) -> dict[str, Any] | None:
        """Return one image as the model takes it, so that its full size is soon forgotten."""
        picture = _decode(data)
        if picture is None:
            return None
        return dict(self.processor(images=picture, return_tensors="pt"))

    def _run_images(self, prepared: Sequence[dict[str, Any]]) -> Floats:
        import torch

        inputs = {name: torch.cat([one[name] for one in prepared]) for name in prepared[0]}
        return self._vectors(self.model.get_image_features, inputs)

    def _run_texts(self, texts: Sequence[str]) -> Floats:
        inputs = self.processor(
            text=[text.lower() for text in texts] if self._lowers else list(texts),
            padding="max_length",
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        )
        return self._vectors(self.model.get_text_features, inputs)

    def _vectors(self, tower: Any, inputs: Any) -> Floats:
        import torch

        given = {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        with torch.inference_mode():
            output = tower(**given)
            # transformers 4 returns the projected vectors, 5 an output that holds them.
            vectors = getattr(output, "pooler_output", output)
            vectors = torch.nn.functional.normalize(vectors.float(), dim=-1)
        found: Floats = vectors.cpu().numpy()
        return found


def _reads_lowercase(model_type: str, processor: Any) -> bool:
    """Return whether a model was trained on lowercased text and its tokenizer leaves case alone.

    So are SigLIP 2's checkpoints of fixed resolution, which come as a SigLIP with the tokenizer of
    Gemma (transformers' documentation of SigLIP 2). Tokenizers of SigLIP's own lowercase.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    return model_type in ("siglip", "siglip2") and "Gemma" in type(tokenizer).__name__


def _decode(data: bytes) -> Any | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as picture:
            short, long = sorted(picture.size)
            if short < _SHORTEST or long > _LONGEST_ASPECT * short:
                return None
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
