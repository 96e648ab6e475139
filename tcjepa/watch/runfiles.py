"""What a run directory says about its run, read for people: whatever is missing stays empty."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pipeline.settings import ConfigError
from tcjepa.train.log import LOG_FILE, STATUS_FILE, Record, read
from tcjepa.watch.snapshots import FOLDER

CONFIG_FILE: Final = "config.yaml"
EVALUATION_FILE: Final = "evaluation.json"
LEDGER_FILE: Final = "unreadable.jsonl"


@dataclass(frozen=True)
class Picture:
    """An attention image: after how many steps, of which image, and where it lies."""

    step: int
    uid: str
    path: Path


@dataclass(frozen=True)
class RunFiles:
    """A run as its directory tells it."""

    path: Path
    name: str
    records: list[Record]
    config: dict[str, Any]
    steps: int | None
    """Length of the run [optimizer steps]; None where neither status nor config tells."""
    warmup_steps: int
    """Steps of warm-up [optimizer steps]; 0 where neither status nor config tells."""
    ended: str | None
    """`stopped` or `failed`; None: it still runs, or was killed."""
    error: str | None
    quiet_seconds: float
    """Time since the log was last written [s]."""
    evaluation: dict[str, Any] | None = None
    unreadable: Counter[str] = field(default_factory=Counter)
    """Unreadable samples by reason."""
    pictures: list[Picture] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Optimizer steps that are in the log."""
        return int(self.records[-1]["step"] or 0) + 1 if self.records else 0


def is_run(path: Path) -> bool:
    """Return whether a directory is a run's: it has a log, or a config and checkpoints."""
    has_state = (path / CONFIG_FILE).is_file() and (path / "checkpoints").is_dir()
    return (path / LOG_FILE).is_file() or has_state


def read_run(path: Path, name: str) -> RunFiles:
    """Return what `path` tells; raises `ConfigError` if it is no run directory."""
    if not is_run(path):
        raise ConfigError(
            f"{path} is neither a run directory ({LOG_FILE}, or {CONFIG_FILE} and checkpoints/) "
            "nor a shard directory (index.parquet)"
        )
    config, status = _config(path), _json(path / STATUS_FILE) or {}
    log = path / LOG_FILE
    length = {**(config.get("train") or {})}
    length |= {key: status[key] for key in ("steps", "warmup_steps") if status.get(key) is not None}
    return RunFiles(
        path=path,
        name=name,
        records=read(path),
        config=config,
        steps=int(length["steps"]) if length.get("steps") else None,
        warmup_steps=int(length.get("warmup_steps") or 0),
        ended=status.get("ended"),
        error=status.get("error"),
        quiet_seconds=time.time() - log.stat().st_mtime if log.exists() else 0.0,
        evaluation=_json(path / EVALUATION_FILE),
        unreadable=_ledger(path / LEDGER_FILE),
        pictures=_pictures(path / FOLDER),
    )


def names_of(paths: list[Path]) -> list[str]:
    """Return the shortest ends of paths that tell them apart."""
    whole = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return ["/".join(parts) for parts in whole]


def _config(path: Path) -> dict[str, Any]:
    try:
        found = OmegaConf.to_container(OmegaConf.load(path / CONFIG_FILE))
    except (OSError, OmegaConfBaseException, YAMLError):
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _ledger(path: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    if not path.exists():
        return counts
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            counts[str(entry.get("reason", "unknown"))] += 1
    return counts


def _pictures(folder: Path) -> list[Picture]:
    found = []
    for path in sorted(folder.glob("step-*.png")):
        _, number, uid = path.stem.split("-", 2)
        if number.isdecimal():
            found.append(Picture(int(number), uid, path))
    return found


__all__ = ["Picture", "RunFiles", "is_run", "names_of", "read_run"]
