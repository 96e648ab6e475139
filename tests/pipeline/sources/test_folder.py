"""The `folder` source: images on disk, captions pooled per image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from pipeline.settings import ConfigError, build
from pipeline.sources.folder import FolderConfig, FolderSource
from pipeline.sources.row import meta_types, to_table

TABLE = """image,caption,second,licence
a.jpg,one,uno,cc0
sub/dir/b.PNG,two,,by
a.jpg,one more,uno mas,by
gone.jpg,lost,,by
,nameless,,
too,few
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub" / "dir").mkdir(parents=True)
    for name in ("a.jpg", "sub/dir/b.PNG", "c d#1.webp"):
        (folder / name).write_bytes(name.encode())
    (folder / "notes.txt").write_text("no image")
    (folder / "folder.jpg").mkdir()
    (folder / "broken.jpg").symlink_to(folder / "nowhere.jpg")
    return folder


def source(images: Path, table: str | None = None, **options: Any) -> FolderSource:
    data: dict[str, Any] = {"images": str(images), **options}
    if table is not None:
        (images.parent / "captions.csv").write_text(table)
        data["captions"] = str(images.parent / "captions.csv")
    return FolderSource(build(FolderConfig, data))


def test_images_come_by_path_with_their_captions_pooled(images: Path) -> None:
    found = source(images, TABLE, caption_columns=["caption", "second"], keep_columns=["licence"])
    found.check()
    rows = [(r["url"], r["captions"], r["row_error"], r["licence"]) for r in found.rows()]
    assert rows == [
        ("a.jpg", ["one", "uno", "one more", "uno mas"], None, "cc0"),
        ("c d#1.webp", [], None, None),
        ("sub/dir/b.PNG", ["two"], None, "by"),
        ("gone.jpg", ["lost"], "missing_file", "by"),
        (None, ["nameless"], "missing_url", None),
        (None, [], "malformed_row", None),
    ]


def test_without_a_table_images_have_no_captions(images: Path) -> None:
    found = source(images, split="test")
    found.check()
    rows = list(found.rows())
    assert [row["url"] for row in rows] == ["a.jpg", "c d#1.webp", "sub/dir/b.PNG"]
    assert all(row["captions"] == [] and row["split"] == "test" for row in rows)


def test_fetch_urls_lead_to_the_files(images: Path) -> None:
    found = source(images)
    for row in found.rows():
        with urlopen(found.fetch_url(row["url"])) as response:
            assert response.read() == row["url"].encode()


def test_a_table_cannot_name_files_outside_the_folder(images: Path) -> None:
    (images.parent / "secret.jpg").write_bytes(b"secret")
    table = f"image,caption\n../secret.jpg,a\n{images.parent}/secret.jpg,b\n"
    errors = [r["row_error"] for r in source(images, table).rows() if "secret" in r["url"]]
    assert errors == ["missing_file", "missing_file"]


def test_a_file_name_that_is_not_unicode_is_a_bad_url(images: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(images) + b"/caf\xe9.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    rows = list(source(images).rows())
    assert [row["row_error"] for row in rows].count("bad_url") == 1
    assert len(source(images).fingerprint()) == 64
    assert to_table(rows, meta_types(rows)).num_rows == 4


def test_an_image_column_may_be_kept_too(images: Path) -> None:
    found = source(images, TABLE, keep_columns=["image"])
    found.check()
    assert [row["image"] for row in found.rows()][:3] == ["a.jpg", None, "sub/dir/b.PNG"]


def test_what_cannot_be_read_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source\.images: .* is not a folder"):
        source(tmp_path / "none").check()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no file under .* is an image"):
        source(tmp_path / "empty").check()
    with pytest.raises(ConfigError, match=r"source\.captions: .* is not a file"):
        source(images, captions=str(tmp_path / "none.csv")).check()
    with pytest.raises(ConfigError, match=r"no column 'image'; did you mean 'images'\?"):
        source(images, "images,caption\n").check()
    with pytest.raises(ConfigError, match="'captions' is a name of our own"):
        source(images, TABLE, keep_columns=["captions"])


def test_the_fingerprint_follows_images_table_and_config(images: Path) -> None:
    same = source(images, TABLE)
    marks = [same.fingerprint()]
    assert same.fingerprint() in marks
    marks.append(source(images, TABLE + "a.jpg,three,,\n").fingerprint())
    (images / "a.jpg").write_bytes(b"other")
    marks.append(source(images, TABLE + "a.jpg,three,,\n").fingerprint())
    (images / "new.jpg").write_bytes(b"new")
    marks.append(source(images, TABLE + "a.jpg,three,,\n").fingerprint())
    marks.append(source(images, TABLE + "a.jpg,three,,\n", split="x").fingerprint())
    assert len(set(marks)) == 5
