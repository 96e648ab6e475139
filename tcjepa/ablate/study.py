"""A study: a base config, axes to vary, reference lines, seeds; and the runs it consists of."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from pipeline.settings import ConfigError, Settings, load
from tcjepa.config import TrainConfig

Scalar = str | int | float | bool | None


class StudyConfig(Settings):
    """What to vary. Every combination of the axes is an arm; every arm is run once per seed."""

    run: str = Field(description="local directory of the study")
    base: str = Field(description="training config: a path, or a name in tcjepa/configs")
    shards: str | None = Field(None, description="shard directory; null: the base config's")
    set: list[str] = Field([], description="key.sub=value overrides of every arm")
    axes: dict[str, list[Scalar]] = Field(
        description="training config key -> its values; the arms are their combinations"
    )
    x: str = Field(description="the axis that curves are drawn over")
    references: dict[str, list[str]] = Field(
        {}, description="arms off the grid, drawn as level lines: name -> overrides"
    )
    seeds: list[int] = Field([0, 1], min_length=1, description="train.seed of the repetitions")
    parallel: int = Field(1, ge=1, description="training runs at a time [processes]")
    threads: int | None = Field(
        None, ge=1, description="CPU threads of one run; null: the CPUs / parallel, or 1 on Dask"
    )
    scheduler: str | None = Field(
        None,
        description="address of a Dask scheduler, tcp://host:port, whose workers run the trials; "
        "null: processes on this machine",
    )
    resources: dict[str, float] = Field(
        {}, description="Dask worker resources that one run needs, such as {GPU: 1}"
    )
    mixed: bool = Field(
        False, description="report runs of different code or data together, and say so"
    )

    @model_validator(mode="after")
    def _check(self) -> StudyConfig:
        if self.x not in self.axes:
            raise ValueError(f"x: {self.x} is no axis; the axes are {', '.join(self.axes)}")
        empty = [key for key, values in self.axes.items() if not values]
        if empty:
            raise ValueError(f"axes.{empty[0]}: has no values")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed is listed twice")
        return self


@dataclass(frozen=True)
class Arm:
    """One setting of the study: its place on the axes (empty for a reference) and overrides."""

    name: str
    values: tuple[tuple[str, Scalar], ...]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """One arm with one seed: one training run."""

    arm: Arm
    seed: int
    folder: str
    overrides: tuple[str, ...]


def arms_of(study: StudyConfig) -> list[Arm]:
    """Return the reference arms, then every combination of the axes in the order given."""
    references = [Arm(name, (), tuple(keys)) for name, keys in study.references.items()]
    grid = []
    for values in itertools.product(*study.axes.values()):
        place = tuple(zip(study.axes, values, strict=True))
        overrides = tuple(f"{key}={_yaml(value)}" for key, value in place)
        name = ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in place)
        grid.append(Arm(name, place, overrides))
    return references + grid


def trials_of(study: StudyConfig) -> list[Trial]:
    """Return every training run, all arms of the first seed before those of the second.

    A study that is cut short then has whole curves of fewer seeds rather than fewer points.
    """
    trials = []
    for seed in study.seeds:
        for arm in arms_of(study):
            folder = str(Path(study.run) / "trials" / _slug(arm.name) / f"seed-{seed}")
            cache = str(Path(study.run) / "cache")
            overrides = (*study.set, *arm.overrides, f"train.seed={seed}", f"run={_yaml(folder)}")
            overrides += ("train.evaluate_after=true", f"data.cache_dir={_yaml(cache)}")
            if study.shards is not None:
                overrides += (f"data.shards={_yaml(study.shards)}",)
            trials.append(Trial(arm, seed, folder, overrides))
    return trials


def training_config(study: StudyConfig, trial: Trial, base: Path) -> TrainConfig:
    """Return a trial's config; raises `ConfigError` naming the arm whose keys are wrong."""
    try:
        return load(TrainConfig, base, trial.overrides)
    except ConfigError as error:
        raise ConfigError(f"arm {trial.arm.name!r}: {error}") from error


def _yaml(value: Any) -> str:
    return json.dumps(value)


def _slug(name: str) -> str:
    """Return a file name for an arm: letters, digits, dots and dashes."""
    return "".join(c if c.isalnum() or c == "." else "-" for c in name.lower()).strip("-")
