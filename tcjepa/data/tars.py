"""Tars as webdataset users have them, an image and a `.cls` per sample, for evaluation."""

from __future__ import annotations

import glob
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.settings import ConfigError
from tcjepa.data.decode import SampleError
from tcjepa.data.folder import FORMATS, mixed

#: Members that say something of an image: its class, or a dict with anything.
_CLASS, _JSON = ".cls", ".json"


@dataclass
class _Entry:
    """One sample: where its members lie in which tar; spans are (offset, size) [bytes]."""

    tar: str
    key: str
    uid: str
    image: tuple[int, int] | None = None
    image_format: str = ""
    label: tuple[int, int] | None = None
    json: tuple[int, int] | None = field(default=None)


class LabelledTars:
    """The images of local tars; members of one sample share the name up to the first dot.

    They come in a fixed order that mixes classes: a function of the tars' file names and the keys.
    A sample's `meta` holds `class` (the text of its `.cls` member) and the values of its `.json`
    member. Nothing is unpickled or executed: other members are not read.
    """

    def __init__(self, entries: list[_Entry]) -> None:
        self._entries = entries

    @classmethod
    def open(cls, pattern: str) -> LabelledTars:
        """Read the headers of the tars that a glob names.

        Raises `ConfigError` if there is none, one is no tar, or none holds an image.
        """
        paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (patterns may be absolute)
        if not paths:
            raise ConfigError(f"no tar matches {pattern}")
        # Keys often begin anew in each tar, and names of tars in each folder.
        root = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120
        entries = [entry for path in paths for entry in _scan(path, os.path.relpath(path, root))]
        if not entries:
            raise ConfigError(
                f"no images ({', '.join(FORMATS)}) in the {len(paths)} tars {pattern}"
            )
        entries.sort(key=lambda entry: mixed(Path(entry.tar).name, entry.key))
        return cls(entries)

    def __len__(self) -> int:
        return len(self._entries)

    def image_and_sample(self, row: int) -> tuple[bytes, str, dict[str, Any]]:
        """Return a row's (image bytes, image format, sample); raises `SampleError`."""
        entry = self._entries[row]
        try:
            descriptor = os.open(entry.tar, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SampleError(f"cannot read {entry.tar}: {error.strerror}") from error
        try:
            image = _read(descriptor, entry.image)
            label, text = _read(descriptor, entry.label), _read(descriptor, entry.json)
        finally:
            os.close(descriptor)
        meta: dict[str, Any] = _meta(text, entry) if text else {}
        if label:
            meta["class"] = label.decode(errors="replace").strip()
        return image, entry.image_format, {"uid": entry.uid, "meta": meta}


def _scan(path: str, name: str) -> Iterator[_Entry]:
    """Yield the samples of a tar that have an image; `name` tells it from the others."""
    current = _Entry(path, "", "")
    seen: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                stem, _, rest = Path(member.name).name.partition(".")
                key = str(Path(member.name).parent / stem)
                if key != current.key:
                    if current.image:
                        yield current
                    if key in seen:
                        raise ConfigError(
                            f"{path}: the members of {key} do not stand together, as webdataset "
                            "has them; pack the tar anew (tar --sort=name)"
                        )
                    seen.add(key)
                    current = _Entry(path, key, f"{name}/{key}")
                span, suffix = (member.offset_data, member.size), f".{rest}".lower()
                if suffix in FORMATS:
                    current.image, current.image_format = span, FORMATS[suffix]
                elif suffix == _CLASS:
                    current.label = span
                elif suffix == _JSON:
                    current.json = span
    except (tarfile.TarError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as a tar: {error}") from error
    if current.image:
        yield current


def _read(descriptor: int, span: tuple[int, int] | None) -> bytes:
    if span is None:
        return b""
    data = os.pread(descriptor, span[1], span[0])
    if len(data) != span[1]:
        raise SampleError(f"the tar ends before byte {span[0] + span[1]}")
    return data


def _meta(text: bytes, entry: _Entry) -> dict[str, Any]:
    try:
        meta = json.loads(text)
    except ValueError as error:
        raise SampleError(f"json member of {entry.key} is broken: {error}"[:200]) from error
    if not isinstance(meta, dict):
        raise SampleError(f"json member of {entry.key} is no dict")
    return meta


__all__ = ["LabelledTars"]
