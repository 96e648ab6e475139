import csv
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.filters.boilerplate import has_boilerplate
from pipeline.filters.language import detector
from pipeline.filters.text import caption_key, measure_captions, normalise

CAPTIONS = Path(__file__).with_name("language_captions.tsv")


def flags(text: str) -> set[str]:
    (found,) = measure_captions([text])
    names = ("bad_encoding", "filename_like", "url_like", "boilerplate")
    return {name for name in names if getattr(found, name)}


@pytest.mark.parametrize(
    "text",
    [
        *("IMG_0042.jpg", "DSC04867", "red_barn_03", "photo (1).JPG", "PXL_20210102_1234"),
        *("Screenshot 2020-01-02 at 10.11.12", "3f2a9c0b7e1d44aa", "product-shot-2-large"),
        *("WhatsApp Image 2020-01-02 at 10.11.12", "my summer holiday.png", "00012", "1920x1080"),
    ],
)
def test_file_names(text: str) -> None:
    assert "filename_like" in flags(text)


@pytest.mark.parametrize(
    "text", ["www.example.com", "https://a.b/c?d=e", "Photo: flickr.com/photos/someone/123"]
)
def test_urls(text: str) -> None:
    assert "url_like" in flags(text)


@pytest.mark.parametrize(
    "text",
    [
        *("Buy now!", "CLICK  HERE to enlarge", "Image not available", "royalty-free stock photo"),
        *("No image available", "a red car, free shipping", "© 2014 Acme. All rights reserved"),
        *(
            "logo",
            "Company Logo",
            "image 12",
            "pic 1",
            "[thumbnail]",
            "Add to cart",
            "404 page not found",
        ),
        *(
            "Photo coming soon",
            "free\nwallpapers",
            "SKU: 1234",
            "the photo",
            "Loading, please wait...",
        ),
    ],
)
def test_boilerplate(text: str) -> None:
    assert "boilerplate" in flags(text)


@pytest.mark.parametrize(
    "text",
    [
        *("a red car", "a man clicks a button here", "a logo on a blue shirt", "black-and-white"),
        *("a sale at the market", "a girl is buying nowhere", "the stockroom is empty", "girl"),
        *("people sign up for a race", "a photo of a dog", "Apollo 11 on 20 July 1969", "B-52"),
        *("a photographer takes a picture", "Image of a cat at home", "stocks photographed"),
        *("a man riding a horse, seen on example.com", "café in Montmartre 🎉", "U.S. Navy ship"),
    ],
)
def test_right_captions_have_no_flag(text: str) -> None:
    assert flags(text) - ({"boilerplate"} if "sign up for" in text else set()) == set()


@pytest.mark.parametrize(
    "text", ["a\ufffdb", "a \ud800 cat", "bell\x07", "cafÃ© by the sea", "the dogâ€™s ball"]
)
def test_broken_characters(text: str) -> None:
    assert "bad_encoding" in flags(text)


@pytest.mark.parametrize("text", ["a\tcat\non a mat", "SÃO PAULO", "naïve café", "日本語", "🎉"])
def test_rare_characters_are_not_broken(text: str) -> None:
    assert "bad_encoding" not in flags(text)


def test_counts_and_shares() -> None:
    (found,) = measure_captions(["  a red  car!! "])
    assert (found.words, found.characters) == (3, 12)
    assert found.symbol_share == pytest.approx(2 / 12)
    repeated, plain = measure_captions(["red red Red red", "a man and a man"])
    assert repeated.repetition == pytest.approx(2 / 3)
    assert plain.repetition == pytest.approx(1 / 4)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec=None), max_size=80))
def test_any_text_is_measured(text: str) -> None:
    (found,) = measure_captions([text])
    shares = (
        found.symbol_share, found.repetition, found.language_score, found.english_score
    )  # fmt: skip
    assert all(0 <= share <= 1 for share in shares)
    assert found.characters == len(text.strip())
    if text.isascii():
        assert found.words == len(text.split())
    assert 0 <= found.caption_key < 2**64


@pytest.mark.parametrize(
    "unit",
    [
        "a dog runs ",
        "x",
        "a@",
        "+1",
        "a,",
        "猫",
        "é",
        "a.",
        "1 ",
        "-_",
        "www.a",
        "(c) ",
        "\u0301",
        "image ",
        "\n#",
    ],
)
def test_time_is_bounded(unit: str) -> None:
    text = (unit * 100_000)[:100_000]
    measure_captions(["warm"])
    start = time.process_time()
    measure_captions([text])
    assert time.process_time() - start < 0.25


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec=None), max_size=60))
def test_normalise_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_normalise_joins_what_differs_in_numbers_case_and_signs() -> None:
    assert normalise("Photo 17 of 20!") == normalise(" photo  3 of 8") == "photo 0 of 0"
    assert caption_key("Photo 17 of 20!") == caption_key("photo 3 of 8")
    assert caption_key("a red car") != caption_key("a blue car")
    # The key is written to tables: it must not change between versions or machines.
    assert caption_key("a red car") == 5762296398359460577


def test_language_on_short_captions() -> None:
    with CAPTIONS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    found = [(row["language"], detector().detect(row["caption"])) for row in rows]
    english = [item.english_score >= 0.25 for code, item in found if code == "en"]
    others = [item.english_score < 0.25 for code, item in found if code != "en"]
    assert len(english) >= 60 and len(others) >= 250
    assert sum(english) / len(english) >= 0.97
    assert sum(others) / len(others) >= 0.97
    assert sum(item.code == code for code, item in found) / len(found) >= 0.85


def test_no_letters_no_language() -> None:
    for text in ("", " \n", "1234", "🎉🎉", "!?"):
        found = detector().detect(text)
        assert (found.code, found.score, found.english_score) == (None, 0.0, 0.0)


def test_text_after_a_zero_byte_counts() -> None:
    text = "\0un homme à vélo sous la pluie et deux chiens dans l'herbe"
    assert detector().detect(text).code == "fr"


def test_phrases_match_whole_words_only() -> None:
    assert has_boilerplate("Shop now") and not has_boilerplate("workshop nowadays")
    assert has_boilerplate("see all: click here.") and not has_boilerplate("click hereby")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *(("a red car", 3), ("", 0), ("Überraschung im Park", 3), ("빨간 자동차", 2)),
        *(("猫", 1), ("赤い車", 2), ("雪原にある青い円", 4), ("a 猫 photo", 3), ("รถสีแดง", 4)),
    ],
)
def test_scripts_without_spaces_have_words_too(text: str, words: int) -> None:
    assert measure_captions([text])[0].words == words


@pytest.mark.parametrize("text", ["x", "- -", "...", "photo 3", "x x x"])
def test_no_digits_no_code(text: str) -> None:
    assert "filename_like" not in flags(text)


@pytest.mark.parametrize(
    "text",
    [
        *("mail jo@example.com", "JO.DOE+x@mail.example.co.uk", "call (555) 123-4567 now"),
        *("555-123-4567", "+49 30 1234567", "Tel.: 030 123 45 67", "WhatsApp: 0171 2345678"),
    ],
)
def test_contacts(text: str) -> None:
    assert measure_captions([text])[0].contact_like


@pytest.mark.parametrize(
    "text",
    [
        *(
            "@home with the dogs",
            "1920x1080",
            "2019-05-12 10:30",
            "room 555-1234",
            "ISBN 123456789",
        ),
        *("a phone booth", "10,000,000 flowers", "3 + 4 = 7", "call of the wild 2020", "1 2 3 4 5"),
    ],
)
def test_numbers_that_are_no_contacts(text: str) -> None:
    assert not measure_captions([text])[0].contact_like
