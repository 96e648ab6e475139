"""The embedded world as a source: after generation it is a list of URLs like any other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from pipeline.sources.row import Row
from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.rows import rows
from pipeline.sources.scenes.server import SceneServer

#: Raise when the same config no longer gives the same rows or images.
_WORLD_VERSION = 1


class ScenesSource:
    """Rows of the world a config describes; `serve` runs its server."""

    in_place: bool = False
    local_root: str | None = None

    def __init__(self, config: ScenesConfig) -> None:
        self.config = config

    def check(self) -> None:
        """Do nothing: every valid config can be generated."""

    def fingerprint(self) -> str:
        """Return a digest of the config."""
        content = f"{_WORLD_VERSION}|{self.config.model_dump_json()}"
        return hashlib.sha256(content.encode()).hexdigest()

    def rows(self) -> Iterator[Row]:
        """Yield the train rows, then the held-out ones."""
        return rows(self.config)

    def fetch_url(self, url: str) -> str:
        """Return `url`: the server answers at the recorded address."""
        return url

    def serve(self) -> AbstractContextManager[Any]:
        """Return the server; entering raises `ConfigError` if its port is taken."""
        return SceneServer(self.config)
