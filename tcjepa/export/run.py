"""An export from end to end: written aside, reloaded, compared, and only then put in place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from pipeline.settings import ConfigError
from tcjepa.export import huggingface_format, plain, timm_format
from tcjepa.export.card import card
from tcjepa.export.source import ExportError, Source, Which, open_source

Format = Literal["timm", "huggingface", "safetensors", "all"]
#: Marks a folder as an export, which is what `--force` may replace.
MARK = "export.json"
CARD = "README.md"
#: What the usage lines of a model card call the folder, which may be moved.
_ANYWHERE = Path("path/to/this/folder")


class _FormatModule(Protocol):
    def write(self, folder: Path, source: Source) -> None: ...
    def compare(self, folder: Path, source: Source) -> float: ...
    def usage(self, folder: Path) -> tuple[str, str]: ...


FORMATS: dict[str, _FormatModule] = {
    "timm": timm_format,
    "huggingface": huggingface_format,
    "safetensors": plain,
}


def export(
    target: Path,
    out: Path,
    kind: Format = "all",
    *,
    which: Which = "target",
    force: bool = False,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Export an encoder of a run or checkpoint to the folder `out`; return how to load it.

    `all` makes one subfolder per format. Raises `ConfigError` if `out` exists (with `force`: if it
    is no export), if there is no sound checkpoint, or if the format cannot express the
    architecture; `ExportError` if what was written does not give the encoder's features, and then
    nothing of it is left and an earlier export is still there.
    """
    _require_free(out, force)
    source = open_source(target, which, say)
    wanted = list(FORMATS) if kind == "all" else [kind]
    if "huggingface" in wanted:
        huggingface_format.require_expressible(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.parent / f".{out.name}.unfinished-{os.getpid()}"
    aside.mkdir()
    lines: list[str] = []
    try:
        for name in wanted:
            folder = aside / name if kind == "all" else aside
            difference = _one(name, folder, source)
            final = out / name if kind == "all" else out
            lines += FORMATS[name].usage(final)
            say(f"{name}: {final}, features within {difference:.1g} of the {which} encoder's")
        _mark(aside, source, wanted)
        _put(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return lines


def _one(name: str, folder: Path, source: Source) -> float:
    module = FORMATS[name]
    folder.mkdir(exist_ok=True)
    module.write(folder, source)
    try:
        difference = module.compare(folder, source)
    except ExportError:
        raise
    except Exception as error:  # whatever timm or transformers raise at what they cannot load
        raise ExportError(f"{name}: what was written does not load: {error}") from error
    (folder / CARD).write_text(card(source, name, module.usage(_ANYWHERE)))
    return difference


def _mark(folder: Path, source: Source, formats: Sequence[str]) -> None:
    content = {**source.metadata, "formats": list(formats)}
    (folder / MARK).write_text(json.dumps(content, indent=2) + "\n")


def _require_free(out: Path, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise ConfigError(f"{out} exists; name another folder, or replace an export with --force")
    if not (out / MARK).exists():
        raise ConfigError(f"{out} is no export (it holds no {MARK}), so --force leaves it alone")


def _put(aside: Path, out: Path) -> None:
    """Put a finished folder in its place; an earlier export goes only once that is free."""
    old = aside.with_name(f"{aside.name}-old")
    if out.exists():
        out.rename(old)
    aside.rename(out)
    shutil.rmtree(old, ignore_errors=True)


__all__ = ["FORMATS", "MARK", "Format", "export"]
