"""`python -m pipeline.scorers.calibration FOLDER`: scores on scenes, many of them miscaptioned."""

from __future__ import annotations

import argparse

from pipeline.scorers.calibration.bars import bars, table
from pipeline.scorers.calibration.measure import calibrate
from pipeline.scorers.calibration.report import markdown, write
from pipeline.scorers.calibration.world import scored_world
from pipeline.scorers.config import LinearAlignmentConfig, ScoreConfig
from pipeline.storage import Directory


def main() -> None:
    """Build a scored run of scenes in a new folder and print how its scores did."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.scorers.calibration")
    parser.add_argument("folder", help="run directory to write")
    parser.add_argument("--scenes", type=int, default=6000, help="images")
    parser.add_argument("--swapped", type=float, default=0.3, help="share of images [0, 1]")
    parser.add_argument("--generated", type=int, default=8, help="sentences per image; 0 is none")
    given = parser.parse_args()
    config = ScoreConfig(alignment=LinearAlignmentConfig(text_width=512))
    run = Directory(given.folder)
    world = scored_world(run, given.scenes, given.swapped, config, given.generated)
    print(table(bars(world)), "\n")
    found = calibrate(run)
    print(markdown(found))
    print(*write(found, run), sep="\n")


main()
