"""The price of a study: operations counted from its configs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tcjepa.ablate.cost import missing_shards, operations
from tcjepa.ablate.study import StudyConfig, training_config, trials_of
from tests.tcjepa.ablate.worlds import TINY, study


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(TINY))
    return tmp_path / "base.yaml"


def price(made: StudyConfig, base: Path) -> tuple[float, int, str]:
    """Operations, kinds of run, and what else is said."""
    text = operations(made, base, trials_of(made))
    found = re.match(r"training takes (\S+) floating-point operations in (\d+) kinds? of run", text)
    assert found is not None, text
    return float(found[1]), int(found[2]), text[found.end() :]


def test_operations_add_up_over_runs_and_grow_with_steps(base: Path) -> None:
    folder = base.parent
    one = study(folder, references={}, axes={"data.noise.rate": [0.0]})
    once = price(one, base)
    assert once[1:] == (1, "")
    rates = study(folder, references={}, axes={"data.noise.rate": [0.0, 0.5, 1.0]}, seeds=[0, 1])
    total, kinds, _ = price(rates, base)
    assert (total, kinds) == (pytest.approx(6 * once[0], rel=0.05), 1)
    longer = study(folder, references={}, axes={"data.noise.rate": [0.0]}, set=["train.steps=60"])
    assert price(longer, base)[0] == pytest.approx(10 * once[0], rel=0.05)
    both = price(study(folder, axes={"data.noise.rate": [0.0]}), base)
    assert both[1] == 2 and once[0] < both[0] < 2 * once[0]  # I-JEPA computes less than TC-JEPA
    captions = study(folder, references={}, x="data.captions_per_image",
                     axes={"data.captions_per_image": [2, 8]})  # fmt: skip
    assert price(captions, base)[0] > 2 * once[0]


def test_runs_of_so_many_epochs_need_their_shards(world: Path) -> None:
    base, epochs = world / "base.yaml", ["train.steps=null", "train.epochs=4"]
    by_epochs = study(world, set=epochs)
    by_steps = study(world, set=["train.steps=12"])  # 24 images in batches of 8, 4 times
    assert price(by_epochs, base) == price(by_steps, base)
    absent = study(world, set=epochs, shards=str(world / "absent"))
    configs = [training_config(absent, trial, base) for trial in trials_of(absent)]
    assert missing_shards(configs) == [str(world / "absent")]
    assert price(absent, base) == (
        0, 0, "; 3 runs of so many epochs are left out, for their shards are absent",
    )  # fmt: skip
