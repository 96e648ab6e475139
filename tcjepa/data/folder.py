"""An image folder with one subfolder per class, for evaluation on any labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.schema import IMAGE_EXTENSIONS
from pipeline.settings import ConfigError
from tcjepa import keyed
from tcjepa.data.decode import SampleError

#: Formats by file ending.
FORMATS = {f".{extension}": extension for extension in IMAGE_EXTENSIONS} | {".jpeg": "jpg"}


def mixed(*names: str) -> tuple[int, tuple[str, ...]]:
    """Return what to sort files by, so that the first N of them are a draw from all classes.

    Limits take the first N images of a source; in the order of their names those would be of one
    class. The order depends on the names alone, which may be any that a file system has.
    """
    written = [name.encode(errors="replace").decode() for name in names]
    return keyed.key("folder order", *written), names


class ImageFolder:
    """Images in `<path>/<class>/**`: classes sorted, files in a fixed order that mixes them.

    A sample's `meta` holds `label` (class number) and `class` (folder name).
    """

    def __init__(self, path: Path, classes: list[str], files: list[tuple[str, int]]) -> None:
        self.path, self.classes = path, classes
        self._files = files

    @classmethod
    def open(cls, path: str | Path) -> ImageFolder:
        """List a folder; raises `ConfigError` if it has no class folder or no image."""
        root = Path(path)
        if not root.is_dir():
            raise ConfigError(f"image folder {root} does not exist")
        classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        files = [
            (file.relative_to(root).as_posix(), label)
            for label, name in enumerate(classes)
            for file in (root / name).rglob("*")
            if file.suffix.lower() in FORMATS and file.is_file()
        ]
        files.sort(key=lambda file: mixed(file[0]))
        if not files:
            formats = ", ".join(FORMATS)
            raise ConfigError(f"no images ({formats}) in class subfolders of {root}")
        return cls(root, classes, files)

    def __len__(self) -> int:
        return len(self._files)

    def image_and_sample(self, row: int) -> tuple[bytes, str, dict[str, Any]]:
        """Return a row's (image bytes, image format, sample); raises `SampleError`."""
        name, label = self._files[row]
        sample = {"uid": name, "meta": {"label": label, "class": self.classes[label]}}
        try:
            return (self.path / name).read_bytes(), FORMATS[Path(name).suffix.lower()], sample
        except OSError as error:
            raise SampleError(f"cannot read {name}: {error.strerror}") from error
