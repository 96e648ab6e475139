"""Captions packed into rows give each caption's own states, whatever the company."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
)

from tcjepa import text_huggingface
from tcjepa.text import TextBatch, TextConfig, open_text_encoder, pad_shapes
from tcjepa.text_huggingface import HuggingFaceEncoder
from tcjepa.text_packing import NONE, SHORTEST_ROW, pack

CPU = torch.device("cpu")
WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "small",
    "large",
    "ring",
    "square",
    "left",
    "of",
    "behind",
    "night",
]
CAPTION = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
BATCH = st.lists(st.lists(CAPTION, max_size=4), min_size=1, max_size=6)
MODELS = ("t5", "bert", "roberta", "distilbert")


def _model(name: str, vocabulary: int) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": vocabulary, "hidden_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 40,
             "pad_token_id": 0}  # fmt: skip
    if name == "t5":
        return T5EncoderModel(
            T5Config(vocab_size=vocabulary, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        )
    if name == "bert":
        return BertModel(BertConfig(**sizes))
    if name == "roberta":
        return RobertaModel(RobertaConfig(**sizes))
    return DistilBertModel(
        DistilBertConfig(vocab_size=vocabulary, dim=16, hidden_dim=32, n_layers=2, n_heads=2)
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of small encoders with a tokenizer trained on captions."""
    root = tmp_path_factory.mktemp("encoders")
    inner = Tokenizer(models.BPE(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    # Fewer merges than words: some words are several tokens, as real ones are.
    trainer = trainers.BpeTrainer(vocab_size=40, special_tokens=special)
    inner.train_from_iterator([" ".join(WORDS)] * 8, trainer)
    for name in MODELS:
        single = "$A [SEP]" if name == "t5" else "[CLS] $A [SEP]"
        inner.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        PreTrainedTokenizerFast(
            tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]",
            cls_token="[CLS]", sep_token="[SEP]",
        ).save_pretrained(root / name)  # fmt: skip
        _model(name, inner.get_vocab_size()).save_pretrained(root / name)
    return root


@pytest.fixture(scope="module", params=MODELS)
def encoders(request: pytest.FixtureRequest, folders: Path) -> tuple[HuggingFaceEncoder, ...]:
    """Return the same model without cache, which packs on a CPU too, and with one."""
    folder = str(folders / request.param)
    found = [
        open_text_encoder(TextConfig(encoder=folder, cache=cache, max_words=20)) for cache in (0, 8)
    ]
    return tuple(encoder for encoder in found if isinstance(encoder, HuggingFaceEncoder))


def _own(batch: TextBatch, row: int, column: int) -> torch.Tensor:
    number = int(batch.caption[row, column])
    return batch.words[number][batch.valid[number]]


@given(BATCH)
def test_packed_equals_one_by_one(
    encoders: tuple[HuggingFaceEncoder, ...], captions: list[list[str]]
) -> None:
    packing, caching = encoders
    packed, again = packing.encode(captions, CPU), caching.encode(captions, CPU)
    assert len(packed.words) == len({caption for own in captions for caption in own})
    assert torch.equal(packed.caption, again.caption) and torch.equal(packed.valid, again.valid)
    for row, own in enumerate(captions):
        for column, caption in enumerate(own):
            alone = packing.encode([[caption]], CPU)
            torch.testing.assert_close(
                _own(packed, row, column), _own(alone, 0, 0), atol=1e-5, rtol=0
            )
            # From the cache or not, in whatever batch: the same bits.
            assert torch.equal(_own(again, row, column), _own(alone, 0, 0))


def test_many_captions_go_in_several_passes(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = [
        [" ".join(WORDS[: 1 + i % 9]), f"{WORDS[i % 7]} ring {WORDS[i % 5]}"] for i in range(20)
    ]
    for name in MODELS:
        config = TextConfig(encoder=str(folders / name), cache=0, max_words=32)
        encoder = open_text_encoder(config)
        assert isinstance(encoder, HuggingFaceEncoder)
        whole = encoder.encode(captions, CPU)
        passes: list[int] = []
        hook = encoder.model.register_forward_hook(lambda *_, seen=passes: seen.append(1))
        with monkeypatch.context() as patch:
            patch.setattr(text_huggingface, "TOKENS_PER_CHUNK", 48)
            parts = encoder.encode(captions, CPU)
        hook.remove()
        assert len(passes) > 3
        torch.testing.assert_close(parts.words, whole.words, atol=1e-5, rtol=0)


LISTS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=70), max_size=40)


@given(LISTS)
def test_packing_keeps_every_list_whole(lists: list[list[int]]) -> None:
    packing = pack(lists)
    flat, owner = packing.tokens.ravel(), packing.owner.ravel()
    for number, (own, start) in enumerate(zip(lists, packing.start.tolist(), strict=True)):
        span = slice(start, start + len(own))
        assert flat[span].tolist() == own
        assert packing.positions.ravel()[span].tolist() == list(range(len(own)))
        assert (np.flatnonzero(owner == number) == np.arange(start, start + len(own))).all()
    assert int((owner != NONE).sum()) == sum(map(len, lists)), "and nothing else"
    assert packing.tokens.shape[1] % 8 == 0


def test_packing_wastes_little() -> None:
    draws = np.random.Generator(np.random.Philox(key=0)).normal(14.5, 4.1, 640)
    lists = [[1] * int(length) for length in draws.clip(6, 39)]
    assert pack(lists).tokens.shape[1] == SHORTEST_ROW
    longest = max(map(len, lists))
    assert pack(lists).padding < 0.05
    assert 1 - sum(map(len, lists)) / (longest * len(lists)) > 0.4, "padded to the longest"


@given(BATCH, st.integers(4, 8))
def test_padded_shapes_are_few_and_mean_the_same(captions: list[list[str]], most: int) -> None:
    encoder = open_text_encoder(TextConfig(width=8, max_words=12))
    text = encoder.encode(captions, CPU)
    padded = pad_shapes(text, most)
    assert padded.words.shape[0] % 64 == 0 < padded.words.shape[0]
    assert padded.words.shape[1] in (8, 16)
    assert padded.caption.shape[1] in {1, 2, 4, most}
    assert padded.valid.sum() == text.valid.sum()
    for row, own in enumerate(captions):
        for column in range(len(own)):
            assert torch.equal(_own(padded, row, column), _own(text, row, column))
        assert (padded.caption[row, len(own) :] == -1).all()
