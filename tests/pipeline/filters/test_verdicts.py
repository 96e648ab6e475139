import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.filters.boilerplate import images_per_caption, repeat_limit
from pipeline.filters.config import FilterConfig, RepeatConfig
from pipeline.filters.image import ImageMeasures
from pipeline.filters.measures import (
    CAPTION_MEASURES,
    IMAGE_MEASURES,
    byte_rows,
    caption_table,
    image_table,
)
from pipeline.filters.reasons import (
    CAPTION_REASONS,
    CHOICE_REASONS,
    IMAGE_REASONS,
    POOL_REASONS,
    SCORE_REASONS,
    SELECTION_REASONS,
)
from pipeline.filters.text import CaptionMeasures, measure_captions
from pipeline.filters.verdicts import caption_reasons, image_reasons
from pipeline.filters.word_classes import WordShares, word_shares
from pipeline.settings import ConfigError, build, describe

GOOD = ImageMeasures(
    None, 300, 200, 60_000, 50.0, 900.0, 7.5, 0.25, False, 2**63 + 1, bytes(range(48))
)


def config(**sections: object) -> FilterConfig:
    return build(FilterConfig, sections)


def plain_image_reason(row: ImageMeasures, rules: FilterConfig) -> str | None:
    image = rules.image
    if row.decode_error == "too_many_pixels":
        return "too_many_pixels"
    if row.decode_error is not None and not (row.pixels or 0) > image.max_pixels:
        return "undecodable"
    if row.width is None or row.height is None:
        return None
    if row.width * row.height > image.max_pixels:
        return "too_many_pixels"
    short, long = sorted((row.width, row.height))
    measured = [
        ("too_few_pixels", row.width * row.height, image.min_pixels, None),
        ("too_elongated", long / short, None, image.max_aspect),
        ("too_small", short, image.min_side, None),
        ("blank", row.contrast, image.min_contrast, None),
        ("low_entropy", row.entropy, image.min_entropy, None),
        ("grey", row.grey_share, None, image.max_grey_share),
        ("blurry", row.sharpness, image.min_sharpness, None),
    ]
    failed = [
        reason
        for reason, value, least, most in measured
        if value is not None
        and ((least is not None and value < least) or (most is not None and value > most))
    ]
    animated = ["animated"] if row.animated and image.drop_animated else []
    return next(iter(animated + failed), None)


sides = st.sampled_from([1, 66, 67, 199, 200, 201, 600, 601, 10_000])
levels = st.none() | st.sampled_from([0.0, 1.5, 2.0, 2.5, 100.0])
decode_errors = st.none() | st.sampled_from(["truncated", "too_many_pixels"])


@st.composite
def image_rows(draw: st.DrawFn) -> ImageMeasures:
    if draw(st.integers(0, 5)) == 0:
        return ImageMeasures("empty")
    width, height = draw(sides), draw(sides)
    return ImageMeasures(
        draw(decode_errors), width, height, width * height, draw(levels), draw(levels),
        draw(st.none() | st.sampled_from([0.25, 0.5, 8.0])),
        draw(st.none() | st.sampled_from([0.0, 0.5, 1.0])),
        draw(st.booleans()),
    )  # fmt: skip


@settings(deadline=None)
@given(st.lists(image_rows(), max_size=12), st.booleans(), st.sampled_from([None, 2.0]))
def test_image_reasons_equal_the_plain_reference(
    rows: list[ImageMeasures], off: bool, sharpness: float | None
) -> None:
    image: dict[str, object] = {"min_sharpness": sharpness, "max_pixels": 1_000_000}
    if off:
        image |= dict.fromkeys(("min_side", "max_aspect", "min_contrast", "min_entropy"))
        image |= {"drop_animated": False}
    else:
        image |= {"min_pixels": 30_000, "max_grey_share": 0.5}
    rules = config(image=image)
    found = image_reasons(image_table(rows), rules)
    assert found.type == pa.string()
    assert found.to_pylist() == [plain_image_reason(row, rules) for row in rows]


