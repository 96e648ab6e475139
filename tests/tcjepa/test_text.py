import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BartConfig,
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
)

from pipeline.settings import ConfigError
from tcjepa import text_huggingface
from tcjepa.text import (
    HashedEncoder,
    TextBatch,
    TextConfig,
    distinct,
    open_text_encoder,
    split_words,
    swap_captions,
)
from tests.tcjepa.tiny_text import save_t5, save_tokenizer, vocabulary_size

CPU = torch.device("cpu")
WORDS = ["a", "red", "blue", "square", "ring", "left"]
CAPTIONS = [["a red square", "ring"], [], ["a blue ring left", "a red square", ""]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=vocabulary_size(WORDS), hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=66,
    )  # fmt: skip
    BertModel(bert).save_pretrained(root / "bert")
    save_tokenizer(root / "bert", WORDS, end_only=False)
    save_t5(root / "t5", WORDS)
    return root


def _words_of(batch, row, column):
    number = int(batch.caption[row, column])
    return batch.words[number][batch.valid[number]]


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_huggingface_words_equal_one_caption_at_a_time(folders, name):
    encoder = open_text_encoder(TextConfig(encoder=str(folders / name), cache=0))
    assert encoder.width == 16
    batch = encoder.encode(CAPTIONS, CPU)
    assert batch.words.shape == (4, 4, 16), "four distinct captions, the longest of four words"
    assert batch.caption.tolist() == [[0, 1, -1], [-1, -1, -1], [2, 0, 3]]
    assert batch.valid.sum(1).tolist() == [3, 1, 4, 0], "special tokens are no words"
    for row, column, text in [(0, 0, "a red square"), (0, 1, "ring"), (2, 0, "a blue ring left")]:
        tokens = encoder._tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = encoder._model(**tokens).last_hidden_state[0]
        expected = states[(0 if name == "t5" else 1) : -1]
        assert torch.allclose(_words_of(batch, row, column), expected, atol=1e-5)


def test_huggingface_chunks_and_cache_change_nothing(folders, monkeypatch):
    encoder = open_text_encoder(TextConfig(encoder=str(folders / "t5")))
    whole = encoder.encode(CAPTIONS, CPU)
    calls = []
    encoder._model.register_forward_hook(lambda *_: calls.append(1))
    again = encoder.encode(CAPTIONS, CPU)
    assert not calls, "every caption was in the cache"
    monkeypatch.setattr(text_huggingface, "TOKENS_PER_CHUNK", 6)
    uncached = open_text_encoder(TextConfig(encoder=str(folders / "t5"), cache=0))
    uncached._model.register_forward_hook(lambda *_: calls.append(1))
    chunked = uncached.encode(CAPTIONS, CPU)
    assert 1 < len(calls) <= 4, "four captions, in chunks"
    for batch in (chunked, again):
        assert torch.allclose(batch.words, whole.words, atol=1e-5)
        assert torch.equal(batch.valid, whole.valid) and torch.equal(batch.caption, whole.caption)


def test_huggingface_encoder_is_frozen_and_its_words_trainable_upon(folders):
    encoder = open_text_encoder(TextConfig(encoder=str(folders / "bert")))
    batch = encoder.encode(CAPTIONS, CPU)
    assert not any(p.requires_grad for p in encoder._model.parameters())
    assert not encoder._model.training and not batch.words.is_inference()
    torch.nn.Linear(16, 2)(batch.words).sum().backward()


def test_t5_loads_without_its_decoder(folders):
    encoder = open_text_encoder(TextConfig(encoder=str(folders / "t5")))
    assert type(encoder._model).__name__ == "T5EncoderModel"


def test_mt5_loads_without_its_decoder_too(tmp_path):
    save_t5(tmp_path, WORDS, multilingual=True)
    encoder = open_text_encoder(TextConfig(encoder=str(tmp_path)))
    assert encoder.encode(CAPTIONS, CPU).valid.sum(1).tolist() == [3, 1, 4, 0]


def test_what_is_no_text_encoder_is_refused_with_its_name(tmp_path):
    BartConfig(d_model=16).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"text\.encoder.*bart is no text encoder"):
        open_text_encoder(TextConfig(encoder=str(tmp_path)))


def test_max_words_truncates(folders):
    for name in (str(folders / "bert"), str(folders / "t5"), "hashed"):
        encoder = open_text_encoder(TextConfig(encoder=name, max_words=2))
        assert encoder.encode([["a red square left"]], CPU).valid.sum() == 2


def _saved(folder, kind, **sizes):
    """Save a model of a few positions, and return its folder."""
    config, model = {
        "bert": (BertConfig, BertModel),
        "roberta": (RobertaConfig, RobertaModel),
        "modernbert": (ModernBertConfig, ModernBertModel),
    }[kind]
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    if kind == "modernbert":
        special |= {"cls_token_id": 2, "sep_token_id": 3}
    model(
        config(
            vocab_size=vocabulary_size(WORDS), hidden_size=16, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=32, **special, **sizes,
        )
    ).save_pretrained(folder)  # fmt: skip
    save_tokenizer(folder, WORDS, end_only=False)
    return folder


