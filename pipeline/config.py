"""The pipeline's config: one section per room, each defined beside what it configures."""

from __future__ import annotations

from pydantic import Field

from pipeline.cluster import ClusterConfig
from pipeline.filters.config import FilterConfig
from pipeline.scorers.config import ScoreConfig
from pipeline.settings import Settings
from pipeline.sources.build import SourceConfig
from pipeline.stages.download import DownloadConfig
from pipeline.stages.recaption import RecaptionConfig
from pipeline.stages.shuffle import PackConfig


class PipelineConfig(Settings):
    """Everything `python -m pipeline shards` can be told."""

    run: str = Field(description="run directory: a path or fsspec URL; everything goes under it")
    part_rows: int = Field(
        10_000, ge=1, le=1_000_000, description="source rows per part, the unit of work and resume"
    )
    source: SourceConfig = Field(description="where the image-text pairs come from")
    download: DownloadConfig = Field(DownloadConfig(), description="fetching")
    filter: FilterConfig = Field(FilterConfig(), description="what is kept")
    recaption: RecaptionConfig = Field(RecaptionConfig(), description="captions to add")
    score: ScoreConfig = Field(ScoreConfig(), description="caption quality")
    pack: PackConfig = Field(PackConfig(), description="final shards")
    cluster: ClusterConfig = Field(ClusterConfig(), description="where tasks run")
