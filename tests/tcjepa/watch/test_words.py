"""Words of captions: every piece of the encoder has its characters, and people see whole words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tcjepa.text import HashedEncoder, TextConfig, split_words
from tcjepa.watch.words import content_words

CPU = torch.device("cpu")


@given(st.text(max_size=60))
def test_hashed_spans_are_the_words_that_are_encoded(caption: str) -> None:
    encoder = HashedEncoder(TextConfig(width=2, max_words=5))
    spans = encoder.spans_of(caption)
    assert [caption[a:b].casefold() for a, b in spans] == split_words(caption)[:5]
    assert int(encoder.encode([[caption]], CPU).valid.sum()) == len(spans)


def test_pieces_of_a_real_tokenizer_are_whole_words_again(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from tcjepa.text import open_text_encoder

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "wood", "##en", "star", "##s", "of", "."]
    tokenizer = Tokenizer(
        models.WordPiece(vocab={p: i for i, p in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]",
    ).save_pretrained(tmp_path)  # fmt: skip
    sizes = BertConfig(
        vocab_size=len(pieces), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8,
    )  # fmt: skip
    BertModel(sizes).save_pretrained(tmp_path)
    encoder = open_text_encoder(TextConfig(encoder=str(tmp_path), max_words=6))
    caption = "A Wooden star of stars."
    spans = encoder.spans_of(caption)
    assert [caption[a:b] for a, b in spans] == ["A", "Wood", "en", "star", "of", "star"]
    assert int(encoder.encode([[caption]], CPU).valid.sum()) == len(spans)
    words = content_words(caption, spans, 7)
    assert [(word.text, word.pieces) for word in words] == [("Wooden", (1, 2)), ("star", (3,))]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A large red star and a large ring.", ["large", "red", "star", "ring"]),
        ("It is on the", ["It", "is", "on", "the"]),
        ("", []),
        ("赤い星", ["赤", "い", "星"]),
        ("star's well-being", ["star's", "well", "being"]),
    ],
)
def test_content_words(caption: str, words: list[str]) -> None:
    spans = HashedEncoder(TextConfig(width=2)).spans_of(caption)
    assert [word.text for word in content_words(caption, spans, 7)] == words
    assert content_words(caption, spans, 1) == content_words(caption, spans, 7)[:1]