@pytest.mark.parametrize(
    ("kind", "most"),
    [("bert", 32 - 2), ("roberta", 32 - 2 - 1)],  # RoBERTa's first is padding's, here number 0
)
def test_more_words_than_learned_positions_are_refused(tmp_path, kind, most):
    folder = str(_saved(tmp_path, kind, max_position_embeddings=32))
    with pytest.raises(ConfigError, match=rf"text\.max_words=64.*set text\.max_words={most} or"):
        open_text_encoder(TextConfig(encoder=folder))
    with pytest.raises(ConfigError, match=rf"text\.max_words={most} or less"):
        open_text_encoder(TextConfig(encoder=folder, max_words=most + 1))
    encoder = open_text_encoder(TextConfig(encoder=folder, max_words=most))
    assert encoder.encode([["red " * 99]], CPU).valid.sum() == most


def test_relative_positions_have_no_end(tmp_path, folders):
    rotary = _saved(tmp_path, "modernbert", max_position_embeddings=32)
    for folder in (rotary, folders / "t5"):
        encoder = open_text_encoder(TextConfig(encoder=str(folder), max_words=64))
        assert encoder.encode([["red " * 99]], CPU).valid.sum() == 64


def test_missing_encoder_names_the_key(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"text\.encoder.*hashed"):
        open_text_encoder(TextConfig(encoder=str(tmp_path / "nothing")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"text\.encoder"):
        open_text_encoder(TextConfig(encoder=str(tmp_path / "empty")))


def test_no_captions_at_all_still_make_a_batch(folders):
    for name in (str(folders / "bert"), "hashed"):
        batch = open_text_encoder(TextConfig(encoder=name)).encode([[], []], CPU)
        assert batch.caption.tolist() == [[-1], [-1]]
        assert batch.words.shape[0] == 0 and batch.valid.shape[0] == 0


def test_padding_is_zero_before_there_is_any_word(monkeypatch):
    """What is not written yet may be NaN, and NaN times zero is NaN."""
    monkeypatch.setattr(np, "empty", lambda *shape, **kind: np.full(*shape, np.nan, **kind))
    batch = HashedEncoder(TextConfig(width=16, max_words=8)).encode([[""]], CPU)
    assert not batch.words.any()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.text(max_size=12), max_size=4), min_size=1, max_size=6))
def test_hashed_words_are_a_function_of_the_caption(captions):
    encoder = HashedEncoder(TextConfig(width=16, max_words=8))
    batch = encoder.encode(captions, CPU)
    for row, own in enumerate(captions):
        for column, caption in enumerate(own):
            alone = HashedEncoder(TextConfig(width=16, max_words=8)).encode([[caption]], CPU)
            assert torch.equal(_words_of(batch, row, column), _words_of(alone, 0, 0))
    assert not batch.words[~batch.valid].any()


def test_hashed_vectors_are_stable_across_processes():
    code = (
        "import torch; from tcjepa.text import *;"
        "w = HashedEncoder(TextConfig(width=8)).encode([['größe']], torch.device('cpu')).words;"
        "print(w.sum().item())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = HashedEncoder(TextConfig(width=8)).encode([["Größe"]], CPU).words.sum().item()
    assert float(out.stdout) == own


def test_a_letter_with_an_accent_is_the_same_however_it_is_written():
    encoder = HashedEncoder(TextConfig(width=8))
    batch = encoder.encode([["caf\u00e9"], ["cafe\u0301"]], CPU)
    assert torch.equal(_words_of(batch, 0, 0), _words_of(batch, 1, 0))
    assert encoder.count_words(["caf\u00e9", "cafe\u0301"]) == [1, 1]


def test_hashed_words_are_nearly_orthogonal_with_unit_variance():
    encoder = HashedEncoder(TextConfig(width=1024, max_words=200))
    vectors = [encoder._vectors[encoder._number(f"word{i}")] for i in range(100)]
    matrix = torch.tensor(vectors.__class__(v.tolist() for v in vectors))
    cosine = torch.nn.functional.normalize(matrix) @ torch.nn.functional.normalize(matrix).T
    assert matrix.var() == pytest.approx(1, abs=0.05)
    assert (cosine - torch.eye(100)).abs().max() < 0.2


def test_hashed_vocabulary_is_bounded(monkeypatch):
    monkeypatch.setattr(HashedEncoder, "vocabulary", 10)
    encoder = HashedEncoder(TextConfig(width=8, cache=2))
    first = encoder.encode([["zero one"]], CPU).words
    for i in range(50):
        encoder.encode([[f"w{i} v{i}"]], CPU)
    assert len(encoder._numbers) <= 13 and len(encoder._captions._values) <= 2
    assert torch.equal(encoder.encode([["zero one"]], CPU).words, first)


def test_words_of_other_scripts():
    assert split_words("A red, small SQUARE – it's 2nd_hand.") == [
        "a", "red", "small", "square", "it's", "2nd", "hand",
    ]  # fmt: skip
    assert split_words("猫が好き русский кот हिन्दी") == [
        "猫", "が", "好", "き", "русский", "кот", "हिन्दी",
    ]  # fmt: skip
    assert split_words("... !?") == []


def test_distinct_captions_keep_their_order():
    texts, index = distinct([["b", "a"], ["a"]])
    assert texts == ["b", "a"] and index.tolist() == [[0, 1], [1, -1]]


def test_swapped_captions_leave_every_captioned_image():
    caption = torch.tensor([[0, 1], [-1, -1], [2, -1], [3, 4]])
    text = TextBatch(torch.zeros(5, 1, 2), torch.ones(5, 1, dtype=torch.bool), caption)
    swapped = swap_captions(text).caption
    assert swapped.tolist() == [[3, 4], [-1, -1], [0, 1], [2, -1]]
    assert text.caption is caption and caption[0].tolist() == [0, 1]
