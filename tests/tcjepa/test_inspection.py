"""`inspect` of shards: broken rows and hostile captions are shown, and do no harm."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.schema import INDEX_FILE, Caption
from tcjepa.cli import main
from tests.tcjepa.shards import caption, write_shards


def captions(number: int) -> list[Caption]:
    return [caption(f"caption\u3000{number} é\x1b[2J\x07\nforged\u202e line", "alt\x9b31m")]


def test_a_row_that_cannot_be_read_is_said_and_the_rest_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = write_shards(tmp_path, 3)
    first = pq.read_table(tmp_path / INDEX_FILE).to_pylist()[0]
    with (tmp_path / first["shard"]).open("r+b") as shard:
        shard.seek(first["json_offset"])
        shard.write(b"broken")
    assert main(["inspect", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"row 0 cannot be read: json member of {samples[0]['uid']} is broken" in said
    assert "alt text of image 1" in said and "alt text of image 2" in said


def test_nothing_of_a_shard_drives_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path, 2, captions)
    shard = tmp_path / "train-00000.tar"
    content = shard.read_bytes()
    assert content.count(b"//127.0.0.1/") == 2
    shard.write_bytes(content.replace(b"//127.0.0.1/", rb"//\u001b0.1/"))
    assert main(["inspect", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(char.isprintable() or char in "\n\u3000" for char in said)
    assert "caption\u30001 é\ufffd[2J\ufffd\ufffdforged\ufffd line" in said
    assert "alt\ufffd31m" in said and "http://\ufffd0.1/1.jpg" in said


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "shards", 2)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    before = sorted(tmp_path.rglob("*"))
    assert main(["inspect", str(tmp_path / "shards")]) == 0
    assert sorted(tmp_path.rglob("*")) == before
