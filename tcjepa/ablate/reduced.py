"""Opening a study: by path or name, whole or at the size that its `reduced` section describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipeline.settings import ConfigError, load
from tcjepa.ablate.grids import override
from tcjepa.ablate.study import ReducedConfig, StudyConfig, arms_of, check_known

STUDIES: Final = Path(__file__).parent / "studies"
#: Keys of `ReducedConfig` that replace the study's own of the same name.
_REPLACED: Final = ("run", "base", "shards", "seeds", "parallel")


def names() -> list[str]:
    """Return the names of the studies that come with the package."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def open_study(name: str, overrides: Sequence[str] = (), *, reduced: bool = False) -> StudyConfig:
    """Return a study: a YAML file, or one of `names()`; overrides are put on top of either size.

    Raises `ConfigError` as `pipeline.settings.load` does, and for a reduced section that names
    what the study does not have.
    """
    packaged = STUDIES / f"{name}.yaml"
    path = packaged if not Path(name).exists() and packaged.exists() else Path(name)
    if not path.exists() and "/" not in name and "." not in name:
        raise ConfigError(f"there is no study {name!r}; those here are {', '.join(names())}")
    if not reduced:
        return load(StudyConfig, path, overrides)
    section = load(StudyConfig, path, overrides).reduced
    study = load(StudyConfig, path, [*_replacements(section), *overrides])
    # What the command line says of every arm holds over what either size of the study says.
    is_given = any(item.startswith("set=") for item in overrides)
    first, last = (study.reduced.set, study.set) if is_given else (study.set, study.reduced.set)
    try:
        return _shrunk(study, study.reduced, [*first, *last])
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _replacements(section: ReducedConfig) -> list[str]:
    """Return the section as overrides of the study's own keys, below those of the command line."""
    found = [
        override(key, value) for key in _REPLACED if (value := getattr(section, key)) is not None
    ]
    if section.only:
        found.append(override("only", section.only))
    return found + [override(f"constants.{key}", value) for key, value in section.constants.items()]


def _shrunk(study: StudyConfig, section: ReducedConfig, common: list[str]) -> StudyConfig:
    """Return the study with the references that stay, and of its comparisons those that can be.

    `common` are the overrides of every arm.
    """
    kept = section.references
    for name in kept or ():
        check_known("reduced.references", name, list(study.references), "references")
    references = {
        name: keys for name, keys in study.references.items() if kept is None or name in kept
    }
    changes = {"references": references, "set": common}
    smaller = study.model_copy(update=changes)
    arms = {arm.name for arm in arms_of(smaller)}
    recovery = []
    for entry in study.recovery:
        if {entry.clean, entry.noisy} <= arms:
            remedies = entry.remedies and [name for name in entry.remedies if name in arms]
            recovery.append(entry.model_copy(update={"remedies": remedies}))
    contrasts = [pair for pair in study.contrasts if set(pair) <= arms]
    return smaller.model_copy(update={"contrasts": contrasts, "recovery": recovery})


__all__ = ["STUDIES", "names", "open_study"]
