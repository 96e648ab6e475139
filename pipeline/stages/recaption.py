"""Stage 3: write new captions for the images that pass the image filters."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated

import pyarrow as pa
from pydantic import Field

from pipeline.captioners.annotations import AnnotationsConfig
from pipeline.captioners.request import Captioner, CaptionRequest, CaptionResult
from pipeline.captioners.transformers import TransformersConfig
from pipeline.filters.config import FilterConfig
from pipeline.filters.verdicts import image_reasons
from pipeline.schema import META_PREFIX
from pipeline.settings import PACE, Settings
from pipeline.stages.images import read_images
from pipeline.stages.task import StageReport, Task, tables_of

VERSION = 1

CaptionerConfig = Annotated[AnnotationsConfig | TransformersConfig, Field(discriminator="kind")]

_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("captions", pa.list_(pa.struct([("text", pa.string()), ("source", pa.string())]))),
        ("error", pa.string()),
    ]
)


class RecaptionConfig(Settings):
    """Which captioners write captions."""

    captioners: list[CaptionerConfig] = Field(
        [], description="captioners, in order; their captions join the alt text"
    )
    max_captions: int = Field(8, ge=0, description="most new captions per image (K)")
    resources: dict[str, float] = Field(
        {},
        description="Dask worker resources captioning needs, such as {GPU: 1}",
        json_schema_extra=PACE,
    )


def build_captioner(config: AnnotationsConfig | TransformersConfig) -> Captioner:
    """Return the captioner a config describes."""
    if isinstance(config, AnnotationsConfig):
        from pipeline.captioners.annotations import AnnotationsCaptioner

        return AnnotationsCaptioner(config)
    from pipeline.captioners.transformers import TransformersCaptioner

    return TransformersCaptioner(config)


def check(config: RecaptionConfig) -> None:
    """Raise `ConfigError` if a captioner cannot run: a missing package or model folder."""
    for captioner in config.captioners:
        if isinstance(captioner, TransformersConfig):
            from pipeline.captioners import transformers

            transformers.check(captioner)


@functools.lru_cache(maxsize=4)
def _held(kind: type[Settings], settings: str) -> Captioner:
    """Return a captioner that stays in its worker process: a model is loaded once."""
    return build_captioner(kind.model_validate_json(settings))  # type: ignore[arg-type]


def recaption(task: Task, part: str, config: RecaptionConfig, filters: FilterConfig) -> StageReport:
    """Caption a part's images that pass the image filters, each distinct image once.

    Does not wait for the search for duplicates, so that captioning overlaps later downloads. What
    is written for a near-duplicate is lost with it: the copy that is kept has captions of its own.
    """
    requests = _requests(task, part, filters)
    captioners = [_held(type(c), c.model_dump_json()) for c in config.captioners]
    results = [captioner.caption(requests) for captioner in captioners]
    names = [captioner.name for captioner in captioners]
    rows = [
        {"uid": request.uid, **_join(names, answers, config.max_captions)}
        for request, *answers in zip(requests, *results, strict=True)
    ]
    task.write(part, pa.Table.from_pylist(rows, schema=_SCHEMA))
    return StageReport(
        counts={
            "images": len(rows),
            "captions": sum(len(row["captions"]) for row in rows),
            "without": sum(not row["captions"] for row in rows),
        }
    )


def _requests(task: Task, part: str, filters: FilterConfig) -> list[CaptionRequest]:
    measured = tables_of(task.run, "filter").read_table(f"{part}.parquet")
    reasons = image_reasons(measured, filters).to_pylist()
    sound = {
        row for row, reason in zip(measured["row"].to_pylist(), reasons, strict=True) if not reason
    }
    fetched = tables_of(task.run, "download").read_table(f"{part}.parquet").to_pylist()
    rows = list({row["uid"]: row for row in reversed(fetched) if row["row"] in sound}.values())
    rows.sort(key=lambda row: row["row"])
    places = [{name: row[name] for name in ("raw", "image_offset", "image_size")} for row in rows]
    images = read_images(task.run, pa.Table.from_pylist(places)) if rows else []
    return [
        CaptionRequest(row["uid"], image, row.get(META_PREFIX + "annotations"))
        for row, image in zip(rows, images, strict=True)
    ]


def _join(names: Sequence[str], answers: Sequence[CaptionResult], limit: int) -> dict[str, object]:
    """Return an image's captions, captioners taking turns so that none crowds the others out."""
    longest = max((len(answer.captions) for answer in answers), default=0)
    sources: dict[str, str] = {}
    for turn in range(longest):
        for name, answer in zip(names, answers, strict=True):
            if turn < len(answer.captions):
                text, prompt = answer.captions[turn]
                sources.setdefault(text, f"{name}:{prompt}")
    captions = [{"text": text, "source": source} for text, source in sources.items()]
    errors = [answer.error for answer in answers if answer.error]
    return {"captions": captions[:limit], "error": "; ".join(errors) if errors else None}
