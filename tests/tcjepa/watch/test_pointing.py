"""The picture of where words point: marks lie where the numbers say, of the images promised."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tcjepa.cli import main
from tcjepa.watch.pictures import pixels
from tcjepa.watch.pointing import (
    PointedImage,
    PointedWord,
    draw_pointing,
    object_edges,
    pointed_patch,
)
from tests.tcjepa.evaluate.test_text_path import QUICK, scenes

HIT, MISS = (0, 158, 115), (213, 94, 0)


def word(row: int, column: int, rows: slice) -> PointedWord:
    values = np.zeros((4, 4), np.float32)
    values[row, column] = 1
    patches = np.zeros((4, 4), bool)
    patches[rows, :2] = True
    return PointedWord("a $star$", values, patches)


def count(png: bytes, colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels(png).astype(int) - colour).max(axis=2) < 8).sum())


def test_hits_and_misses_are_told_apart_and_a_picture_repeats() -> None:
    image = np.full((32, 32, 3), 128, np.uint8)
    hit = PointedImage(image, "a $star$ above", [word(0, 0, slice(0, 2))])
    miss = PointedImage(image, "a star", [word(3, 3, slice(0, 2))])
    drawn = {name: draw_pointing([own], "title") for name, own in (("hit", hit), ("miss", miss))}
    assert count(drawn["hit"], HIT) > 50 and not count(drawn["hit"], MISS)
    assert count(drawn["miss"], MISS) > 50 and not count(drawn["miss"], HIT)
    both = draw_pointing([hit, miss], "title")
    assert count(both, HIT) > 50 and count(both, MISS) > 50
    assert draw_pointing([hit, miss], "title") == both


@given(arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 5))))
def test_edges_enclose_the_objects_patches_and_nothing_else(patches: np.ndarray) -> None:
    wanted: set[tuple[tuple[int, int], tuple[int, int]]] = set()
    for row, column in np.argwhere(patches).tolist():
        for sides in (
            ((row, column), (row, column + 1)), ((row + 1, column), (row + 1, column + 1)),
            ((row, column), (row + 1, column)), ((row, column + 1), (row + 1, column + 1)),
        ):  # fmt: skip
            wanted ^= {sides}  # a side between two patches of the object is met twice
    found = object_edges(patches)
    assert set(found) == wanted and len(found) == len(wanted)


def test_the_largest_patch_is_pointed_at_the_first_of_equals() -> None:
    assert pointed_patch(np.array([[0, 2, 1], [2, 0, 0]], np.float32)) == (0, 1)


def test_a_run_is_drawn_once_its_grounding_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = scenes(tmp_path), tmp_path / "pointing.png"
    run = tmp_path / "run"
    assert main(["pretrain", str(config), *QUICK, "evaluate.tasks=[knn]"]) == 0
    assert main(["inspect", str(run), "--pointing", str(out)]) == 2
    assert "holds no grounding of its newest checkpoint" in capsys.readouterr().err
    assert not out.exists()
    assert main(["evaluate", str(run), "evaluate.tasks=[grounding]"]) == 0
    assert main(["inspect", str(run), "--pointing", str(out), "--samples", "2"]) == 0
    two = pixels(out.read_bytes())
    assert main(["inspect", str(run), "--pointing", str(out), "--samples", "1"]) == 0
    assert pixels(out.read_bytes()).shape[0] < two.shape[0]
    words = json.loads((run / "evaluation.json").read_text())["trained"]["grounding"]["words"]
    assert words > 0
    assert main(["inspect", str(run), str(run), "--pointing", str(out)]) == 2
    assert "draws one run" in capsys.readouterr().err
