import pyarrow as pa
import pytest

from pipeline.settings import ConfigError
from tcjepa.data.filter import conjunction, parse

TABLE = pa.table(
    {
        "quality_best": pa.array([0.7, 0.4, None, 0.9], pa.float32()),
        "n_captions": pa.array([1, 2, 3, 4], pa.int32()),
        "image_format": ["jpg", "png", "jpg", "webp"],
        "meta.label": pa.array([0, 1, None, 3], pa.int64()),
        "meta.photo": [True, False, True, False],
        "meta.a-b": [1, 2, 3, 4],
        "meta.class": ["x", "y", "x", None],
    }
)


def rows(text: str) -> list[int]:
    kept = TABLE.append_column("row", pa.array(range(4)))
    return kept.filter(conjunction(parse(text, TABLE.schema)))["row"].to_pylist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n_captions >= 2", [1, 2, 3]),
        ("quality_best >= 0.7", [0, 3]),  # not lost to float32 rounding
        ("quality_best == 0.4", [1]),
        ("0.3 < quality_best <= 0.7", [0, 1]),
        ("quality_best >= 0.5 and n_captions >= 2", [3]),
        ("n_captions == 1 or image_format == 'webp'", [0, 3]),
        ("not n_captions > 2", [0, 1]),
        ("not quality_best > 0.5", [1]),  # null stays out, as in SQL
        ("quality_best is None", [2]),
        ("quality_best is not None and n_captions > -1", [0, 1, 3]),
        ("meta.label in [0, 3]", [0, 3]),
        ("meta.label not in [0, 3]", [1]),
        ("not meta.label in [0, 3]", [1]),  # null stays out of all four
        ("not (meta.label not in [0, 3])", [0, 3]),
        ("not (meta.label in [0, 3] or n_captions > 3)", [1]),
        ("meta.label in [0, 3] or n_captions == 3", [0, 2, 3]),
        ("not (meta.label in [0, 3] and n_captions < 3)", [1, 2, 3]),
        ("image_format in ['png', 'webp']", [1, 3]),
        ("meta.photo", [0, 2]),
        ("2 < n_captions", [2, 3]),
        ("meta['a-b'] >= 2 and meta['class'] == 'x'", [2]),
        ("meta['label'] == meta.label and meta['class'] is None", [3]),
        ("meta['class'] in ['y']", [1]),
        ("n_captions > meta.label", [0, 1, 3]),
    ],
)
def test_language(text: str, expected: list[int]) -> None:
    assert rows(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "qualty_best > 1",
            r"unknown column 'qualty_best'; did you mean quality_best\?.*meta.photo",
        ),
        ("n_captions >", "not a condition"),
        ("__import__('os').system('true')", "not understood"),
        ("n_captions + 1 > 2", "not understood"),
        ("n_captions in 3", "not understood"),
        ("quality_best is 3", "not understood"),
        ("n_captions > 'many'", "cannot apply"),
        ("n_captions in ['a']", "n_captions"),
        ("n_captions", "cannot apply"),
        ("", "not a condition"),
        ("True", "not understood"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rows(text)
