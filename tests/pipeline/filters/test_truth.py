"""The filters against a small world whose faults are known, and the measuring itself."""

from __future__ import annotations

import io
import tarfile

import pyarrow as pa
import pytest

from pipeline.filters.config import FilterConfig
from pipeline.filters.truth import CAPTION_FAULTS, URL_FAULTS, findings, sound_loss, table
from pipeline.part import cut
from pipeline.schema import uid_of
from pipeline.settings import build
from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.images import image_bytes
from pipeline.sources.scenes.source import ScenesSource
from pipeline.stages.filter import measure
from pipeline.stages.select import select
from pipeline.stages.task import Task, tables_of
from pipeline.storage import Directory

PART = 150
#: Faults that keep an image from being fetched: another room's work.
UNFETCHED = {"not_found", "gone", "forbidden", "html", "truncated", "noai"}
CAPTIONS = {"right": 0.37, "partial": 0.05, "swapped": 0.05, "boilerplate": 0.1, "filename": 0.1}
CAPTIONS |= {"foreign": 0.1, "short": 0.1, "keywords": 0.08, "empty": 0.05}
FAULTS = {"tiny": 0.06, "extreme_aspect": 0.06, "blank": 0.06, "duplicate": 0.1, "html": 0.02}
FAULTS |= {"near_duplicate": 0.1} | dict.fromkeys(UNFETCHED - {"html"}, 0.0)


def fetch(run: Directory, source: ScenesSource) -> list[str]:
    """Write what `download` writes: images of this size are stored as they come."""
    names = []
    for part in cut(run, source, PART):
        rows = part.table(run)
        faults = rows["meta.url_fault"].to_pylist()
        columns: dict[str, list[object]] = {"uid": [], "image_offset": [], "image_size": []}
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for number, fault in enumerate(faults):
                data = image_bytes(source.config, "train", part.first_row + number)
                info = tarfile.TarInfo(f"{number}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                sound = fault not in UNFETCHED
                columns["uid"].append(uid_of(data) if sound else None)
                columns["image_offset"].append(tar.offset - -(-len(data) // 512) * 512)
                columns["image_size"].append(len(data))
        (run / "raw").write_bytes(f"{part.name}.tar", file.getvalue())
        outcome = {
            **{name: rows[name] for name in rows.column_names},
            "row": pa.array(range(part.first_row, part.first_row + len(faults)), pa.int64()),
            "reason": pa.array([f if f in UNFETCHED else None for f in faults], pa.string()),
            "animated": pa.array([False] * len(faults)),
            "raw": pa.array([f"{part.name}.tar"] * len(faults)),
            **columns,
        }
        tables_of(run, "download").write_table(f"{part.name}.parquet", pa.table(outcome))
        names.append(part.name)
    return names


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Directory, list[str]]:
    run = Directory(tmp_path_factory.mktemp("world"))
    settings = {"train": 4 * PART, "test": 0, "seed": 5, "captions": CAPTIONS, "faults": FAULTS}
    names = fetch(run, ScenesSource(build(ScenesConfig, settings)))
    for name in names:
        measure(Task(run, "filter", "mark"), name, FilterConfig(), False)
    return run, names


def judge(world: tuple[Directory, list[str]], **config: object) -> None:
    run, names = world
    select(Task(run, "select", "mark"), names, build(FilterConfig, config))


def test_every_injected_fault_is_found_and_little_else(world: tuple[Directory, list[str]]) -> None:
    judge(world, image={"min_side": 64})
    found = {item.fault: item for item in findings(world[0])}
    wanted = {*CAPTION_FAULTS, "empty", "tiny", "extreme_aspect", "blank"}
    wanted |= {"duplicate", "near_duplicate"}
    for fault in wanted:
        item = found[fault]
        assert item.present >= 20, item
        assert item.recall >= 0.95, item
        assert item.precision >= 0.95, item
    lost, right = sound_loss(world[0])
    assert right > 150
    assert lost <= 0.01 * right


def test_without_filters_faults_stay(world: tuple[Directory, list[str]]) -> None:
    judge(world, preset="none")
    found = {item.fault: item for item in findings(world[0])}
    for fault in {*CAPTION_FAULTS, "near_duplicate", "tiny", "blank"}:
        assert found[fault].recall < 0.1, found[fault]
        assert found[fault].precision == 1
    assert found["duplicate"].recall == 1  # the same bytes are the same sample, come what may
    assert sound_loss(world[0])[0] == 0
    lines = table(list(found.values())).splitlines()
    assert len(lines) == len(found) + 2
    assert set(found) == {*CAPTION_FAULTS, *URL_FAULTS, "empty", "duplicate", "near_duplicate"}


def test_a_filter_gone_wild_shows_in_precision(world: tuple[Directory, list[str]]) -> None:
    judge(world, caption={"min_words": 9}, image={"min_side": 64}, duplicates={"radius": 16})
    found = {item.fault: item for item in findings(world[0])}
    assert found["short"].recall == 1
    assert found["short"].precision < 0.8
    assert sound_loss(world[0])[0] > 20
