"""Answers that are kept: across runs, kills, failing storage and a second worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.captioners.answers import Answer, Answers, question
from pipeline.storage import Directory

A, B = Answer("A dog.", True, None, 3, 100), Answer("", False, "refused")


def names(folder: Path) -> list[str]:
    return Directory(folder).names()


def test_what_was_put_is_there_in_the_next_run(tmp_path: Path) -> None:
    folder = Directory(tmp_path)
    with Answers(folder, "00001") as answers:
        answers.put("u", "q", A)
        answers.put("u", "r", B)
        assert (answers.costs.asked, answers.costs.tokens) == (2, 3)
    with Answers(folder, "00001") as answers:
        assert (answers.get("u", "q"), answers.get("u", "r")) == (A, B)
        assert answers.get("v", "q") is None
        assert answers.knows("q") and not answers.knows("s")
        assert answers.costs.asked == 0
    with Answers(folder, "00002") as answers:
        assert answers.get("u", "q") is None
    assert names(tmp_path) == ["00001.parquet"]
    assert "uid" in folder.read_table("00001.parquet").column_names


def test_answers_survive_an_error_and_come_before_the_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="later"), Answers(Directory(tmp_path), "00001") as answers:
        answers.put("u", "q", A)
        raise ValueError("later")
    with Answers(Directory(tmp_path), "00001", every_s=0.01) as answers:
        answers.put("v", "q", B)
        while len(names(tmp_path)) < 2:  # a kill after this would lose nothing
            answers._ended.wait(0.01)
        with Answers(Directory(tmp_path), "00001") as after_a_kill:
            assert (after_a_kill.get("u", "q"), after_a_kill.get("v", "q")) == (A, B)
    assert names(tmp_path) == ["00001.parquet"]


def test_of_two_workers_with_one_part_neither_loses_answers(tmp_path: Path) -> None:
    with Answers(Directory(tmp_path), "00001") as one:
        with Answers(Directory(tmp_path), "00001") as two:
            one.put("u", "q", A)
            two.put("v", "q", A)
            two.put("u", "q", B)
        assert one.get("v", "q") is None
    with Answers(Directory(tmp_path), "00001") as after:
        assert after.get("v", "q") == A and after.get("u", "q") in (A, B)


def test_unreadable_answers_are_asked_for_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Answers(Directory(tmp_path), "00001") as answers:
        answers.put("u", "q", A)
    (tmp_path / "00001-1-x.parquet").write_bytes(b"PAR1 damaged")
    other = pa.table({"uid": ["w"], "elsewhere": [1]})
    Directory(tmp_path).write_table("00001-2-x.parquet", other)
    with Answers(Directory(tmp_path), "00001") as answers:
        assert answers.get("u", "q") == A and answers.get("w", "q") is None
    assert caplog.text.count("asked for again") >= 2


def test_storage_that_fails_stops_the_asking_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Directory(tmp_path)
    with Answers(folder, "00001", every_s=0.01) as answers:

        def full(*_: Any) -> None:
            raise OSError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(folder, "write_table", full)
            answers.put("u", "q", A)
            while not answers._late:
                answers._ended.wait(0.01)
            with pytest.raises(OSError, match="no space left"):
                answers.put("v", "q", B)
    with Answers(Directory(tmp_path), "00001") as after:
        assert (after.get("u", "q"), after.get("v", "q")) == (A, B)


def test_many_files_are_joined_while_the_part_is_captioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.captioners.answers._MOST_FILES", 2)
    with Answers(Directory(tmp_path), "00001", every_s=0.01) as answers:
        number = 0
        while not (tmp_path / "00001.parquet").exists():
            answers.put(f"{number}", "q", A)
            number += 1
            answers._ended.wait(0.02)
        assert number > 2
    with Answers(Directory(tmp_path), "00001") as after:
        assert all(after.get(f"{n}", "q") == A for n in range(number))
    assert names(tmp_path) == ["00001.parquet"]


def test_an_object_store_holds_them_as_well() -> None:
    folder = Directory("memory://answers-of-a-run/tables/answers")
    with Answers(folder, "00001") as answers:
        answers.put("u", "q", A)
    with Answers(Directory(folder.url), "00001") as answers:
        assert answers.get("u", "q") == A


def test_without_a_directory_answers_are_only_remembered() -> None:
    answers = Answers()
    answers.put("u", "q", A)
    assert answers.get("u", "q") == A
    with answers:
        assert answers.get("u", "q") == A


def test_a_question_is_named_by_everything_in_it() -> None:
    assert question({"a": 1, "b": 2}) == question({"b": 2, "a": 1})
    assert question({"a": 1}) != question({"a": "1"})
    assert len(question({})) == 32
