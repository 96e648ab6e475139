"""Shards whose captions were corrupted before scoring: what is written, and that scores see it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.captioners.annotations import AnnotationsCaptioner, AnnotationsConfig
from pipeline.captioners.request import CaptionRequest
from pipeline.schema import Caption
from pipeline.settings import ConfigError, build
from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.images import image_bytes
from pipeline.sources.scenes.world import scene
from tcjepa.ablate.noisy_shards import NoisyConfig, write_noisy
from tcjepa.data.captions import eligible
from tcjepa.data.config import DataConfig
from tcjepa.data.index import ShardIndex
from tcjepa.data.reader import ShardReader
from tests.tcjepa.shards import caption, write_shards

RATE = 0.4


def derangement(rate: float = RATE, **changes: Any) -> NoisyConfig:
    return build(NoisyConfig, {"kind": "derangement", "rate": rate, **changes})


def entries(out: Path, split: str) -> list[dict[str, Any]]:
    """The JSON members of the tars of a split, in order."""
    found = []
    for path in sorted((out / "tars").glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member)
                if member.name.endswith(".json") and data is not None:
                    found.append(json.load(data))
    return found


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_shards(
        tmp_path / "shards",
        60,
        captions=lambda i: [caption(f"alt {i}"), caption(f"own {i}", "annotations:object")],
        split=lambda i: "train" if i < 50 else "test",
        meta=lambda i: {"shape": "circle", "annotations": '{"objects": []}'},
    )
    return tmp_path


def test_training_captions_are_corrupted_and_the_rest_is_kept(written: Path) -> None:
    write_noisy(str(written / "shards"), written / "out", derangement(1.0))
    train, test = entries(written / "out", "train"), entries(written / "out", "test")
    assert (len(train), len(test)) == (50, 10)
    for entry in train:
        own = entry["url"].rpartition("/")[2].partition(".")[0]
        assert [text.split()[0] for text in entry["captions"]] == ["alt", "own"]
        assert all(text.split()[1] != own for text in entry["captions"])
        assert entry["corrupted_captions"] == 2
    for entry in test:
        own = entry["url"].rpartition("/")[2].partition(".")[0]
        assert entry["captions"] == [f"alt {own}", f"own {own}"]
        assert entry["corrupted_captions"] == 0
    assert {entry["split"] for entry in train} == {"train"}
    assert all(entry["shape"] == "circle" and "scores" not in entry for entry in train + test)


def test_truth_says_which_captions_are_wrong(written: Path) -> None:
    write_noisy(str(written / "shards"), written / "out", derangement())
    truth = pq.read_table(written / "out" / "truth.parquet").to_pylist()
    said = {(row["original_uid"], row["text"]): row for row in truth}
    assert len(said) == len(truth) == 120
    for entry in entries(written / "out", "train"):
        own = entry["url"].rpartition("/")[2].partition(".")[0]
        rows = [said[entry["original_uid"], text] for text in entry["captions"]]
        assert [row["corrupted"] for row in rows] == [row["text"].split()[1] != own for row in rows]
        assert entry["corrupted_captions"] == sum(row["corrupted"] for row in rows)
        assert [row["clean_text"] for row in rows] == [f"alt {own}", f"own {own}"]
    share = np.mean([row["corrupted"] for row in truth]) * 120 / 100  # of the train captions
    assert 0.25 < share < 0.55


def test_the_same_config_writes_the_same_bytes_and_sources_choose(written: Path) -> None:
    for name in ("one", "two"):
        write_noisy(str(written / "shards"), written / name, derangement(sources=["alt"]))
    digests = [
        [hashlib.sha256(p.read_bytes()).digest() for p in sorted((written / n / "tars").iterdir())]
        for n in ("one", "two")
    ]
    assert digests[0] == digests[1]
    assert all(len(entry["captions"]) == 1 for entry in entries(written / "one", "train"))
    with pytest.raises(ConfigError, match="is not empty"):
        write_noisy(str(written / "shards"), written / "one", derangement())


def test_unusable_shards_are_refused(written: Path) -> None:
    with pytest.raises(ConfigError, match=r"train_split=training: .* has test, train"):
        write_noisy(str(written / "shards"), written / "out", derangement(train_split="training"))
    write_shards(written / "taken", 4, meta=lambda i: {"captions": "mine"})
    with pytest.raises(ConfigError, match=r"meta\.captions has a name of the tars' own"):
        write_noisy(str(written / "taken"), written / "out2", derangement())


# The same through the pipeline, on scenes: do its scores see what was corrupted before them?

# Rows of the test split have no faults.
SCENES = ScenesConfig(min_side=64, max_side=96)
CAPTIONER = AnnotationsCaptioner(AnnotationsConfig(max_captions=6))


def told(number: int) -> list[Caption]:
    request = CaptionRequest(f"{number:032x}", b"", scene(SCENES, "test", number).annotations())
    return [caption(text, "annotations:x") for text, _ in CAPTIONER.caption([request])[0].captions]


@pytest.fixture(scope="module")
def rescored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world, its captions deranged at 40%, scored and packed by the pipeline."""
    folder = tmp_path_factory.mktemp("noisy")
    write_shards(
        folder / "shards",
        400,
        captions=told,
        shard_size=200,
        split=lambda i: "train" if i < 380 else "test",
        encode=lambda i: image_bytes(SCENES, "test", i),
        meta=lambda i: {"annotations": scene(SCENES, "test", i).annotations(), "colour": "red"},
    )
    for command in (
        ["tcjepa.ablate.noisy_shards", str(folder / "shards"), str(folder / "out"),
         "kind=derangement", f"rate={RATE}"],
        ["pipeline", "shards", str(folder / "out" / "noisy.yaml"), "cluster.dashboard=null"],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    return folder / "out"


def scored(out: Path, **options: Any) -> list[tuple[bool, bool, float]]:
    """(corrupted, admitted by the options, quality) of every training caption."""
    rows = pq.read_table(out / "truth.parquet").to_pylist()
    truth = {(row["original_uid"], row["text"]): row["corrupted"] for row in rows}
    config = DataConfig(shards=str(out / "shards"), cache_dir=str(out / "cache"), **options)
    reader = ShardReader(ShardIndex.open(config), config.cache_bytes)
    found = []
    for row in range(len(ShardIndex.open(config))):
        sample = reader.sample(row)
        admitted = eligible(sample["captions"], config)
        for number, item in enumerate(sample["captions"]):
            quality = item["scores"]["quality"]
            assert quality is not None
            wrong = truth[sample["meta"]["original_uid"], item["text"]]
            found.append((wrong, number in admitted, quality))
    return found


def test_quality_of_corrupted_captions_is_lower(rescored: Path) -> None:
    found = scored(rescored)
    wrong = np.array([quality for corrupted, _, quality in found if corrupted])
    right = np.array([quality for corrupted, _, quality in found if not corrupted])
    assert 0.3 < len(wrong) / len(found) < 0.5
    differences = right[:, None] - wrong[None, :]
    auc = np.mean(differences > 0) + np.mean(differences == 0) / 2
    assert auc > 0.75


def test_training_on_filtered_shards_drops_corrupted_captions(rescored: Path) -> None:
    found = scored(rescored, min_caption_quality=0.5)
    dropped = [corrupted for corrupted, admitted, _ in found if not admitted]
    corrupted = [admitted for corrupted, admitted, _ in found if corrupted]
    assert 0.1 < len(dropped) / len(found) < 0.6
    assert np.mean(dropped) > 0.6  # precision; chance is 0.4
    assert 1 - np.mean(corrupted) > 0.4  # recall


def test_labels_and_splits_survive(rescored: Path) -> None:
    for split, count in (("train", 380), ("test", 20)):
        config = DataConfig(
            shards=str(rescored / "shards"), split=split, cache_dir=str(rescored / "cache")
        )
        index = ShardIndex.open(config)
        assert len(index) == count
        sample = ShardReader(index, config.cache_bytes).sample(0)
        assert sample["meta"]["colour"] == "red"
        assert json.loads(sample["meta"]["annotations"])["objects"]
        assert (sample["meta"]["corrupted_captions"] == 0) or split == "train"
