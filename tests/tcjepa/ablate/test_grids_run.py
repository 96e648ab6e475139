"""A study of several grids from start to report: shared arms, arms on other shards, kept shares."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.settings import ConfigError, load
from tcjepa.ablate import kept, provenance
from tcjepa.ablate.study import StudyConfig, trials_of
from tcjepa.config import TrainConfig
from tcjepa.evaluation import UNTRAINED
from tests.tcjepa.ablate.worlds import TINY, command, make_world, study
from tests.tcjepa.shards import caption, write_shards

X = "data.noise.rate"
QUALITIES = (0.2, 0.8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_world(tmp_path_factory.mktemp("grids"))
    write_shards(
        folder / "other",
        24,
        captions=lambda i: [caption(f"thing {i}, {q}", quality=q) for q in QUALITIES],
    )
    kinds = [
        {"name": kind, "set": [f"data.noise.kind={kind}"], "axes": {X: [0.0]}}
        for kind in ("derangement", "typos")
    ]
    filtered = {
        "name": "filtered",
        "set": [f"data.shards={folder / 'other'}", "data.min_caption_quality=0.5"],
        "axes": {X: [0.0]},
    }
    made = study(
        folder,
        axes={},
        set=[f"evaluate.shards={folder / 'shards'}"],
        references={},
        grids=[*kinds, filtered],
        contrasts=[["rate 0.0", "filtered, rate 0.0"]],
    )
    (folder / "study.yaml").write_text(yaml.safe_dump(made.model_dump(mode="json")))
    done = subprocess.run(
        [*command(folder), "--no-estimate"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_arms_are_run_once_and_all_reported(finished: Path) -> None:
    folders = sorted(path.name for path in (finished / "study" / "trials").iterdir())
    assert folders == ["filtered--rate-0.0", "rate-0.0"]
    result = json.loads((finished / "study" / "result.json").read_text())
    ran = [trial["arm"] for trial in result["trials"] if trial["arm"] != UNTRAINED]
    assert ran == ["rate 0.0", "filtered, rate 0.0"] and not result["missing"]
    (contrast,) = result["contrasts"]
    assert (contrast["better"], contrast["worse"]) == ("rate 0.0", "filtered, rate 0.0")
    points = {curve["name"]: curve["points"] for curve in result["curves"]}
    assert points["derangement"] == points["typos"] == [[0.0, "rate 0.0"]]


def test_arms_on_other_shards_are_no_mix_but_changed_shards_are(finished: Path) -> None:
    made = load(StudyConfig, finished / "study.yaml")
    trials = trials_of(made)
    lines = provenance.check_same(made, trials)
    assert sorted(line.rpartition("(")[2] for line in lines) == ["1 runs)", "1 runs)"]
    assert sum("tested on" in line for line in lines) == 1
    # Another seed of the first arm, on shards that were packed anew in between.
    again = replace(trials[0], seed=1, folder=str(finished / "again"))
    Path(again.folder).mkdir()
    found = json.loads((Path(trials[0].folder) / provenance.PROVENANCE).read_text())
    for name in ("evaluation.json", "tallies.npz"):
        content = (Path(trials[0].folder) / name).read_bytes()
        (Path(again.folder) / name).write_bytes(content)
    (Path(again.folder) / provenance.PROVENANCE).write_text(json.dumps({**found, "data": "f" * 64}))
    with pytest.raises(ConfigError, match="different code, libraries or data"):
        provenance.check_same(made, [*trials, again])


def test_a_report_says_how_much_an_arm_keeps(finished: Path) -> None:
    result = json.loads((finished / "study" / "result.json").read_text())
    shares = {
        trial["arm"]: (trial["training"][kept.IMAGES], trial["training"][kept.CAPTIONS])
        for trial in result["trials"]
        if trial["arm"] != UNTRAINED
    }
    assert shares["rate 0.0"] == (1, 1)
    assert shares["filtered, rate 0.0"] == (1, 0.5)


def test_kept_shares_of_filters_and_thresholds(tmp_path: Path) -> None:
    write_shards(
        tmp_path / "shards",
        40,
        captions=lambda i: [
            caption("a b c", quality=i / 40),
            caption("d e f", "weak:x", quality=0.0),
        ],
    )
    base = {**TINY, "data": {**TINY["data"], "shards": str(tmp_path / "shards")}}  # type: ignore[dict-item]
    base["data"]["cache_dir"] = str(tmp_path / "cache")  # type: ignore[index]
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    shares = kept.KeptShares()

    def of(*keys: str) -> list[float]:
        return list(shares.of(load(TrainConfig, tmp_path / "base.yaml", keys)).values())

    assert of() == [1, 1]
    assert of("data.min_caption_quality=0.5") == [1, 0.25]
    assert of("data.filter=quality_best >= 0.25") == [0.75, 0.75]
    both = ("data.filter=quality_best >= 0.5", "data.min_caption_quality=0.75")
    assert of(*both) == [0.5, 0.125]
    assert of(*both, "data.caption_sources=[alt]") == [0.5, 0.25]
    assert of(*both, "model.text=null") == of(*both, "data.caption_sources=[]") == [0.5]
