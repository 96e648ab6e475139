"""A small run of the embedded world up to its scores, without a web, a cluster or filters.

The truth is harsher than in a real run: a share of the images has *all* its captions from another
image, alt text and generated ones, as if the lists had slipped by a row.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import pyarrow as pa

from pipeline.captioners.annotations import AnnotationsCaptioner, AnnotationsConfig
from pipeline.captioners.request import CaptionRequest
from pipeline.config import PipelineConfig
from pipeline.filters.pixels import thumbnail_of
from pipeline.part import Part
from pipeline.schema import META_PREFIX, uid_of
from pipeline.scorers.alignment_images import feature_column
from pipeline.scorers.calibration.measure import CONFIG
from pipeline.scorers.config import ScoreConfig
from pipeline.settings import build, to_yaml
from pipeline.sources.scenes.alt_text import alt_text
from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.faults import swap_partner
from pipeline.sources.scenes.render import render_jpeg
from pipeline.sources.scenes.world import Scene, scene, stream
from pipeline.stages.score import fit, score
from pipeline.stages.task import Task, tables_of
from pipeline.storage import Directory

_PART_ROWS = 500


@dataclass(frozen=True)
class WorldRun:
    """A scored run: its directory, and uid -> whether its captions are another image's."""

    run: Directory
    swapped: dict[str, bool]


@dataclass(frozen=True)
class _Row:
    shown: Scene
    image: bytes
    alt: str
    fault: str
    told: Scene  # the scene that the captions are of

    @property
    def uid(self) -> str:
        return uid_of(self.image)


def scored_world(
    run: Directory, scenes: int, swapped: float, config: ScoreConfig, generated: int = 8
) -> WorldRun:
    """Write and score a run of `scenes` images, a share `swapped` of which has foreign captions.

    `generated` sentences of the `annotations` captioner are added to each alt text at most.
    """
    world = ScenesConfig(train=scenes, test=0)
    truth: dict[str, bool] = {}
    parts: list[Part] = []
    for first in range(0, scenes, _PART_ROWS):
        numbers = range(first, min(first + _PART_ROWS, scenes))
        rows = [_row(world, number, swapped) for number in numbers]
        truth |= {row.uid: row.fault == "swapped" for row in rows}
        part = Part(len(parts), first, len(rows), "world")
        _write(run, part.name, rows, generated)
        parts.append(part)
    listing = [asdict(part) for part in parts]
    (run / "parts").write_json("parts.json", {"source": "world", "parts": listing})
    recaption = {"captioners": [{"kind": "annotations", "max_captions": max(generated, 1)}]}
    plain = {"run": run.url, "source": {"kind": "scenes"}, "recaption": recaption}
    settings = build(PipelineConfig, {**plain, "score": json.loads(config.model_dump_json())})
    run.write_text(CONFIG, to_yaml(settings))
    names = [part.name for part in parts]
    fit(Task(run, "fit", "world"), names, config)
    for name in names:
        score(Task(run, "score", "world"), name, config)
    return WorldRun(run, truth)


def _row(world: ScenesConfig, number: int, swapped: float) -> _Row:
    shown = scene(world, "train", number)
    draw = stream(world.seed, "train", number, "calibration")
    fault = "swapped" if draw.random() < swapped else "right"
    told = swap_partner(world, shown, draw) if fault == "swapped" else shown
    (alt,) = alt_text("right", told, None, draw)
    return _Row(shown, render_jpeg(shown), alt, fault, told)


def _write(run: Directory, part: str, rows: list[_Row], generated: int) -> None:
    """Write the tables of a part that fit, score and calibration read."""
    numbers = pa.array(range(len(rows)), pa.int64())
    uids = pa.array([row.uid for row in rows], pa.string())
    nothing = pa.nulls(len(rows), pa.string())
    alts = pa.array([[row.alt] for row in rows], pa.list_(pa.string()))
    features = feature_column([thumbnail_of(row.image) for row in rows])
    captioner = AnnotationsCaptioner(AnnotationsConfig())
    requests = [CaptionRequest(row.uid, b"", row.told.annotations()) for row in rows]
    written = [
        [{"text": t, "source": f"annotations:{form}"} for t, form in result.captions[:generated]]
        for result in captioner.caption(requests)
    ]
    base = {"row": numbers, "uid": uids}
    tables = {
        "download": {
            "row": numbers,
            "captions": alts,
            META_PREFIX + "caption_fault": pa.array([row.fault for row in rows]),
            META_PREFIX + "annotations": pa.array([row.shown.annotations() for row in rows]),
        },
        "filter": {**base, "features": features},
        "select": {**base, "captions": alts, "reason": nothing, "representative": nothing},
        "recaption": {
            "uid": uids,
            "captions": pa.array(
                written, pa.list_(pa.struct([("text", pa.string()), ("source", pa.string())]))
            ),
        },
    }
    for stage, columns in tables.items():
        tables_of(run, stage).write_table(f"{part}.parquet", pa.table(columns))
