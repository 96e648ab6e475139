"""result.json comes back as it was written, and says what is wrong with other files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.settings import ConfigError
from tcjepa.ablate.schema import RESULT_FILE, read, write
from tests.tcjepa.ablate.results import made_up


def test_a_result_comes_back(tmp_path: Path) -> None:
    write(made_up(), tmp_path)
    assert read(tmp_path / RESULT_FILE) == made_up()


def test_a_line_per_run_and_estimate_for_diffs_to_be_read(tmp_path: Path) -> None:
    write(made_up(), tmp_path)
    lines = (tmp_path / RESULT_FILE).read_text().splitlines()
    runs = [line for line in lines if '"training"' in line]
    assert len(runs) == len(made_up().trials)
    estimates = sum(map(len, made_up().estimates.values()))
    assert len([line for line in lines if '"student"' in line]) >= estimates
    assert max(map(len, lines)) < 250


def test_a_line_per_command(tmp_path: Path) -> None:
    made = made_up().model_copy(update={"commands": ("run all  # of it", "run one")})
    write(made, tmp_path)
    lines = (tmp_path / RESULT_FILE).read_text().splitlines()
    found = [line.strip(" ,]") for line in lines if "run " in line]
    assert found == ['"run all  # of it"', '"run one"']
    assert read(tmp_path / RESULT_FILE) == made


def test_older_files_do_not_say_what_slopes_lack(tmp_path: Path) -> None:
    content = json.loads(made_up().model_dump_json())
    for slope in content["slopes"]:
        del slope["points"]
    (tmp_path / RESULT_FILE).write_text(json.dumps(content))
    assert read(tmp_path / RESULT_FILE) == made_up()


def test_six_digits_are_kept(tmp_path: Path) -> None:
    trial = made_up().trials[0].model_copy(update={"values": {"a": 100 / 3, "b": 1e-9 / 3}})
    write(made_up().model_copy(update={"trials": (trial,)}), tmp_path)
    assert read(tmp_path / RESULT_FILE).trials[0].values == {"a": 33.3333, "b": 3.33333e-10}


@pytest.mark.parametrize("content", ["{}", "no JSON", '{"format": 2}'])
def test_other_files_are_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"other\.json is no result\.json of format 1"):
        read(path)
    with pytest.raises(ConfigError, match=r"absent\.json: No such file"):
        read(tmp_path / "absent.json")


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    trial = made_up().trials[0].model_copy(update={"values": {"a": float("nan")}})
    with pytest.raises(ValueError, match="JSON"):
        write(made_up().model_copy(update={"trials": (trial,)}), tmp_path)
    assert not (tmp_path / RESULT_FILE).exists()
