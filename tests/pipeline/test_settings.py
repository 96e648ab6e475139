"""Configs: what a user mistypes is named with its fix; what is written is read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field

from pipeline.config import PipelineConfig
from pipeline.settings import ConfigError, Settings, build, describe, load, to_yaml

URLS = ("run=x", "source.kind=urls", "source.paths=list.csv")


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(PipelineConfig, None, [*URLS, *overrides])
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "key", "fix"),
    [
        ("downlod.threads=3", "downlod:", "did you mean download?"),
        ("download.thread=3", "download.thread:", "did you mean download.threads?"),
        (
            "filter.caption.repeats.max_repeat=3",
            "filter.caption.repeats.max_repeat:",
            "did you mean filter.caption.repeats.max_repeats?",
        ),
        (
            "source.caption_column=[a]",
            "source.caption_column:",
            "did you mean source.caption_columns?",
        ),
        (
            "recaption.captioners=[{kind: annotations, sed: 1}]",
            "recaption.captioners.0.sed:",
            "did you mean recaption.captioners.0.seed?",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_one(override: str, key: str, fix: str) -> None:
    message = refusal(override)
    assert key in message
    assert fix in message


def test_an_unknown_key_lists_only_the_keys_of_its_own_section_and_union_member() -> None:
    message = refusal("source.zzz=1")
    listed = message.split("known keys here: ")[1].split(", ")
    assert {"paths", "url_column", "caption_columns"} <= set(listed)
    assert "images" not in listed  # a key of the folder source
    assert "did you mean" not in message


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("download.threads=many", "download.threads:", "'many'"),
        ("download.threads='5'", "download.threads:", "'5'"),
        ("download.threads=true", "download.threads:", "True"),
        ("download.threads=0", "download.threads:", "0"),
        ("download.only_if_bigger=1", "download.only_if_bigger:", "1"),
        ("source.paths=3", "source.paths:", "3"),
        ("source.keep_columns=a", "source.keep_columns:", "'a'"),
        ("source.keep_columns=[a,2]", "source.keep_columns.1:", "2"),
        ("download.resources={GPU: one}", "download.resources.GPU:", "'one'"),
        ("download=3", "download:", "3"),
        ("run=null", "run:", "None"),
    ],
)
def test_a_wrong_type_names_key_and_value(override: str, key: str, value: str) -> None:
    message = refusal(override)
    assert f"{key} got {value};" in message


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["source.kind=url"],
            "source.kind: got url, allowed: scenes, urls, folder, webdataset; did you mean u",
        ),
        (["recaption.captioners=[{kind: annotation}]"], "recaption.captioners.0.kind: got annotat"),
        (["download.format=jpeg"], "download.format: got 'jpeg', allowed: jpg, png or webp"),
    ],
)
def test_a_wrong_tag_or_choice_lists_what_is_allowed(overrides: list[str], expected: str) -> None:
    assert expected in refusal(*overrides)


def test_a_union_without_tag_and_a_missing_key_say_so() -> None:
    with pytest.raises(ConfigError) as caught:
        load(PipelineConfig, None, ["source.paths=a"])
    assert "source.kind: got nothing, allowed: scenes, urls, folder, webdataset" in str(
        caught.value
    )
    assert "run: required, not given" in str(caught.value)
    with pytest.raises(ConfigError, match=r"source\.paths: required, not given"):
        load(PipelineConfig, None, ["run=x", "source.kind=urls"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["cluster.address=tcp://a:1", "cluster.slurm={jobs: 2}"], "exclude each other"),
        (["filter.caption.repeats.max_repeats=3"], "min_repeats (10) must not exceed max_repeats"),
        (["download.format=png"], "PNG compression is 0 to 9"),
        (["source.keep_columns=[captions]"], "'captions' is a name of our own"),
        (["source.split=../train"], "source.split"),
    ],
)
def test_impossible_combinations_are_refused(overrides: list[str], words: str) -> None:
    assert words in refusal(*overrides)


@pytest.mark.parametrize("override", ["run", "=3", "--run=x", "", "source.paths=[a", "a.b"])
def test_a_malformed_override_is_named(override: str) -> None:
    assert override in refusal(override)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "must hold `key: value` pairs"),
        ("a: b: c", "not readable YAML"),
        ("3", "not readable YAML"),
        ("run: a\nrun: b", "duplicate key run"),
        ("run: ???", "run"),
        ("run: ${nope}", "nope"),
        ("", "run: required"),
        ("1: 2", "1:"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"(?s)" + words.replace("$", r"\$")):
        load(PipelineConfig, path, URLS if text == "1: 2" else ())


def test_a_missing_file_a_folder_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load(PipelineConfig, tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="not readable"):
        load(PipelineConfig, tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not readable"):
        load(PipelineConfig, tmp_path / "binary.yaml")


class Leaf(Settings):
    text: str = "a"
    other: str | None = None
    number: float = 1.0
    pair: tuple[int, int] = (1, 2)
    items: list[str] = Field([])


class Tree(Settings):
    leaf: Leaf = Field(Leaf(), description="a leaf")
    leaves: list[Leaf] = Field([])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("other=null", None),
        ("other=x", "x"),
        ("items=[1,2]", ConfigError),
        ("items=[a,b]", ["a", "b"]),
        ("pair=[3,4]", (3, 4)),
        ("number=1e-3", 0.001),
        ("number=2", 2.0),
        ("text=https://host/a?b=c&d=e=", "https://host/a?b=c&d=e="),
        ("text=", ConfigError),  # an empty value is null
        ("text=''", ""),
        ("text='1e-3'", "1e-3"),
        ("text=${leaf.number}x", "1.5x"),
    ],
)
def test_override_values(tmp_path: Path, override: str, expected: object) -> None:
    path = tmp_path / "tree.yaml"
    path.write_text("leaf: {number: 1.5}")
    if expected is ConfigError:
        with pytest.raises(ConfigError, match=r"leaf\."):
            load(Tree, path, ["leaf." + override])
        return
    name = override.partition("=")[0]
    assert getattr(load(Tree, path, ["leaf." + override]).leaf, name) == expected


def test_an_override_wins_over_the_file_and_interpolation_follows_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("run: a\nsource: {kind: urls, paths: '${run}/list.csv'}\npart_rows: 5\n")
    config = load(PipelineConfig, path, ["run=b"])
    assert (config.run, config.source.paths, config.part_rows) == ("b", "b/list.csv", 5)


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


@given(
    texts=st.lists(TEXT | st.sampled_from(["1e-3", "null", "yes", "1_0", "a: b", "- a", "#"])),
    number=st.floats(allow_nan=False, allow_infinity=False),
)
@example(texts=["${run}", r"\${run}", r"\\${a}", "$", "${", r"\n", "a\\"], number=1e-300)
@example(texts=["1e5", "1.5E3", "0x1f", "1:30", "2020-01-01", "~", "", " a ", "+.5"], number=0.1)
def test_to_yaml_round_trips(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], number: float
) -> None:
    texts = [text for text in texts if text != "???"]  # OmegaConf's own mark: not given
    tree = Tree(leaf=Leaf(items=texts, number=number), leaves=[Leaf(text=t) for t in texts])
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(to_yaml(tree), encoding="utf-8")
    assert load(Tree, path) == tree


def test_a_pipeline_config_round_trips_whole(tmp_path: Path) -> None:
    config = load(PipelineConfig, None, [*URLS, "recaption.captioners=[{kind: annotations}]"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load(PipelineConfig, path) == config


def test_describe_lists_every_key_with_its_default() -> None:
    keys = {key: (default, text) for key, default, text in describe(PipelineConfig)}
    assert keys["run"][0] == "required"
    assert keys["part_rows"][0] == "10000"
    assert keys["download.threads"][0] == "32"
    assert keys["source.caption_columns"][0] == "['caption']"
    assert keys["source.images"][0] == "required"  # of another member of the union
    assert "jpg, png, webp" in keys["download.format"][1]
    assert any(key.startswith("recaption.captioners[].") for key in keys)
    assert set(leaves(load(PipelineConfig, None, URLS).model_dump())) <= set(keys)
    assert all(text for _, text in keys.values()), "a key without a description"


def leaves(data: dict[str, object], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, value in data.items():
        nested = isinstance(value, dict) and value
        found += leaves(value, f"{prefix}{name}.") if nested else [prefix + name]
    return found


def test_settings_are_immutable_and_build_says_where() -> None:
    with pytest.raises(ConfigError, match=r"^here:\n  leef: unknown key; did you mean leaf\?"):
        build(Tree, {"leef": {}}, where="here")
    with pytest.raises(ValueError, match="frozen"):
        Tree().leaf = Leaf()  # type: ignore[misc]
