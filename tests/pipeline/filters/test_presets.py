from pathlib import Path

import pytest

from pipeline.filters.animation import is_animated
from pipeline.filters.config import FilterConfig
from pipeline.filters.keywords import keyword_share
from pipeline.filters.presets import PRESETS
from pipeline.settings import ConfigError, Settings, build, load, to_yaml


def leaves(config: Settings) -> dict[str, object]:
    def walk(value: dict[str, object], prefix: str) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, item in value.items():
            inner = (
                walk(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
            )
            found |= inner
        return found

    return walk(config.model_dump(mode="json"), "")


@pytest.mark.parametrize("preset", [*PRESETS, None])
def test_the_resolved_config_shows_the_preset_and_reads_back_the_same(
    preset: str | None, tmp_path: Path
) -> None:
    config = build(FilterConfig, {"preset": preset})
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load(FilterConfig, path) == config


def test_presets_are_what_their_papers_say() -> None:
    datacomp = leaves(build(FilterConfig, {"preset": "datacomp-basic"}))
    none = leaves(build(FilterConfig, {"preset": "none"}))
    changed = {key: value for key, value in datacomp.items() if none[key] != value}
    assert changed == {
        "preset": "datacomp-basic",
        "image.min_side": 200,
        "image.max_aspect": 3.0,
        "caption.min_words": 3,
        "caption.min_characters": 6,
        "caption.min_english": 0.2,
        "on_bad_caption": "drop_image",
    }
    laion = leaves(build(FilterConfig, {"preset": "laion"}))
    changed = {key: value for key, value in laion.items() if none[key] != value}
    assert changed == {
        "preset": "laion",
        "caption.min_characters": 5,
        "caption.min_english": 0.2,
        "scores.min_cosine": 0.28,
        "on_bad_caption": "drop_image",
    }


def test_explicit_keys_win_over_the_preset_and_it_over_the_defaults() -> None:
    config = build(
        FilterConfig,
        {"preset": "strict", "caption": {"min_words": 2}, "image": {"min_sharpness": None}},
    )
    assert config.caption.min_words == 2
    assert config.image.min_sharpness is None
    assert config.caption.repeats.max_repeats == 10
    assert config.image.min_side == FilterConfig().image.min_side
    assert config.caption.min_english == 0.5


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"preset: got 'laoin', .*did you mean laion"):
        build(FilterConfig, {"preset": "laoin"})


def test_scores_that_rules_need() -> None:
    assert build(FilterConfig, {"preset": "laion"}).scores.needed() == {"cosine": "min_cosine"}
    assert build(FilterConfig, {"preset": "strict"}).scores.needed() == {"quality": "top_fraction"}
    assert FilterConfig().scores.needed() == {}


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("star, red, meadow, red star, stock photo", 1.0),
        ("dog | puppy | cute pet | 4k", 1.0),
        ("#sunset #beach #summer vibes", 1.0),
        ("A dog, a cat and a bird", 0.0),
        ("red, blue", 0.0),
        ("A black , white and brown dog runs through a field", 0.0),
        ("Two dogs , one brown , one gray play while a person in jeans stand near by", 2 / 3),
        ("Paris, France, 2019, seen from the Seine", 0.75),
        ("", 0.0),
        (",,,;;", 0.0),
    ],
)
def test_keyword_lists(text: str, share: float) -> None:
    assert keyword_share(text) == pytest.approx(share)


def png_chunks(*names: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        b"\x00\x00\x00\x00" + name + b"\x00\x00\x00\x00" for name in names
    )


def gif(frames: int, *, table: bool = False, comment: bool = False) -> bytes:
    colours = bytes(6)
    data = b"GIF89a" + b"\x01\x00\x01\x00" + (b"\x80" if table else b"\x00") + b"\x00\x00"
    data += colours if table else b""
    if comment:
        data += b"\x21\xfe\x03,,,\x00"  # commas are 0x2C, the mark of a frame
    local = b"\x00" if table else b"\x80"
    frame = b"\x2c" + bytes(8) + local + (b"" if table else colours) + b"\x02\x02\x4c\x01\x00"
    return data + frame * frames + b"\x3b"


@pytest.mark.parametrize(
    ("data", "animated"),
    [
        (png_chunks(b"IHDR", b"acTL", b"IDAT", b"IEND"), True),
        (png_chunks(b"IHDR", b"IDAT", b"IEND"), False),
        (png_chunks(b"IHDR", b"IDAT", b"acTL"), False),
        (png_chunks(b"IHDR", b"acTL"), False),
        (b"RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x02", True),
        (b"RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x10", False),
        (b"RIFF\x00\x00\x00\x00WEBPVP8X", False),
        (gif(1), False),
        (gif(2), True),
        (gif(1, table=True, comment=True), False),
        (gif(2, table=True, comment=True), True),
        (gif(2)[:25], False),
        (b"GIF89a", False),
        (b"", False),
        (b"\xff\xd8\xff\xe0", False),
    ],
)
def test_animation(data: bytes, animated: bool) -> None:
    assert is_animated(data) is animated


def test_real_animations() -> None:
    from io import BytesIO

    from PIL import Image

    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    for kind in ("GIF", "WEBP", "PNG"):
        for more in (frames[1:], []):
            file = BytesIO()
            frames[0].save(file, kind, save_all=True, append_images=more)
            assert is_animated(file.getvalue()) is bool(more), kind
