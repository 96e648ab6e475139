from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filters.balance import span_texts
from pipeline.filters.blocklist import BlockConfig, block_words, has_blocked_word
from pipeline.filters.phrases import find_phrases, phrase_table
from pipeline.settings import ConfigError, build

WORDS = st.sampled_from(["red", "Dog", "CAT", "\u00dcber", "x"])
TEXT = st.lists(WORDS, max_size=6).map(" ".join)
PHRASES = ["dog", "Red Dog", "cat x \u00fcber", "x"]


@given(st.lists(st.none() | TEXT, max_size=6), st.sampled_from([" ", ", ", " - ", "\t\u2014 "]))
def test_phrases_are_found_as_whole_words(texts: list[str | None], gap: str) -> None:
    phrases = phrase_table(PHRASES, "key")
    given_texts = [None if text is None else text.replace(" ", gap) for text in texts]
    rows, found = find_phrases(pa.array(given_texts, pa.string()), phrases)
    expected = [
        (row, number)
        for row, text in enumerate(texts)
        for number, phrase in enumerate(phrases.to_pylist())
        if text is not None and f" {phrase} " in f" {text.lower()} "
    ]
    assert list(zip(rows.tolist(), found.tolist(), strict=True)) == expected


def test_no_word_matches_inside_another() -> None:
    words = block_words(build(BlockConfig, {"words": ["cat", "bad word"]}))
    texts = ["catalogue", "A CAT!", "bad-word", "badword", "bad, very bad word", ""]
    assert has_blocked_word(pa.array(texts), words).tolist() == [0, 1, 1, 0, 1, 0]


def test_blocklists_are_lists_or_files(tmp_path: Path) -> None:
    path = tmp_path / "hosts.txt"
    path.write_text("# whom we do not ask\nexample.org\n\n  example.com  \nexample.org\n")
    config = build(BlockConfig, {"hosts": str(path), "uids": ["b", "a", "b"]})
    assert config.entries("hosts") == ["example.com", "example.org"]
    assert config.entries("uids") == ["a", "b"]
    assert config.entries("urls") == []
    with pytest.raises(ConfigError, match=r"filter\.block\.urls: .*none\.txt"):
        build(BlockConfig, {"urls": str(tmp_path / "none.txt")}).entries("urls")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"filter\.block\.hosts"):
        config.entries("hosts")


@pytest.mark.parametrize("phrase", ["...", "one two three four five six seven"])
def test_a_phrase_that_cannot_match_is_refused(phrase: str) -> None:
    with pytest.raises(ConfigError, match=r"filter\.block\.words: .* more than 6 words"):
        block_words(build(BlockConfig, {"words": [phrase]}))


@given(st.lists(st.text("a\u00e9\u4e2d\U0001f600 B", max_size=8), max_size=5), st.data())
def test_spans_are_cut_out_by_characters(texts: list[str], data: st.DataObject) -> None:
    spans = [
        data.draw(
            st.lists(
                st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).map(sorted),
                max_size=3,
            )
        )
        for text in texts
    ]
    kind = pa.list_(pa.list_(pa.int32()))
    owner, words = span_texts(pa.array(texts, pa.string()), pa.array(spans, kind))
    expected = [(n, t[a:b].lower()) for n, t in enumerate(texts) for a, b in spans[n]]
    assert list(zip(owner.tolist(), words.to_pylist(), strict=True)) == expected
    # Parts of a table are slices of it.
    owner, words = span_texts(pa.array(texts, pa.string())[1:], pa.array(spans, kind)[1:])
    assert words.to_pylist() == [word for n, word in expected if n]
    assert np.array_equal(owner, [n - 1 for n, _ in expected if n])
