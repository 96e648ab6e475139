"""Weights by URL over a real loopback server: whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.settings import ConfigError
from tcjepa.model.weight_downloads import _download
from tests.tcjepa.data.stores import Store

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "vit.pth").write_bytes(CONTENT)
    store = Store(tmp_path / "hub")
    yield store
    store.close()


def test_a_torn_download_is_refused_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    store.fault, store.faults["vit.pth"] = "truncate", 1
    with pytest.raises(ConfigError, match=r"model\.init=vit .*128000 of the file's 256000 bytes"):
        _download("vit", f"{store.url}/vit.pth")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    assert {path.name for path in folder.iterdir()} <= {"vit.pth.lock"}
    for _ in range(2):
        assert _download("vit", f"{store.url}/vit.pth") == folder / "vit.pth"
    assert (folder / "vit.pth").read_bytes() == CONTENT
    assert store.count("vit.pth") == 2, "once torn, once whole, then from the cache"
    assert {path.name for path in folder.iterdir()} <= {"vit.pth", "vit.pth.lock"}


def test_what_a_server_refuses_is_named(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"model\.init=vit cannot be downloaded: .*404"):
        _download("vit", f"{store.url}/other.pth")