def plain_caption_reason(row: CaptionMeasures, rules: FilterConfig, limit: float, images: int):
    caption = rules.caption
    tests = [
        ("empty", row.characters == 0),
        ("bad_encoding", row.bad_encoding and caption.drop_bad_encoding),
        ("url", row.url_like and caption.drop_urls),
        ("filename", row.filename_like and caption.drop_filenames),
        ("contact", row.contact_like and caption.drop_contacts),
        (
            "keywords",
            caption.max_keyword_share is not None and row.keyword_share > caption.max_keyword_share,
        ),
        ("boilerplate", row.boilerplate and caption.drop_boilerplate),
        ("too_few_words", caption.min_words is not None and row.words < caption.min_words),
        (
            "too_short",
            caption.min_characters is not None and row.characters < caption.min_characters,
        ),
        (
            "too_long",
            caption.max_characters is not None and row.characters > caption.max_characters,
        ),
        (
            "symbols",
            caption.max_symbol_share is not None and row.symbol_share > caption.max_symbol_share,
        ),
        (
            "repetitive",
            caption.max_repetition is not None and row.repetition > caption.max_repetition,
        ),
        (
            "not_english",
            caption.min_english is not None and row.english_score < caption.min_english,
        ),
        ("repeated", images > limit),
    ]
    return next((reason for reason, applies in tests if applies), None)


caption_rows = st.builds(
    CaptionMeasures,
    characters=st.sampled_from([0, 5, 6, 1000, 1001]),
    words=st.integers(0, 4),
    language=st.sampled_from([None, "en", "de"]),
    language_score=st.just(0.5),
    english_score=st.sampled_from([0.0, 0.125, 0.25, 0.5]).map(lambda share: 0.8 * share),
    symbol_share=st.sampled_from([0.0, 0.25, 0.5]),
    repetition=st.sampled_from([0.0, 0.5, 0.75]),
    bad_encoding=st.booleans(),
    filename_like=st.booleans(),
    url_like=st.booleans(),
    contact_like=st.booleans(),
    keyword_share=st.sampled_from([0.0, 0.5, 1.0]),
    boilerplate=st.booleans(),
    caption_key=st.integers(0, 2**64 - 1),
)


@settings(deadline=None)
@given(st.lists(st.tuples(caption_rows, st.sampled_from([1, 10, 11])), max_size=12), st.booleans())
def test_caption_reasons_equal_the_plain_reference(
    rows: list[tuple[CaptionMeasures, int]], off: bool
) -> None:
    caption: dict[str, object] = {"repeats": {"max_repeats": 10}}
    if off:
        names = ("min_words", "min_characters", "max_characters", "min_english")
        caption |= dict.fromkeys((*names, "max_symbol_share", "max_repetition"))
        caption |= {"max_keyword_share": None}
        names = ("bad_encoding", "filenames", "urls", "contacts", "boilerplate")
        caption |= {f"drop_{name}": False for name in names}
    rules = config(caption=caption)
    images = np.array([count for _, count in rows], dtype=np.int64)
    table = caption_table([row for row, _ in rows])
    expected = [plain_caption_reason(row, rules, 10, count) for row, count in rows]
    assert caption_reasons(table, rules, images, 10**9).to_pylist() == expected
    alone = [plain_caption_reason(row, rules, 10, 1) for row, _ in rows]
    assert caption_reasons(table, rules).to_pylist() == alone


def test_defaults_on_plain_examples() -> None:
    captions = {
        "": "empty",
        "a red square left of a blue circle": None,
        "a red car": None,
        "red car": "too_few_words",
        "IMG_0042.jpg": "filename",
        "www.example.com": "url",
        "write to jo.doe@example.com for prints": "contact",
        "call +44 20 7946 0958 for a tour": "contact",
        "a street at 1920x1080 on 2019-05-12 at 10.30": None,
        "star, red, wallpaper, free download": "keywords",
        "A man , woman , girl , and boy sit on a bench .": None,
        "Two dogs , one brown , one gray play on sand .": None,
        "Click here to enlarge": "boilerplate",
        "zwei Hunde laufen auf der Wiese": "not_english",
        "dog cat dog cat dog cat dog cat": "repetitive",
        "a ★ ★ ★ ★ b": "symbols",
        "cafÃ© by the sea": "bad_encoding",
    }
    found = caption_reasons(caption_table(measure_captions(list(captions))), FilterConfig())
    assert found.to_pylist() == list(captions.values())


def test_a_share_of_just_the_limit_is_not_beyond_it() -> None:
    """Shares are stored in 32 bits: 1/5 is then a little more than the 0.2 of a config."""
    texts = ["the man visits old Paris", "abcdefgh ijklmnop★★★"]
    measures = measure_captions(texts)
    assert measures[1].symbol_share == 3 / 20
    table = caption_table(measures, [WordShares(0.6, 0.2, 1 / 5), WordShares(1.0, 0.0, 0.0)])
    for limit, reason in [(0.2, None), (0.19, "many_names")]:
        rules = {"max_proper_noun_share": limit, "word_classes": True}
        found = caption_reasons(table, config(caption=rules))
        assert found[0].as_py() == reason
    for limit, reason in [(0.15, None), (0.14, "symbols")]:
        rules = {"max_symbol_share": limit, "min_words": 1, "min_english": 0.0}
        found = caption_reasons(table, config(caption=rules))
        assert found[1].as_py() == reason


