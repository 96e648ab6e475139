from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.tcjepa.ablate.test_study import TINY, study
from tests.tcjepa.shards import caption, write_shards


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with tiny labelled shards, a base config and a study of three runs."""
    return make_world(tmp_path)


@pytest.fixture(scope="module")
def own_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, for the tests of a module to share."""
    return make_world(tmp_path_factory.mktemp("world"))


def make_world(folder: Path) -> Path:
    write_shards(
        folder / "shards",
        36,
        captions=lambda i: [caption(f"a {'round' if i % 2 else 'square'} thing {i}")],
        split=lambda i: "train" if i < 24 else "test",
        meta=lambda i: {"shape": "circle" if i % 2 else "square"},
    )
    (folder / "base.yaml").write_text(yaml.safe_dump(TINY))
    config = study(folder).model_dump(mode="json")
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    return folder
