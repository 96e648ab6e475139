"""Real Hugging Face classes, tiny and randomly initialised, saved with processors built here."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipImageProcessor,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

SENTENCE = "a red blue dog cat on the grass describe image in short detail user : . runs sits"
WORDS = SENTENCE.split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[BOS]", "[EOS]", "<image>"]
TEMPLATE = (
    "{% for message in messages %}user : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
SIDE = 32
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def picture(shade: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """Return a PNG of noise around a shade."""
    pixels = np.random.RandomState(shade).randint(0, 60, (size[1], size[0], 3)) + shade
    sink = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def tokenizer(more: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer of `WORDS`, with some more special tokens."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *more, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        additional_special_tokens=["<image>", *more],
    )


def _size() -> dict[str, int]:
    return {"height": SIDE, "width": SIDE}


def save_blip(folder: Path) -> Path:
    """Save a BLIP captioner: no chat template, the prompt is continued."""
    torch.manual_seed(0)
    words = tokenizer()
    config = BlipConfig(
        text_config={
            **TINY,
            "vocab_size": len(words),
            "intermediate_size": 32,
            "encoder_hidden_size": 32,
            "projection_dim": 32,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.sep_token_id,
            "pad_token_id": words.pad_token_id,
            "sep_token_id": words.sep_token_id,
        },
        vision_config={
            **TINY, "image_size": SIDE, "patch_size": 16, "intermediate_size": 32,
            "projection_dim": 32,
        },
    )  # fmt: skip
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size=_size()), words).save_pretrained(folder)
    return folder


def save_llava(folder: Path) -> Path:
    """Save a LLaVA: a chat template, image tokens among the words."""
    torch.manual_seed(0)
    words = tokenizer()
    text = LlamaConfig(
        **TINY,
        vocab_size=len(words),
        intermediate_size=32,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    vision = CLIPVisionConfig(
        **TINY, image_size=SIDE, patch_size=16, intermediate_size=32, projection_dim=32
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(folder)
    processor = LlavaProcessor(
        CLIPImageProcessor(size=_size(), crop_size=_size()),
        words,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
    return folder


def save_vit_gpt2(folder: Path) -> Path:
    """Save a vision encoder-decoder: no prompt, image processor and tokenizer side by side."""
    torch.manual_seed(0)
    words = tokenizer()
    encoder = ViTModel(ViTConfig(**TINY, image_size=SIDE, patch_size=16, intermediate_size=32))
    decoder = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(words), n_embd=32, n_layer=1, n_head=2, n_positions=64,
            add_cross_attention=True, is_decoder=True,
            bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        )
    )  # fmt: skip
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = words.bos_token_id
        config.pad_token_id = words.pad_token_id
        config.eos_token_id = words.eos_token_id
    model.save_pretrained(folder)
    ViTImageProcessor(size=_size()).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def save_qwen2_vl(folder: Path) -> Path:
    """Save a Qwen2-VL: the number of an image's tokens depends on its size."""
    torch.manual_seed(0)
    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    words = tokenizer(marks)
    image, video, start, end = words.convert_tokens_to_ids(list(marks))
    text = {
        **TINY, "num_hidden_layers": 2, "num_key_value_heads": 2, "intermediate_size": 32,
        "vocab_size": len(words), "max_position_embeddings": 512,
        "rope_scaling": {"rope_type": "default", "type": "mrope", "mrope_section": [2, 3, 3]},
        "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }  # fmt: skip
    vision = {
        "depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 14,
        "mlp_ratio": 2,
    }  # fmt: skip
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=image, video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(folder)
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=16 * 28 * 28),
        words,
        Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE.replace("<image>", "<|vision_start|> <|image_pad|> <|vision_end|>"),
    )
    processor.save_pretrained(folder)
    return folder


def save_git(folder: Path) -> Path:
    """Save a GIT: no chat template, and a tokenizer that ends every text, as BERT's does."""
    torch.manual_seed(0)
    words = tokenizer()
    start, end = words.cls_token_id, words.sep_token_id
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", start), ("[SEP]", end)]
    )
    config = GitConfig(
        vision_config={**TINY, "intermediate_size": 32, "image_size": SIDE, "patch_size": 16},
        **TINY, intermediate_size=32, vocab_size=len(words), bos_token_id=start, eos_token_id=end,
        pad_token_id=words.pad_token_id,
    )  # fmt: skip
    GitForCausalLM(config).save_pretrained(folder)
    GitProcessor(CLIPImageProcessor(size=_size(), crop_size=_size()), words).save_pretrained(folder)
    return folder


def save_blip2(folder: Path, language: str) -> Path:
    """Save a BLIP-2 on an `opt`, whose start token is its end token too, or on a `t5`."""
    torch.manual_seed(0)
    words = tokenizer()
    end, image = words.eos_token_id, words.convert_tokens_to_ids("<image>")
    text = {"model_type": language, "vocab_size": len(words), "pad_token_id": words.pad_token_id,
            "eos_token_id": end}  # fmt: skip
    if language == "opt":
        words.bos_token = words.eos_token
        words.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="[EOS] $A", special_tokens=[("[EOS]", end)]
        )
        text |= {**TINY, "ffn_dim": 32, "word_embed_proj_dim": 32, "bos_token_id": end,
                 "max_position_embeddings": 64}  # fmt: skip
    else:
        text |= {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_kv": 16, "d_ff": 32,
                 "decoder_start_token_id": words.pad_token_id}  # fmt: skip
    vision = {**TINY, "intermediate_size": 32, "image_size": SIDE, "patch_size": 16}
    config = Blip2Config(
        vision_config=vision, text_config=text, num_query_tokens=4, image_token_index=image,
        qformer_config={**TINY, "intermediate_size": 32, "encoder_hidden_size": 32,
                        "vocab_size": 30, "cross_attention_frequency": 1},
    )  # fmt: skip
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    processor = Blip2Processor(BlipImageProcessor(size=_size()), words, num_query_tokens=4)
    processor.save_pretrained(folder)
    return folder


def save_paligemma(folder: Path) -> Path:
    """Save a PaliGemma: no chat template, image tokens before the prompt."""
    torch.manual_seed(0)
    words = tokenizer()
    more = 1300  # its processor adds 1,152 tokens of its own
    text = {
        **TINY, "model_type": "gemma", "num_key_value_heads": 1, "head_dim": 16,
        "intermediate_size": 32, "vocab_size": len(words) + more,
        "pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }  # fmt: skip
    vision = {
        **TINY, "model_type": "siglip_vision_model", "intermediate_size": 32, "image_size": SIDE,
        "patch_size": 16, "vision_use_head": False,
    }  # fmt: skip
    config = PaliGemmaConfig(
        vision_config=vision, text_config=text, projection_dim=32, hidden_size=32,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    model = PaliGemmaForConditionalGeneration(config)
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(folder)
    images = SiglipImageProcessor(size=_size())
    images.image_seq_length = 4
    PaliGemmaProcessor(images, words).save_pretrained(folder)
    return folder
