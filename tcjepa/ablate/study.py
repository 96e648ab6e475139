"""A study: a base config, grids to vary, reference lines, seeds; and the runs it consists of."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from pipeline.settings import ConfigError, Settings, load
from tcjepa.ablate.grids import (
    GRID,
    Arm,
    Curve,
    GridConfig,
    Scalar,
    curves,
    dashed,
    expand,
    known_values,
    meant,
    override,
    slug,
)
from tcjepa.config import TrainConfig


class RecoveryConfig(Settings):
    """What noise took and remedies won back: (remedy - noisy) / (clean - noisy)."""

    name: str | None = Field(None, description="title in the report; null: the noisy arm's name")
    clean: str = Field(description="arm without noise")
    noisy: str = Field(description="arm with noise and no remedy")
    remedies: list[str] | None = Field(
        None, description="arms whose share is asked for; null: every other arm of noisy's grid"
    )

    @property
    def title(self) -> str:
        """What the report calls it."""
        return self.name or self.noisy


class ReducedConfig(Settings):
    """How the study shrinks to what a CPU can do (`--reduced`); what is null stays as it is."""

    run: str | None = Field(None, description="local directory of the reduced study")
    base: str | None = Field(None, description="training config of the reduced study")
    set: list[str] = Field([], description="overrides of every arm, after those of the study")
    shards: str | None = Field(None, description="shard directory of the reduced study")
    constants: dict[str, Scalar] = Field({}, description="values of the study's constants")
    only: dict[str, list[Scalar]] = Field({}, description="the study's `only`")
    references: list[str] | None = Field(None, description="the references that stay")
    seeds: list[int] | None = Field(None, min_length=1, description="the seeds")
    parallel: int | None = Field(None, ge=1, description="training runs at a time [processes]")


class StudyConfig(Settings):
    """What to vary. Every combination of a grid's axes is an arm; an arm is run once per seed."""

    run: str = Field(description="local directory of the study")
    asks: str = Field("", description="the question, and the figure or table of a paper it repeats")
    base: str = Field(description="training config: a path, or a name in tcjepa/configs")
    shards: str | None = Field(None, description="shard directory; null: the base config's")
    constants: dict[str, Scalar] = Field(
        {}, description="values of your own, such as further shards, for use as ${constants.NAME}"
    )
    set: list[str] = Field([], description="key.sub=value overrides of every arm")
    axes: dict[str, list[Scalar] | dict[str, list[str]]] = Field(
        {}, description="the axes of a study with one grid, as in grids[].axes"
    )
    grids: list[GridConfig] = Field(
        [], description="grids that share references, seeds and the arms they have in common"
    )
    only: dict[str, list[Scalar]] = Field(
        {},
        description="axis, or `grid` for grids by name -> the values to run; the rest is left out",
    )
    x: str = Field(description="the axis that curves are drawn over; every grid has it")
    references: dict[str, list[str]] = Field(
        {}, description="arms off the grid, drawn as level lines: name -> overrides"
    )
    contrasts: list[tuple[str, str]] = Field(
        [], description="pairs of arms: the report gives the first minus the second on equal seeds"
    )
    recovery: list[RecoveryConfig] = Field(
        [], description="the share of what noise took that each remedy wins back"
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
    reduced: ReducedConfig = Field(ReducedConfig(), description="the study at a CPU's size")

    @model_validator(mode="after")
    def _check(self) -> StudyConfig:
        if bool(self.axes) == bool(self.grids):
            raise ValueError("axes, grids: give one of them, and not empty")
        for number, grid in enumerate(self.all_grids):
            if self.x not in grid.axes:
                where = f"grids[{number}]" if self.grids else "the study"
                raise ValueError(
                    f"x: {self.x} is no axis of {where}; its axes are {', '.join(grid.axes)}"
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed is listed twice")
        known = known_values(self.all_grids)
        for axis, values in self.only.items():
            check_known("only", axis, list(known), "axes")
            self.only[axis] = [meant(value, known[axis]) for value in values]
            for value in self.only[axis]:
                check_known(f"only.{axis}", value, known[axis], "values")
        names = [arm.name for arm in expand(self.references, self.all_grids, self.set)]
        for key, name in self.named_arms():
            check_known(key, name, names, "arms")
        titles: dict[str, int] = {}
        for i, entry in enumerate(self.recovery):
            first = titles.setdefault(dashed(entry.title), i)
            if first != i:
                raise ValueError(
                    f"recovery[{i}]: {entry.title!r} and recovery[{first}] would share a figure; "
                    "give it another name"
                )
        return self

    @property
    def all_grids(self) -> list[GridConfig]:
        """The grids, or the one that `axes` stands for."""
        return self.grids or [GridConfig(axes=self.axes)]

    def named_arms(self) -> list[tuple[str, str]]:
        """Return (key, arm name) of every arm that contrasts and recovery name."""
        named = [
            (f"contrasts[{i}]", name) for i, pair in enumerate(self.contrasts) for name in pair
        ]
        for i, entry in enumerate(self.recovery):
            for name in (entry.clean, entry.noisy, *(entry.remedies or ())):
                named.append((f"recovery[{i}]", name))
        return named


@dataclass(frozen=True)
class Trial:
    """One arm with one seed: one training run."""

    arm: Arm
    seed: int
    folder: str
    overrides: tuple[str, ...]


def arms_of(study: StudyConfig) -> list[Arm]:
    """Return the reference arms, then the grids' that `only` admits, in their order, each once."""
    return expand(study.references, study.all_grids, study.set, study.only)


def curves_of(study: StudyConfig) -> list[Curve]:
    """Return the curves over `study.x`; an arm that grids share lies on the curves of each."""
    return curves(arms_of(study), study.x)


def remedies_of(study: StudyConfig, recovery: RecoveryConfig) -> list[Arm]:
    """Return the arms whose share of what noise took is asked for, without those left out."""
    arms = {arm.name: arm for arm in arms_of(study)}
    if recovery.remedies is not None:
        return [arms[name] for name in recovery.remedies if name in arms]
    noisy = arms.get(recovery.noisy)
    grids = {dict(place).get(GRID) for place in (noisy.places if noisy else ())}
    return [
        arm
        for arm in arms.values()
        if arm.name not in (recovery.clean, recovery.noisy)
        and any(dict(place).get(GRID) in grids for place in arm.places)
    ]


def trials_of(study: StudyConfig) -> list[Trial]:
    """Return every training run, all arms of the first seed before those of the second.

    A study that is cut short then has whole curves of fewer seeds rather than fewer points.
    """
    trials = []
    for seed in study.seeds:
        for arm in arms_of(study):
            folder = str(Path(study.run) / "trials" / slug(arm.name) / f"seed-{seed}")
            cache = str(Path(study.run) / "cache")
            shards = [] if study.shards is None else [override("data.shards", study.shards)]
            overrides = (*shards, *study.set, *arm.overrides)
            overrides += (f"train.seed={seed}", override("run", folder))
            overrides += ("train.evaluate_after=true", override("data.cache_dir", cache))
            trials.append(Trial(arm, seed, folder, overrides))
    return trials


def training_config(study: StudyConfig, trial: Trial, base: Path) -> TrainConfig:
    """Return a trial's config; raises `ConfigError` naming the arm whose keys are wrong."""
    try:
        return load(TrainConfig, base, trial.overrides)
    except ConfigError as error:
        raise ConfigError(f"arm {trial.arm.name!r}: {error}") from error


def check_known(key: str, name: Any, names: Sequence[Any], what: str) -> None:
    """Raise `ValueError` naming the key, the nearest and all known names unless `name` is one."""
    if name not in names:
        texts = [str(known) for known in names]
        near = difflib.get_close_matches(str(name), texts, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{key}: {name!r} is unknown; {hint}{what}: {'; '.join(texts)}")
