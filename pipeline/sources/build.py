"""The source a config names."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.sources.folder import FolderConfig, FolderSource
from pipeline.sources.row import Source
from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.urls import UrlsConfig, UrlsSource
from pipeline.sources.webdataset import WebdatasetConfig, WebdatasetSource

SourceConfig = Annotated[
    ScenesConfig | UrlsConfig | FolderConfig | WebdatasetConfig, Field(discriminator="kind")
]


def build_source(config: ScenesConfig | UrlsConfig | FolderConfig | WebdatasetConfig) -> Source:
    """Return the source that a config describes; nothing is read yet."""
    if isinstance(config, UrlsConfig):
        return UrlsSource(config)
    if isinstance(config, FolderConfig):
        return FolderSource(config)
    if isinstance(config, WebdatasetConfig):
        return WebdatasetSource(config)
    # The embedded world brings OpenCV and a server, which other sources don't need.
    from pipeline.sources.scenes.source import ScenesSource

    return ScenesSource(config)
