"""Stage 3: write new captions for the images that pass the image filters."""

from __future__ import annotations

import functools
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.captioners.annotations import AnnotationsConfig
from pipeline.captioners.answers import ANSWERS, Answers
from pipeline.captioners.loaded import hold_models
from pipeline.captioners.openai import OpenAIConfig
from pipeline.captioners.request import Captioner, CaptionRequest, CaptionResult
from pipeline.captioners.transformers import TransformersConfig
from pipeline.filters.config import FilterConfig
from pipeline.filters.measures import IMAGE_MEASURES
from pipeline.filters.verdicts import image_reasons
from pipeline.schema import META_PREFIX
from pipeline.settings import PACE, Settings
from pipeline.stages.images import read_images
from pipeline.stages.task import StageReport, Task, tables_of

VERSION = 2

#: Images whose bytes are in memory at a time.
_AT_ONCE = 1024

CaptionerConfig = Annotated[
    AnnotationsConfig | TransformersConfig | OpenAIConfig, Field(discriminator="kind")
]

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
    retry: int = Field(
        0,
        ge=0,
        description="raise it to ask again about images that failed (timeout, server error, out "
        "of memory, …); the answers that are there are not asked for again",
    )
    resources: dict[str, float] = Field(
        {},
        description="Dask worker resources captioning needs, such as {GPU: 1}",
        json_schema_extra=PACE,
    )

    @model_validator(mode="after")
    def _told_apart(self) -> RecaptionConfig:
        names = Counter(captioner.name for captioner in self.captioners)
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            raise ValueError(
                f"captioners: two are named {', '.join(twice)}; give each a name of its own"
            )
        return self


def build_captioner(config: CaptionerConfig) -> Captioner:
    """Return the captioner a config describes."""
    if isinstance(config, AnnotationsConfig):
        from pipeline.captioners.annotations import AnnotationsCaptioner

        return AnnotationsCaptioner(config)
    if isinstance(config, OpenAIConfig):
        from pipeline.captioners.openai import OpenAICaptioner

        return OpenAICaptioner(config)
    from pipeline.captioners.transformers import TransformersCaptioner

    return TransformersCaptioner(config)


def check(config: RecaptionConfig) -> None:
    """Raise `ConfigError` if a captioner cannot run: a missing package, model folder or key."""
    from pipeline.captioners import openai, transformers

    for captioner in config.captioners:
        if isinstance(captioner, TransformersConfig):
            transformers.check(captioner)
        elif isinstance(captioner, OpenAIConfig):
            openai.check(captioner)


@functools.lru_cache(maxsize=4)
def _held(kind: type[Settings], settings: str) -> Captioner:
    """Return a captioner that stays in its worker process; see `hold_models` for its model."""
    return build_captioner(kind.model_validate_json(settings))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Wanted:
    """An image to caption: where its bytes lie, and what its source says of it."""

    uid: str
    place: dict[str, Any]
    annotations: str | None


def recaption(task: Task, part: str, config: RecaptionConfig, filters: FilterConfig) -> StageReport:
    """Caption a part's images that pass the image filters, each distinct image once.

    Does not wait for the search for duplicates, so that captioning overlaps later downloads. What
    is written for a near-duplicate is lost with it: the copy that is kept has captions of its own.

    What models answer is kept in `tables/answers/` as it comes, so that a task that was killed, or
    runs again with other filters, prompts or limits, asks only for what it does not know.
    """
    wanted = _wanted(task, part, filters)
    hold_models(sum(isinstance(c, TransformersConfig) for c in config.captioners))
    captioners = [_held(type(c), c.model_dump_json()) for c in config.captioners]
    results: list[list[CaptionResult]] = []
    figures: defaultdict[str, float] = defaultdict(float)
    with Answers(tables_of(task.run, ANSWERS), part) as answers:
        for captioner in captioners:
            results.append(_captioned(task, captioner, wanted, answers, figures))
    names = [captioner.name for captioner in captioners]
    rows = [
        {"uid": image.uid, **_join(names, answered, config.max_captions)}
        for image, *answered in zip(wanted, *results, strict=True)
    ]
    task.write(part, pa.Table.from_pylist(rows, schema=_SCHEMA))
    failed = Counter(answer.error for answered in results for answer in answered if answer.error)
    return StageReport(
        counts={
            "images": len(rows),
            "captions": sum(len(row["captions"]) for row in rows),
            "without": sum(not row["captions"] for row in rows),
            **{f"failed_{reason}": count for reason, count in sorted(failed.items())},
        },
        figures={name: round(value, 3) for name, value in sorted(figures.items())},
    )


def _captioned(
    task: Task,
    captioner: Captioner,
    wanted: Sequence[_Wanted],
    answers: Answers,
    figures: defaultdict[str, float],
) -> list[CaptionResult]:
    """Return one captioner's results, and add to `figures`, which add up over parts.

    For each captioner NAME: `NAME_seconds`, of which `NAME_generating_seconds` in a model here,
    `NAME_captions`, `NAME_answers` (new ones), `NAME_reused` (known ones) and `NAME_retries`; over
    all, `tokens` written and `prompt_tokens` read for new answers, and `gpu_seconds` of generating
    where that was on a GPU.
    """
    started = time.monotonic()
    results: list[CaptionResult] = []
    for requests in _requests(task, captioner, wanted, answers):
        results += captioner.caption(requests, answers)
    costs, name = answers.bill(), captioner.name
    figures[f"{name}_seconds"] += time.monotonic() - started
    figures[f"{name}_captions"] += sum(len(result.captions) for result in results)
    figures[f"{name}_answers"] += costs.asked
    figures[f"{name}_reused"] += costs.reused
    figures[f"{name}_retries"] += costs.retries
    figures["tokens"] += costs.tokens
    figures["prompt_tokens"] += costs.prompt_tokens
    if costs.busy_s:
        figures[f"{name}_generating_seconds"] += costs.busy_s
    if costs.gpu_s:
        figures["gpu_seconds"] += costs.gpu_s
    return results


def _wanted(task: Task, part: str, filters: FilterConfig) -> list[_Wanted]:
    needed = ["row", "uid", *IMAGE_MEASURES.names]
    measured = tables_of(task.run, "filter").read_table(f"{part}.parquet", needed)
    reasons = image_reasons(measured, filters).to_pylist()
    sound = {
        row for row, reason in zip(measured["row"].to_pylist(), reasons, strict=True) if not reason
    }
    fetched = tables_of(task.run, "download").read_table(f"{part}.parquet").to_pylist()
    rows = list({row["uid"]: row for row in reversed(fetched) if row["row"] in sound}.values())
    rows.sort(key=lambda row: row["row"])
    columns = ("raw", "image_offset", "image_size")
    return [
        _Wanted(
            row["uid"], {name: row[name] for name in columns}, row.get(META_PREFIX + "annotations")
        )
        for row in rows
    ]


def _requests(
    task: Task, captioner: Captioner, wanted: Sequence[_Wanted], answers: Answers
) -> Iterator[list[CaptionRequest]]:
    """Yield requests, at most `_AT_ONCE` at a time, with the images that have to be looked at."""
    for start in range(0, len(wanted), _AT_ONCE):
        some = wanted[start : start + _AT_ONCE]
        seen = [image for image in some if captioner.needs_image(image.uid, answers)]
        places = pa.Table.from_pylist([image.place for image in seen])
        read = read_images(task.run, places) if seen else []
        images = {image.uid: data for image, data in zip(seen, read, strict=True)}
        yield [CaptionRequest(i.uid, images.get(i.uid, b""), i.annotations) for i in some]


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
