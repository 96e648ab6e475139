"""Every config in `data_configs/` against a small made-up list with that release's real columns."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import yaml
from omegaconf import OmegaConf

from pipeline.cli import main
from pipeline.config import PipelineConfig
from pipeline.settings import build, load
from pipeline.sources.build import build_source
from pipeline.sources.row import MARK, meta_types, to_table

CONFIGS = Path(__file__).parents[2] / "data_configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
SHA = "0123456789abcdef" * 4
URL = "https://example.com/{}.jpg"

Expected = list[tuple[str | None, list[str], dict[str, Any]]]


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def cc3m(folder: Path, _: Any) -> tuple[Path, Expected]:
    """`Train_GCC-training.tsv`: no header, and quotes that open and never close."""
    path = folder / "Train_GCC-training.tsv"
    path.write_text(
        f'a very typical bus station\t{URL.format(1)}\n" the view from here\t{URL.format(2)}\n'
    )
    return path, [
        (URL.format(1), ["a very typical bus station"], {}),
        (URL.format(2), ['" the view from here'], {}),
    ]


def cc12m(folder: Path, _: Any) -> tuple[Path, Expected]:
    path = folder / "cc12m.tsv"
    path.write_text(f'{URL.format(1)}\t"Metal" sign by <PERSON>\n{URL.format(2)}\t\n')
    return path, [
        (URL.format(1), ['"Metal" sign by <PERSON>'], {}),
        (URL.format(2), [], {}),
    ]


def yfcc15m(folder: Path, _: Any) -> tuple[Path, Expected]:
    """`metadata/metadata_NNN.jsonl.gz` of the joined subset, all 24 columns."""
    row = {
        "photoid": 6185218911,
        "uid": "4e2f7a26a1dfbf165a7e30bdabf7e72a",
        "unickname": "guckxzs",
        "datetaken": "2012-02-16 09:56:37.0",
        "dateuploaded": "1331840483",
        "capturedevice": "Canon+PowerShot+ELPH+310+HS",
        "title": "Our+dog%27s+first+snow",
        "description": "%3Ca+href%3D%22http%3A%2F%2Fx%22%3EMore%3C%2Fa%3E+the+hill%0A%26amp%3B+me",
        "usertags": "canon,snow",
        "machinetags": "",
        "longitude": "-81.804885",
        "latitude": "24.550558",
        "accuracy": 12,
        "pageurl": "http://www.flickr.com/photos/39089491@N00/6985418911/",
        "downloadurl": "http://live.staticflickr.com/7205/6985418911_df7747990d.jpg",
        "licensename": "Attribution-NonCommercial-NoDerivs License",
        "licenseurl": "http://creativecommons.org/licenses/by-nc-nd/2.0/",
        "serverid": 7205,
        "farmid": 8,
        "secret": "df7747990d",
        "secretoriginal": "692d7e0a7f",
        "ext": "jpg",
        "marker": 0,
        "key": "0012b9d4f5fa3fc4a2e5e0b1e8d6b1",
    }
    path = folder / "metadata_000.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(row) + "\n").encode()))
    kept = ("photoid", "unickname", "pageurl", "licensename", "licenseurl")
    captions = ["Our dog's first snow", "More the hill & me"]
    return path, [(row["downloadurl"], captions, {name: row[name] for name in kept})]


def datacomp(folder: Path, _: Any) -> tuple[Path, Expected]:
    kept = {
        "uid": "139e4a9b22a614771f06c700a8ebe150",
        "clip_b32_similarity_score": 0.25,
        "clip_l14_similarity_score": 0.5,
    }
    row = {
        "url": URL.format(1),
        "text": "Two cats",
        "original_width": 640,
        "original_height": 480,
        "face_bboxes": [[0.1, 0.2, 0.3, 0.4]],
        "sha256": SHA,
        **kept,
    }
    path = parquet(folder / "0000.parquet", [row])
    return path, [(URL.format(1), ["Two cats"], {"expected_sha256": SHA, **kept})]


def recap(folder: Path, _: Any) -> tuple[Path, Expected]:
    kept = {"key": "0000012", "org_clip_score": 0.25, "re_clip_score": 0.5}
    row = {
        "url": URL.format(1),
        "re_caption": "The image shows two cats on a sofa.",
        "org_caption": "IMG cats",
        "sha256": SHA,
        "re_length": 9,
        "org_length": 2,
        "re_gpt4v_score": None,
        "org_gpt4v_score": 3,
        **kept,
    }
    path = parquet(folder / "train-00000-of-04627.parquet", [row])
    captions = ["IMG cats", "The image shows two cats on a sofa."]
    return path, [(URL.format(1), captions, {"expected_sha256": SHA, **kept})]


def laion(folder: Path, _: Any) -> tuple[Path, Expected]:
    row = {
        "SAMPLE_ID": 1581282014547,
        "URL": URL.format(1),
        "TEXT": "A sofa, 3 seats",
        "HEIGHT": 480,
        "WIDTH": 640,
        "LICENSE": "?",
        "NSFW": "UNLIKELY",
        "similarity": 0.3125,
    }
    path = parquet(folder / "part-00000-5114fd87-c000.snappy.parquet", [row])
    return path, [(URL.format(1), ["A sofa, 3 seats"], {"similarity": 0.3125})]


def coyo(folder: Path, _: Any) -> tuple[Path, Expected]:
    kept = {
        "clip_similarity_vitb32": 0.4296875,
        "clip_similarity_vitl14": 0.375,
        "nsfw_score_opennsfw2": 0.25,
        "watermark_score": 0.125,
        "aesthetic_score_laion_v2": 5.5,
    }
    row = {
        "id": 841814333321,
        "url": URL.format(1),
        "text": "A dog in a field of flowers",
        "width": 1000,
        "height": 988,
        "image_phash": "c9b6a7d8469c1959",
        "text_length": 27,
        "word_count": 7,
        "num_tokens_bert": 9,
        "num_tokens_gpt": 8,
        "num_faces": 0,
        "nsfw_score_gantman": 0.5,
        **kept,
    }
    path = parquet(folder / "part-00000-17da4908-c000.snappy.parquet", [row])
    return path, [(URL.format(1), ["A dog in a field of flowers"], kept)]


def img2dataset_shards(folder: Path, image: Callable[..., bytes]) -> tuple[Path, Expected]:
    path = folder / "00000.tar"
    with webdataset.TarWriter(str(path)) as writer:
        writer.write({"__key__": "000000000", "jpg": image(), "txt": "a cat", "json": b"{}"})
    columns = ("url", "caption", "key", "status", "error_message", "width", "height", "sha256")
    values = [
        (URL.format(1), "a cat", "000000000", "success", None, 40, 30, SHA),
        (URL.format(2), "a dog", "000000001", "failed_to_download", "HTTP Error 404", *[None] * 3),
    ]
    rows = [dict(zip(columns, row, strict=True)) for row in values]
    parquet(folder / "00000.parquet", [{**row, "original_width": 80} for row in rows])
    return path, [(URL.format(1), ["a cat"], {}), (URL.format(2), ["a dog"], {})]


def urls(folder: Path, _: Any) -> tuple[Path, Expected]:
    path = parquet(folder / "list.parquet", [{"url": URL.format(1), "caption": "a cat"}])
    return path, [(URL.format(1), ["a cat"], {})]


LISTS: dict[str, Callable[[Path, Any], tuple[Path, Expected]]] = {
    "cc3m": cc3m,
    "cc12m": cc12m,
    "yfcc15m": yfcc15m,
    "datacomp_small": datacomp,
    "datacomp_medium": datacomp,
    "recap_datacomp_1b": recap,
    "laion": laion,
    "coyo": coyo,
    "img2dataset_shards": img2dataset_shards,
    "urls": urls,
}
OTHERS = {"folder", "scenes", "studies", "studies_cpu"}


def test_every_config_is_tested() -> None:
    assert set(NAMES) == set(LISTS) | OTHERS


def rows_of(config: PipelineConfig) -> list[dict[str, Any]]:
    source = build_source(config.source)
    source.check()
    return list(source.rows())


@pytest.mark.parametrize("name", LISTS)
def test_a_list_with_the_real_columns_becomes_rows(
    name: str, tmp_path: Path, image: Callable[..., bytes]
) -> None:
    path, expected = LISTS[name](tmp_path, image)
    config = load(PipelineConfig, CONFIGS / f"{name}.yaml", [f"source.paths={path}"])
    rows = rows_of(config)
    columns = {"url", "captions", "split", "row_error", "stored", MARK}
    found = [
        (row["url"], row["captions"], {k: row[k] for k in row if k not in columns}) for row in rows
    ]
    assert found == expected
    assert {row["row_error"] for row in rows} == {None}
    table = to_table(rows, meta_types(rows))
    for kept in set(expected[0][2]) - {"expected_sha256"}:
        assert f"meta.{kept}" in table.column_names


@pytest.mark.parametrize("name", LISTS)
def test_the_command_plans_it_and_writes_nothing(
    name: str, tmp_path: Path, image: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = LISTS[name](tmp_path, image)
    run = tmp_path / "run"
    arguments = ["shards", str(CONFIGS / f"{name}.yaml"), "--dry-run", f"run={run}"]
    assert main([*arguments, f"source.paths={path}"]) == 0
    printed = capsys.readouterr().out
    assert "not cut yet" in printed
    assert not run.exists()
    resolved, _, _ = printed.partition("run directory:")
    assert build(PipelineConfig, yaml.safe_load(resolved)).run == str(run)


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_another_layout_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = parquet(tmp_path / "other.parquet", [{"link": "x", "title": "y"}])
    if name == "img2dataset_shards":
        rows = [{"key": "0", "status": "success", "link": "x"}]
        parquet(tmp_path / "x.parquet", rows)
        path = tmp_path / "x.tar"
        path.write_bytes(b"")
    overrides = [f"run={tmp_path / 'run'}", f"source.paths={path}"]
    assert main(["shards", str(CONFIGS / f"{name}.yaml"), "--dry-run", *overrides]) == 2
    assert "source.columns" in (err := capsys.readouterr().err) or "no column" in err


@pytest.mark.parametrize("name", NAMES)
def test_comments_say_what_there_is_to_know(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert f"data_configs/{name}.yaml" in text or name == "scenes"
    if name in OTHERS | {"urls"}:
        return
    for heading in ("List", "Layout", "Licence", "Rot", "Disk"):
        assert re.search(rf"^# {heading} +\S", text, re.MULTILINE), heading
    assert "Re-caption plan:" in text


@pytest.mark.parametrize("name", sorted(set(LISTS) - {"urls", "recap_datacomp_1b"}))
def test_what_is_commented_out_works_when_uncommented(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    sections = "|".join(PipelineConfig.model_fields)
    lines = re.findall(rf"^# ((?:{sections}): .*|(?:{sections}):$|  .*)$", text, re.MULTILINE)
    first = next(n for n, line in enumerate(lines) if re.match(rf"({sections}):", line))
    planned = OmegaConf.create("\n".join(lines[first:]))
    merged = OmegaConf.merge(OmegaConf.load(CONFIGS / f"{name}.yaml"), planned)
    config = build(PipelineConfig, cast(dict[str, Any], OmegaConf.to_container(merged)))
    assert [captioner.kind for captioner in config.recaption.captioners] == ["openai"]
    if name.startswith("datacomp"):
        assert config.filter.scores.top_fraction == 0.3
        assert config.filter.caption.min_words == 3  # the preset holds
        assert config.embed is not None


def test_cc12m_of_the_hub(tmp_path: Path) -> None:
    """The overrides that `cc12m.yaml` names for the parquet copy."""
    path = parquet(tmp_path / "a.parquet", [{"image_url": URL.format(1), "caption": "a cat"}])
    overrides = [f"source.paths={path}", "source.columns=null", "source.url_column=image_url"]
    (row,) = rows_of(load(PipelineConfig, CONFIGS / "cc12m.yaml", overrides))
    assert (row["url"], row["captions"]) == (URL.format(1), ["a cat"])


def test_re_laion_and_the_joined_lists(tmp_path: Path) -> None:
    """The overrides that `laion.yaml` names."""
    row = {"url": URL.format(1), "caption": "a cat", "similarity": 0.5, "punsafe": 0.25}
    path = parquet(tmp_path / "a.parquet", [row])
    overrides = ["source.url_column=url", "source.caption_columns=[caption]"]
    overrides += [f"source.paths={path}", "source.keep_columns=[similarity,punsafe]"]
    (found,) = rows_of(load(PipelineConfig, CONFIGS / "laion.yaml", overrides))
    assert (found["url"], found["captions"]) == (URL.format(1), ["a cat"])
    assert found["punsafe"] == 0.25


def test_folder(tmp_path: Path, image: Callable[..., bytes]) -> None:
    (tmp_path / "a.jpg").write_bytes(image())
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,a cat\n")
    overrides = [f"source.images={tmp_path}", f"source.captions={tmp_path / 'captions.csv'}"]
    (row,) = rows_of(load(PipelineConfig, CONFIGS / "folder.yaml", overrides))
    assert (row["url"], row["captions"]) == ("a.jpg", ["a cat"])


@pytest.mark.parametrize("name", ["scenes", "studies"])
def test_scenes_plan(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["shards", str(CONFIGS / f"{name}.yaml"), "--dry-run", f"run={run}"]) == 0
    assert "source: scenes, not cut yet" in capsys.readouterr().out
