"""The pipeline's config: one section per room, each defined beside what it configures."""

from __future__ import annotations

from pydantic import Field, model_validator

from pipeline.cluster import ClusterConfig
from pipeline.filters.config import FilterConfig
from pipeline.scorers.config import ScoreConfig
from pipeline.scorers.embedding import EmbedConfig
from pipeline.settings import ConfigError, Settings
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
    embed: EmbedConfig | None = Field(
        None, description="the image-text model that clip alignment and semantic duplicates share"
    )
    recaption: RecaptionConfig = Field(RecaptionConfig(), description="captions to add")
    score: ScoreConfig = Field(ScoreConfig(), description="caption quality")
    pack: PackConfig = Field(PackConfig(), description="final shards")
    cluster: ClusterConfig = Field(ClusterConfig(), description="where tasks run")

    @model_validator(mode="after")
    def _embedding_used(self) -> PipelineConfig:
        users = []
        if self.score.alignment is not None and self.score.alignment.kind == "clip":
            users.append("score.alignment.kind: clip")
        if self.filter.duplicates.semantic is not None:
            users.append("filter.duplicates.semantic")
        if users and self.embed is None:
            raise ValueError(f"{users[0]} needs embeddings; name a model in embed.model")
        if self.embed is not None and not users:
            raise ValueError(
                "embed: nothing uses it; set score.alignment.kind: clip or "
                "filter.duplicates.semantic, or leave it out"
            )
        return self


def check_scores(config: PipelineConfig) -> None:
    """Raise `ConfigError` if a rule reads a score that nothing computes."""
    alignment = config.score.alignment
    computed = {"quality"}
    if alignment is not None:
        computed |= {"alignment", "cosine"} if alignment.kind == "clip" else {"alignment"}
    for name, key in config.filter.scores.needed().items():
        if name not in computed:
            kind = "clip} and embed.model" if name == "cosine" else "linear}"
            raise ConfigError(
                f"filter.scores.{key}: needs the score `{name}`, which nothing computes; set "
                f"score.alignment={{kind: {kind}, or filter.scores.{key}=null"
            )
