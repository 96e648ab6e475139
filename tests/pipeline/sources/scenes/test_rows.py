import json
import re
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filters.language import detector
from pipeline.sources.scenes import SCHEMA, CaptionShares, ScenesConfig, UrlFaultShares, rows
from pipeline.sources.scenes.faults import original, swap_partner, url_fault
from pipeline.sources.scenes.rows import row
from pipeline.sources.scenes.vocabulary import COLOURS, SHAPES, TEXTURES
from pipeline.sources.scenes.world import scene, stream

WORLD = ScenesConfig(train=2500, test=60)
TABLE = list(rows(WORLD))
TRAIN = [r for r in TABLE if r["split"] == "train"]


def only(kind: str) -> CaptionShares:
    return CaptionShares(**{name: float(name == kind) for name in CaptionShares.model_fields})


def texts(kind: str) -> list[str]:
    return [r["captions"][0] for r in TRAIN if r["caption_fault"] == kind]


def named_things(text: str) -> set[tuple[str, str]]:
    """(shape, colour) pairs that an English text names."""
    colours, shapes = "|".join(COLOURS), "|".join(SHAPES)
    return {(s, c) for c, s in re.findall(rf"({colours}) ({shapes})", text.lower())}


def truth(line: dict[str, str]) -> set[tuple[str, str]]:
    objects = json.loads(line["annotations"])["objects"]
    return {(o["category"], o["attributes"][-1]) for o in objects}


def test_rows_are_a_table_of_the_agreed_columns() -> None:
    table = pa.Table.from_pylist(TABLE, schema=SCHEMA)
    assert table.num_rows == 2560
    assert set(TABLE[0]) == set(SCHEMA.names)
    assert len(set(table["url"].to_pylist())) == 2560
    assert Counter(table["split"].to_pylist()) == {"train": 2500, "test": 60}
    assert table["row_error"].null_count == 2560
    assert TABLE[7]["url"] == "http://127.0.0.1:8765/train/000007.jpg"


@given(st.integers(0, 2499))
def test_a_row_depends_on_its_number_alone(index: int) -> None:
    assert row(WORLD, "train", index) == TABLE[index]


@pytest.mark.parametrize(
    ("column", "shares"),
    [("caption_fault", WORLD.captions), ("url_fault", WORLD.faults)],
)
def test_shares_converge_to_the_config(column: str, shares: CaptionShares | UrlFaultShares) -> None:
    counts = Counter(r[column] for r in TRAIN)
    expected = shares.model_dump()
    assert set(counts) - {"none"} == set(expected)
    for name, share in expected.items():
        spread = (share * (1 - share) / len(TRAIN)) ** 0.5
        assert counts[name] / len(TRAIN) == pytest.approx(share, abs=4 * spread), name


def textures(line: dict[str, str]) -> set[str]:
    """Textures of the objects of the labelled shape and colour; plain goes without saying."""
    return {
        next((name for name in TEXTURES if name in item["attributes"]), "plain")
        for item in json.loads(line["annotations"])["objects"]
        if (item["category"], item["attributes"][-1]) == (line["shape"], line["colour"])
    }


def test_held_out_rows_are_sound_right_and_labelled() -> None:
    for line in TABLE[2500:]:
        assert (line["caption_fault"], line["url_fault"]) == ("right", "none")
        assert len(line["captions"]) == 1
        assert named_things(line["captions"][0]) <= truth(line)
        assert (line["shape"], line["colour"]) in truth(line)
        assert line["n_objects"] == len(truth(line))
        assert line["texture"] in textures(line)


def test_right_texts_say_only_true_things_and_name_the_labelled_object() -> None:
    for line in TRAIN:
        if line["caption_fault"] == "right" and line["url_fault"] != "blank":
            named = named_things(line["captions"][0])
            assert (line["shape"], line["colour"]) in named <= truth(line), line["captions"]


def test_partly_right_texts_have_one_thing_wrong() -> None:
    wrong = Counter()
    for line in TRAIN:
        if line["caption_fault"] == "partial" and line["url_fault"] != "blank":
            false = named_things(line["captions"][0]) - truth(line)
            assert len(false) <= 1, line["captions"]
            wrong[len(false)] += 1
    # The rest has a wrong background or relation.
    assert wrong[1] > wrong[0] > 0


def test_swapped_texts_are_of_another_scene_never_its_own() -> None:
    shown = [r for r in TRAIN if r["caption_fault"] == "swapped" and r["url_fault"] != "blank"]
    for line in shown:
        named = named_things(line["captions"][0])
        assert named and not named <= truth(line)


@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 100))
def test_swap_partner_is_never_the_scene_shown(train: int, index: int, seed: int) -> None:
    config = ScenesConfig(train=train, seed=seed)
    shown = scene(config, "train", original(config, "train", index % train))
    partner = swap_partner(config, shown, stream(seed, "train", index, "test"))
    assert partner.index != shown.index
    names = {(o.shape, o.colour) for o in shown.objects}
    assert (partner.prominent.shape, partner.prominent.colour) not in names


def test_foreign_texts_are_in_several_other_languages() -> None:
    found = Counter(detector().detect(text).code for text in texts("foreign"))
    assert len([language for language, n in found.items() if n >= 5]) >= 5
    assert found["en"] / found.total() < 0.1


def test_other_kinds_look_as_they_are_called() -> None:
    assert all(re.fullmatch(r"\S+\.(jpe?g|JPG|png|webp)", text) for text in texts("filename"))
    assert all(len(text.split()) <= 2 for text in texts("short"))
    assert all(text.count(",") >= 5 for text in texts("keywords"))
    boilerplate = Counter(texts("boilerplate"))
    assert len(boilerplate) < 0.2 * boilerplate.total()
    assert all(not r["captions"] for r in TRAIN if r["caption_fault"] == "empty")


@pytest.mark.parametrize("kind", list(CaptionShares.model_fields))
def test_a_share_of_one_is_all(kind: str) -> None:
    world = ScenesConfig(train=20, test=0, captions=only(kind))
    assert {r["caption_fault"] for r in rows(world)} == {kind}


def test_copies_are_of_scenes_with_a_sound_url() -> None:
    for index, line in enumerate(TRAIN):
        source = original(WORLD, "train", index)
        if line["url_fault"] in ("duplicate", "near_duplicate"):
            assert source != index
            assert url_fault(WORLD, "train", source) == "none"
            assert line["annotations"] == TRAIN[source]["annotations"]
        else:
            assert source == index


def test_blank_rows_tell_of_nothing_shown() -> None:
    blank = [r for r in TRAIN if r["url_fault"] == "blank"]
    assert blank
    assert all(r["n_objects"] == 0 and r["shape"] is None for r in blank)
    assert all(json.loads(r["annotations"])["objects"] == [] for r in blank)


@pytest.mark.parametrize("train", [0, 1, 2])
def test_the_smallest_worlds_have_rows(train: int) -> None:
    faults = UrlFaultShares(duplicate=0.5, near_duplicate=0.2)
    for seed in range(20):
        world = ScenesConfig(train=train, test=1, seed=seed, faults=faults)
        assert len(list(rows(world))) == train + 1
