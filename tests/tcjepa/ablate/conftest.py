from __future__ import annotations

from pathlib import Path

import pytest

from tests.tcjepa.ablate.worlds import make_world


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with tiny labelled shards, a base config and a study of three runs."""
    return make_world(tmp_path)


@pytest.fixture(scope="module")
def own_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, for the tests of a module to share."""
    return make_world(tmp_path_factory.mktemp("world"))
