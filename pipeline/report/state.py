"""All that a report or a status is made of, read from a run directory in whatever state it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import yaml

from pipeline.engine import DASHBOARD
from pipeline.part import Part, listed, with_generations
from pipeline.report.activity import Activity, read_activity
from pipeline.report.parts import PartTables
from pipeline.schema import MANIFEST_FILE
from pipeline.settings import ConfigError
from pipeline.stages.task import SHARDS
from pipeline.storage import Directory

if TYPE_CHECKING:  # the config loads every room
    from pipeline.config import PipelineConfig

_CONFIG, _TRIED = "config.yaml", "tried.yaml"
Mark = Callable[[str, Part], str | None]


@dataclass(frozen=True)
class RunState:
    """A run directory as it is now.

    `config` is the resolved config as plain data, `config_text` as it stands in the file, and
    `is_tried` says that its thresholds were only tried: verdicts are by them, shards are not.
    `manifest` is None until the run has finished once. `running` says that another process is
    working in it, `dashboard` where to watch it.
    """

    run: Directory
    parts: list[Part]
    activity: Activity
    config: dict[str, Any]
    config_text: str
    is_tried: bool
    manifest: dict[str, Any] | None
    running: bool
    dashboard: str | None

    @property
    def finished(self) -> bool:
        """Return whether the tables are those that the manifest speaks of."""
        return self.manifest is not None and not self.running

    @property
    def failed_parts(self) -> set[str]:
        """Return the parts that failed as a whole when they were last tried."""
        return {part for _, part in self.activity.failing}

    def tables(self) -> list[PartTables]:
        """Return the tables of every part that has not failed.

        While a run goes on, tables that an earlier config left do not count: it will replace them.
        """
        failed = self.failed_parts
        sound = [part for part in self.parts if part.name not in failed]
        mark = None if self.finished else _marks(self, sound)
        return [PartTables(self.run, part, mark) for part in sound]


def read_state(run: Directory, config: PipelineConfig | None = None) -> RunState:
    """Return the state of a run directory; `config` stands in for its `config.yaml`.

    Raises `ConfigError` if `run` is no run directory.
    """
    parts = listed(run)
    if not parts:
        raise ConfigError(f"{run.url} is not a run directory (it has no parts)")
    settings = next((name for name in (_TRIED, _CONFIG) if run.exists(name)), None)
    text = run.read_bytes(settings).decode(errors="replace") if settings else ""
    shards = run / SHARDS
    running, dashboard = _worker(run)
    return RunState(
        run=run,
        parts=with_generations(run, parts),
        activity=read_activity(run),
        config=config.model_dump(mode="json") if config else _plain(text),
        config_text=text,
        is_tried=settings == _TRIED,
        manifest=shards.read_json(MANIFEST_FILE) if shards.exists(MANIFEST_FILE) else None,
        running=running,
        dashboard=dashboard,
    )


def _plain(text: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def _worker(run: Directory) -> tuple[bool, str | None]:
    """Return whether another process works in the run, and its dashboard's address."""
    if not run.exists(DASHBOARD):
        return False, None
    try:
        found = run.read_json(DASHBOARD)
        pid, link = int(found["pid"]), found["link"]
    except (OSError, ValueError, KeyError, TypeError):  # removed, or being written, just now
        return False, None
    if run.is_local and not _alive(pid):
        return False, None  # killed: nobody removed the file
    return pid != os.getpid(), link


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _marks(state: RunState, sound: list[Part]) -> Mark | None:
    """Return what tells today's tables from older ones; None if the config cannot be read."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from pipeline.config import PipelineConfig
    from pipeline.fingerprints import Fingerprints
    from pipeline.settings import build

    try:
        data = OmegaConf.to_container(OmegaConf.create(state.config_text), resolve=True)
        config = build(PipelineConfig, cast(dict[str, Any], data))
        marks = Fingerprints(config, sound)
        by_part = {"download": marks.download, "filter": marks.filter, "embed": marks.embed}
        by_part |= {"recaption": marks.recaption, "score": marks.score}
    except (ConfigError, OmegaConfBaseException, yaml.YAMLError):
        return None

    def mark(stage: str, part: Part) -> str | None:
        if stage in by_part:
            return by_part[stage](part)
        whole = getattr(marks, stage, None)
        return whole if isinstance(whole, str) else None

    return mark


__all__ = ["RunState", "read_state"]
