"""Which code and data a trial ran on, so that results of different ones are never mixed."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.settings import ConfigError
from pipeline.storage import Directory
from tcjepa.ablate.study import StudyConfig, Trial
from tcjepa.ablate.trial import has_begun, is_finished
from tcjepa.config import EvaluationSection, TrainConfig
from tcjepa.data.folder import FORMATS
from tcjepa.evaluate.tally import TALLIES_FILE
from tcjepa.train.run import EVALUATION_FILE

PROVENANCE = "provenance.json"
_SEAL: Final = "evaluation"
_LIBRARIES: Final = ("torch", "timm")
#: Parts of the package that compute a result; how it is watched, shown or timed is none of them.
_ROOMS: Final = ("data", "evaluate", "model", "train")
_FILES: Final = (
    "config.py", "evaluation.py", "keyed.py", "masks*.py", "noise*.py", "text*.py",
    "watch/attention.py",  # the maps that grounding measures
)  # fmt: skip

#: Keys that name the images of a trial, to train or to test on.
_SOURCES: Final = (
    "data.shards", "evaluate.shards", "evaluate.folder", "evaluate.train_tars",
    "evaluate.test_tars",
)  # fmt: skip

_QUIET: Final[dict[str, Any]] = {"stderr": subprocess.DEVNULL, "text": True, "timeout": 30}


def code_fingerprint() -> str:
    """Return 16 hex digits that change with any line of code that computes a result."""
    root = Path(__file__).parents[1]
    paths = [path for room in _ROOMS for path in (root / room).rglob("*.py")]
    paths += [path for pattern in _FILES for path in root.glob(pattern)]
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def commit_of(file: Path) -> str | None:
    """Return the git commit of the checkout that tracks a file, "-dirty" behind it if it differs.

    None where there is no git, or the file is not tracked, as in an installed package. For a reader
    who looks for the code: whether two runs are of the same code is `code_fingerprint`'s to say.
    """
    git = ["git", "-C", str(file.parent)]
    try:
        # A package installed into somebody's checkout is not of that checkout.
        subprocess.check_output([*git, "ls-files", "--error-unmatch", file.name], **_QUIET)
        said = subprocess.check_output(
            [*git, "describe", "--always", "--exclude=*", "--dirty"], **_QUIET
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return str(said).strip()


def provenance(config: TrainConfig) -> dict[str, str]:
    """Return the fingerprints and versions of a trial that would run now."""
    import timm
    import torch

    from tcjepa.data.index import ShardIndex

    # Arms may filter the same shards differently, so the data is the index as a whole.
    data = config.data.model_copy(update={"filter": None})
    digest = ShardIndex.open(data).digest
    tested = config.evaluate.shards
    if tested not in (None, config.data.shards) and not config.evaluate.is_elsewhere:
        split = config.evaluate.test_split
        index = ShardIndex.open(data.model_copy(update={"shards": tested, "split": split}))
        digest += f", tested on {index.digest}"
    elif config.evaluate.is_elsewhere:
        digest += f", tested on {_files_digest(config.evaluate)}"
    commit = commit_of(Path(__file__))
    return {
        "code": code_fingerprint(),
        **({"commit": commit} if commit else {}),
        "data": digest,
        "torch": str(torch.__version__),
        "timm": str(timm.__version__),
        "python": platform.python_version(),
    }


def write(trial: Trial, found: dict[str, str]) -> None:
    """Note the provenance of a trial that is started now; nobody else may be running it.

    Raises `ConfigError` if the code is no longer that of `found`: each trial is a process that
    imports it anew.
    """
    now = code_fingerprint()
    if now != found["code"]:
        raise ConfigError(
            f"the code changed while the study ran (from {found['code']} to {now}); restore it and "
            "run the study again, which goes on, or run it from a clone that nobody edits"
        )
    Directory(trial.folder).write_text(PROVENANCE, json.dumps(found, indent=2) + "\n")


def seal(trial: Trial) -> None:
    """Note which evaluation a trial has made, if it is finished and that is not noted yet.

    `python -m tcjepa evaluate` may replace it later, by other code than provenance says.
    """
    found = _read(trial)
    if is_finished(trial) and _SEAL not in found:
        sealed = {**found, _SEAL: _evaluation_digest(trial)}
        Directory(trial.folder).write_text(PROVENANCE, json.dumps(sealed, indent=2) + "\n")


def check_begun(trial: Trial, found: dict[str, str]) -> None:
    """Raise `ConfigError` if a trial would go on from what other code or data began."""
    path = Path(trial.folder) / PROVENANCE
    if path.exists() and has_begun(trial):
        began = json.loads(path.read_text())
        changed = [key for key in ("code", "data") if began.get(key) != found[key]]
        if changed:
            raise ConfigError(
                f"{trial.folder} began with other {' and '.join(changed)}; restore it to go on, or "
                "remove the folder to run the trial anew"
            )


def check_data(trial: Trial, found: dict[str, str]) -> None:
    """Raise `ConfigError` if a finished trial ran on other data than the study now names."""
    ran = _read(trial).get("data")
    if ran not in (None, found["data"]):
        raise ConfigError(
            f"{trial.folder} ran on other data ({ran}) than the study's shards hold now "
            f"({found['data']}); name the shards it ran on, or set run= to another directory"
        )


def check_same(study: StudyConfig, trials: Sequence[Trial]) -> list[str]:
    """Return a line per kind of provenance among finished trials.

    Raises `ConfigError` if they ran on different code or versions of what computes, or arms of the
    same sources on different data, or if one was evaluated again since it ended, unless
    `study.mixed`. Arms whose overrides name other shards or test images have other data by intent.
    """
    again = [trial for trial in trials if _is_evaluated_again(trial)]
    if again and not study.mixed:
        listed = "".join(f"  {Path(trial.folder) / EVALUATION_FILE}\n" for trial in again)
        raise ConfigError(
            f"these are not the evaluations that the study's runs made:\n{listed}"
            "nothing says by which code they were evaluated again; remove them and run the study "
            "again, which evaluates these runs anew, or report them with mixed=true, which the "
            "report then says"
        )
    found = [(_sources(trial), _read(trial)) for trial in trials]
    kinds = Counter(
        _line(entry) + ("; evaluated again since" if trial in again else "")
        for trial, (_, entry) in zip(trials, found, strict=True)
    )
    codes = {tuple(entry.get(key) for key in ("code", *_LIBRARIES)) for _, entry in found}
    data = {(sources, entry.get("data")) for sources, entry in found}
    if (len(codes) > 1 or len(data) > len({s for s, _ in found})) and not study.mixed:
        listed = "".join(f"  {count} runs: {line}\n" for line, count in kinds.most_common())
        raise ConfigError(
            f"the runs in {study.run} are of different code, libraries or data:\n{listed}"
            "run the study anew in another run=…, remove the trials that differ, or report them "
            "together with mixed=true, which the report then says"
        )
    return [f"{line} ({count} runs)" for line, count in kinds.most_common()]


def _sources(trial: Trial) -> tuple[str, ...]:
    """Return what a trial's overrides name last of each source of images; "" for the base's."""
    named = [[o for o in trial.overrides if o.startswith(f"{key}=")] for key in _SOURCES]
    return tuple(items[-1] if items else "" for items in named)


def _files_digest(section: EvaluationSection) -> str:
    """Return hex digits that change with the images of an evaluation that are no shards of ours.

    Contents are not read: that takes hours where a folder is large and far away.
    """
    patterns = filter(None, (section.train_tars, section.test_tars))
    sets = [sorted(glob.glob(pattern, recursive=True)) for pattern in patterns]  # noqa: PTH207
    if section.folder is not None:
        walked = os.walk(section.folder, followlinks=True)  # test/ may be a link
        paths = [os.path.join(place, name) for place, _, names in walked for name in names]  # noqa: PTH118
        images = [path for path in map(Path, paths) if path.suffix.lower() in FORMATS]
        sets = [sorted(str(path) for path in images if path.is_file())]
    digest = hashlib.sha256()
    for paths in sets:
        root = section.folder or os.path.commonpath([os.path.dirname(p) for p in paths] or [""])  # noqa: PTH120
        for path in paths:
            found = Path(path).stat()
            entry = os.path.relpath(path, root), found.st_size, found.st_mtime_ns
            digest.update(f"{entry!r}\n".encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _read(trial: Trial) -> dict[str, Any]:
    path = Path(trial.folder) / PROVENANCE
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _evaluation_digest(trial: Trial) -> str:
    """Return hex digits of an evaluation, with what it kept of each image."""
    digest = hashlib.sha256()
    for path in (Path(trial.folder) / name for name in (EVALUATION_FILE, TALLIES_FILE)):
        digest.update(path.read_bytes() if path.exists() else b"")
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _is_evaluated_again(trial: Trial) -> bool:
    """Return whether a trial's evaluation is another than it ended with, as far as it says."""
    sealed = _read(trial).get(_SEAL)
    return sealed is not None and sealed != _evaluation_digest(trial)


def _line(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{key} {found.get(key, '?')}" for key in (*_LIBRARIES, "python"))
    commit = f" (commit {found['commit']})" if "commit" in found else ""
    return f"code {found.get('code', '?')}{commit}, data {found.get('data', '?')}; {versions}"


__all__ = [
    "PROVENANCE",
    "check_begun",
    "check_data",
    "check_same",
    "code_fingerprint",
    "provenance",
    "seal",
    "write",
]
