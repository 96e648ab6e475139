"""What a caption measures. Captions are hostile: any length, any code points, nothing raises."""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.filters import language
from pipeline.filters.boilerplate import has_boilerplate
from pipeline.filters.keywords import keyword_share

#: Only so many characters of a caption are looked at (counts of words and characters excepted), so
#: that a page pasted into an alt attribute costs no more than a paragraph.
MEASURED_CHARACTERS = 2000


@dataclass(frozen=True)
class CaptionMeasures:
    """Measures of one caption, after white space at its ends was cut.

    `language`, `language_score` and `english_score` are `language.Language`. Shares lie in [0, 1];
    `keyword_share` is `keywords.keyword_share`.
    `caption_key` is 64 bits of SHA-256 of the normalised caption, for counting across a corpus.
    """

    characters: int
    words: int
    language: str | None
    language_score: float
    english_score: float
    symbol_share: float
    repetition: float
    bad_encoding: bool
    filename_like: bool
    url_like: bool
    contact_like: bool
    boilerplate: bool
    keyword_share: float
    caption_key: int


def measure_captions(texts: Sequence[str]) -> list[CaptionMeasures]:
    """Return the measures of each caption, in order; never raises on the content of a caption."""
    return [_measure(text) for text in texts]


def _measure(text: str) -> CaptionMeasures:
    text = text.strip()
    head = text[:MEASURED_CHARACTERS]
    words = head.split()
    found = language.detector().detect(head)
    return CaptionMeasures(
        characters=len(text),
        words=_count_words(text),
        language=found.code,
        language_score=found.score,
        english_score=found.english_score,
        symbol_share=_symbol_share(head),
        repetition=_repetition(words),
        bad_encoding=_BROKEN.search(head) is not None,
        filename_like=_is_filename(head),
        url_like=_is_url(head),
        contact_like=_CONTACT.search(head) is not None,
        boilerplate=has_boilerplate(head),
        keyword_share=keyword_share(head),
        caption_key=caption_key(text),
    )


def _count_words(text: str) -> int:
    """Return the number of words; two characters of a script without spaces count as one."""
    if not text.isascii():
        text = _UNSPACED.sub(lambda run: " w" * ((len(run[0]) + 1) // 2) + " ", text)
    return len(text.split())


def normalise(text: str) -> str:
    """Return a caption as it is counted: case folded, digits as one "0", no punctuation.

    "Photo 17 of 20!" and "photo 3 of 8" are the same boilerplate. Only the first
    `MEASURED_CHARACTERS` count. Idempotent.
    """
    text = unicodedata.normalize("NFKC", text[:MEASURED_CHARACTERS]).casefold()
    # Folding can undo the composition (e.g. "ΐ"), and cutting must come last to be idempotent.
    text = unicodedata.normalize("NFKC", text)
    text = _DIGITS.sub("0", text)
    return " ".join(_PUNCTUATION.sub(" ", text).split())[:MEASURED_CHARACTERS].strip()


def caption_key(text: str) -> int:
    """Return the unsigned 64-bit key under which a caption is counted."""
    data = normalise(text).encode("utf-8", "replace")
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


# U+FFFD, lone surrogates, private use, controls other than tab and line ends, and the marks of
# UTF-8 read as Latin-1 or Windows-1252 ("Ã©", "â€™").
_BROKEN = re.compile(
    "[\ufffd\ud800-\udfff\ue000-\uf8ff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
    "|Ã[\xa0-\xbf\u2018-\u203a€]|â€[\u0080-\u203a™œ]|Â[\xa0-\xbf]"
)
# Thai, Lao, Burmese, Khmer, kana and Han (Unicode blocks): written without spaces between words.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003134f]+"
)
_DIGITS = re.compile(r"\d+(?:[.,:/-]\d+)*")
_PUNCTUATION = re.compile(r"[^\w\s]|_")

_EXTENSION = re.compile(
    r"[^\n]*[\w)\]]\.(?:jpe?g|jfif|png|gif|webp|bmp|tiff?|svg|heic|avif|ico|psd|pdf|mp4|mov)", re.I
)
# Camera and screen names ("DSC 0123", "Screenshot 2020-01-02 at 10.11.12"; "photo 3" is none),
# stamps and hashes.
_CAMERA = re.compile(
    r"(?:img|dsc[fn]?|dcim|p?image|pic(?:ture)?|photo|scan|pano|gopr|mvimg|pxl|wp|vid|capture"
    r"|screen ?shot|whatsapp[ _-]image|file|untitled|[a-z]{1,4}_)"
    r"(?!\s\d{1,2}$)[ _-]*\(?#?\d[\d\s_.:()-]*(?:at[\d\s_.:-]+)?(?:[ap]m)?"
    r"(?:copy|edit(?:ed)?|hdr|wa\d+)?",
    re.I,
)
_CODE = re.compile(
    r"[0-9a-f]{12,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?=.*\d)[\d\s_.x-]+", re.I
)
_URL = re.compile(
    r"(?:https?|ftp)://\S+|\bwww\.\S+"
    r"|\b(?:[a-z0-9-]+\.)+(?:com|org|net|edu|gov|info|biz|io|co|uk|de|fr|ru|cn|jp|eu|us)\b(?:/\S*)?",
    re.I,
)
# An e-mail address, or a telephone number: with a country code, a bracketed or grouped American
# one, or digits announced as a number. Sizes, dates and serial numbers are none of these.
_CONTACT = re.compile(
    r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"
    r"|(?<![\w+])\+\d{1,3}[ .()-]{0,2}\d(?:[ .()-]{0,2}\d){6,12}(?!\w)"
    r"|(?<!\w)\(\d{3}\) ?\d{3}[ .-]\d{4}(?!\w)|(?<![\w-])\d{3}([.-])\d{3}\1\d{4}(?![\w-])"
    r"|\b(?:tel|phone|call(?: us)?|fax|whatsapp|mobile)[ .:]{1,3}\+?\d(?:[ .()-]{0,2}\d){5,13}",
    re.I,
)


def _is_filename(text: str) -> bool:
    """Return whether the whole caption is the name of a file."""
    if _CAMERA.fullmatch(text) or _CODE.fullmatch(text):
        return True
    if len(text.split()) <= 6 and _EXTENSION.fullmatch(text):
        return True
    # One "word" glued from several: red_barn_03, product-shot-2-large. A lone compound such as
    # "black-and-white" has no digit or underscore and stays.
    single = len(text) >= 6 and not any(char.isspace() for char in text)
    glued = text.count("_") + text.count("-")
    return single and ("_" in text or (glued >= 2 and any(char.isdigit() for char in text)))


def _is_url(text: str) -> bool:
    """Return whether at least half of the caption is URL; a credit at its end does not count."""
    covered = sum(match.end() - match.start() for match in _URL.finditer(text))
    return bool(covered) and 2 * covered >= len(text)


def _symbol_share(text: str) -> float:
    """Return the share of characters that are no letter, mark, digit or space; 0 if empty."""
    if not text:
        return 0.0
    plain = sum(
        char.isalnum() or char.isspace() or unicodedata.category(char)[0] == "M" for char in text
    )
    return (len(text) - plain) / len(text)


def _repetition(words: Sequence[str]) -> float:
    """Return the share of neighbouring word pairs that occurred before; 0 below two pairs."""
    folded = [word.casefold() for word in words]
    pairs = list(itertools.pairwise(folded))
    return (len(pairs) - len(set(pairs))) / len(pairs) if len(pairs) > 1 else 0.0