def test_every_reason_is_explained_once() -> None:
    lists = (IMAGE_REASONS, CAPTION_REASONS, SELECTION_REASONS, POOL_REASONS)
    lists = (*lists, CHOICE_REASONS, SCORE_REASONS)
    names = [name for reasons in lists for name in reasons]
    assert len(set(names)) == len(names)
    assert all(text and "\n" not in text for reasons in lists for text in reasons.values())


def test_tables_keep_every_value() -> None:
    rows = [GOOD, ImageMeasures("empty")]
    table = image_table(rows)
    assert table.schema.equals(IMAGE_MEASURES)
    assert [ImageMeasures(**row) for row in table.to_pylist()] == rows
    assert byte_rows(table["colours"][:1]).tolist() == [list(range(48))]
    assert IMAGE_MEASURES.names == [field.name for field in dataclasses.fields(ImageMeasures)]
    fields = [*dataclasses.fields(CaptionMeasures), *dataclasses.fields(WordShares)]
    assert CAPTION_MEASURES.names == [field.name for field in fields]
    assert caption_table([]).schema.equals(CAPTION_MEASURES)


def test_a_caption_is_counted_once_an_image() -> None:
    keys = np.array([7, 7, 2**64 - 1, 7, 0], dtype=np.uint64)
    assert images_per_caption(keys, np.array([4, 4, 4, 5, 5])).tolist() == [2, 2, 1, 2, 1]
    assert images_per_caption(keys[:0], np.zeros(0, np.int64)).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12))
def test_images_are_counted_as_the_plain_way_counts_them(pairs: list[tuple[int, int]]) -> None:
    keys = np.array([key for key, _ in pairs], dtype=np.uint64)
    images = np.array([image for _, image in pairs], dtype=np.int64)
    expected = [len({image for other, image in pairs if other == key}) for key, _ in pairs]
    assert images_per_caption(keys, images).tolist() == expected


@pytest.mark.parametrize(
    ("total", "limit"), [(20, 10), (1_000, 10), (20_000, 200), (10**5, 1000), (10**9, 1000)]
)
def test_the_limit_grows_between_two_numbers(total: int, limit: int) -> None:
    assert repeat_limit(total, RepeatConfig()) == pytest.approx(limit)


def test_repeats_can_be_off_or_as_in_align() -> None:
    assert repeat_limit(10**9, RepeatConfig(max_repeats=None)) == float("inf")
    assert repeat_limit(10**9, RepeatConfig(max_repeats=10)) == 10


def test_bad_configs_name_the_key() -> None:
    with pytest.raises(ConfigError, match=r"caption.repeats.*min_repeats"):
        config(caption={"repeats": {"max_repeats": 5}})
    with pytest.raises(ConfigError, match=r"did you mean image\.min_side"):
        config(image={"min_sides": 3})


def test_every_key_is_described() -> None:
    assert all(len(description) > 20 for _, _, description in describe(FilterConfig))


def test_word_classes_are_measured_when_asked_for() -> None:
    texts = ["two dogs run", "the old one", "a view of Paris with Anna", "Eiffel Tower Paris", "!"]
    shares = word_shares(texts)
    assert [share.noun_share > 0 for share in shares] == [True, False, True, True, False]
    assert [share.verb_share > 0 for share in shares] == [True, False, False, False, False]
    # A title that capitalises every word names nothing by its capitals.
    assert [share.proper_noun_share > 0 for share in shares] == [False, False, True, False, False]
    table = caption_table(measure_captions(texts), shares)
    rules = {"word_classes": True, "min_noun_share": 0.01}
    rules |= {"min_words": 1, "min_english": None, "min_characters": 1, "max_symbol_share": None}
    found = caption_reasons(table, config(caption=rules)).to_pylist()
    assert found == [None, "few_nouns", None, None, "few_nouns"]
    unmeasured = caption_table(measure_captions(texts))
    assert caption_reasons(unmeasured, config(caption=rules)).to_pylist() == [None] * 5
    with pytest.raises(ConfigError, match=r"caption: min_verb_share needs word_classes"):
        config(caption={"min_verb_share": 0.01})
