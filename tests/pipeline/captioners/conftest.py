"""A chat server on loopback, and tiny models on disk; the hub is never asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.captioners import openai_client
from tests.pipeline.captioners.chat_server import ChatServer, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """A chat server whose client is impatient."""
    monkeypatch.setattr(openai_client, "_FIRST_WAIT_S", 0.01)
    with serving() as state:
        yield state


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tests.pipeline.captioners import tiny_models as tiny  # slow to import

    root = tmp_path_factory.mktemp("models")
    return {
        "blip": tiny.save_blip(root / "blip"),
        "llava": tiny.save_llava(root / "llava"),
        "vit_gpt2": tiny.save_vit_gpt2(root / "vit_gpt2"),
    }
