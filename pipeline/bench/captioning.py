"""What captioning costs beside the model's own `generate`, on a model that is made on the spot."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.captioners.answers import Answers
from pipeline.captioners.loaded import load_model
from pipeline.captioners.request import CaptionRequest
from pipeline.captioners.transformers import TransformersCaptioner, TransformersConfig
from pipeline.timing import Bench, Case, measure

_BASELINE = "generate alone, inputs laid out"
_PROMPT = "a photo of"
_BATCH = 8
_TOKENS = 24
_WORDS = 2000
# A vision encoder and a text decoder of 3 million weights each: on one CPU core a batch takes most
# of a second, as one of a real model does on a GPU, and so the share of all else is realistic.
_SIDE = 224
_WIDTH = 256
_SHAPE = {
    "hidden_size": _WIDTH, "intermediate_size": 4 * _WIDTH, "num_hidden_layers": 4,
    "num_attention_heads": 4,
}  # fmt: skip


def bench_captioning(count: int, rounds: int, warm_up: bool = True) -> Bench:
    """Compare ways of captioning `count` images of 512×384 pixels, in tokens per second.

    On a CPU the model gets all cores but one, as on a GPU machine, whose cores are free for the
    rest. All run the same BLIP of random weights on the same batches and write the same tokens. The
    baseline has nothing to do but `generate`; the plain loop also decodes, lays out, and turns
    tokens into text, one after the other; the captioner does all that and makes captions of it.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    try:
        return _bench([_jpeg(seed) for seed in range(count)], rounds, warm_up)
    finally:
        torch.set_num_threads(threads)


def _bench(images: Sequence[bytes], rounds: int, warm_up: bool) -> Bench:
    with tempfile.TemporaryDirectory() as folder:
        _save_model(Path(folder))
        config = TransformersConfig(
            model=folder,
            prompts={"short": _PROMPT},
            batch_size=_BATCH,
            max_new_tokens=_TOKENS,
        )
        model = load_model(config.model, config.dtype, config.device)
        batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        ready = [_laid_out(model, batch) for batch in batches]
        captioner = TransformersCaptioner(config)
        requests = [CaptionRequest(str(n), image, None) for n, image in enumerate(images)]

        def captions() -> int:
            answers = Answers()
            captioner.caption(requests, answers)
            return answers.costs.tokens

        def plain() -> int:
            return sum(_generated(model, _laid_out(model, batch), text=True) for batch in batches)

        cases = [
            Case(_BASELINE, lambda: sum(_generated(model, inputs, text=False) for inputs in ready)),
            Case("plain loop, one thing after the other", plain),
            Case("our captioner", captions),
        ]
        counts = {case.run() for case in cases}
        if len(counts) > 1:
            raise RuntimeError(f"the cases wrote different numbers of tokens: {counts}")
        return measure(
            "captioning", "tokens/s", cases, rounds, baseline=_BASELINE, warm_up=warm_up
        )  # fmt: skip


def _laid_out(model: Any, batch: Sequence[bytes]) -> dict[str, Any]:
    from PIL import Image

    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in batch]
    encoded = model.processor(
        images=pictures, text=[_PROMPT] * len(pictures), padding=True, return_tensors="pt"
    )
    wide = {n: v.to(model.device, model.dtype) for n, v in encoded.items() if v.is_floating_point()}
    return {**{n: v.to(model.device) for n, v in encoded.items()}, **wide}


def _generated(model: Any, inputs: dict[str, Any], *, text: bool) -> int:
    """Run the model and return the number of tokens it wrote."""
    import torch

    with torch.inference_mode():
        output = model.model.generate(**inputs, max_new_tokens=_TOKENS, do_sample=False)
    # BLIP repeats the prompt, its separator taken away.
    written = output[:, inputs["input_ids"].shape[1] - 1 :].tolist()
    if text:
        model.tokenizer.batch_decode(output, skip_special_tokens=True)
    return sum(map(len, written))


def _jpeg(seed: int) -> bytes:
    from PIL import Image

    coarse = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((512, 384), Image.Resampling.BICUBIC)
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=95)
    return sink.getvalue()


def _save_model(folder: Path) -> None:
    """Save a BLIP of random weights that never ends by itself, and its processor."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
        PreTrainedTokenizerFast,
    )

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [*special, *_PROMPT.split(), *(f"word{n}" for n in range(_WORDS))]
    inner = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip
    text = {
        **_SHAPE, "vocab_size": len(words), "encoder_hidden_size": _WIDTH,
        "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0,
    }  # fmt: skip
    vision = {**_SHAPE, "image_size": _SIDE, "patch_size": 16}
    # The weights are not what is measured, but everybody's global generator is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[3] = -1e4  # no answer ends early
    model.save_pretrained(folder)
    size = {"height": _SIDE, "width": _SIDE}
    BlipProcessor(BlipImageProcessor(size=size), tokenizer).save_pretrained(folder)
