"""`python -m tcjepa ablate STUDY`: arguments, and the order of work.

Imports nothing heavy: every command's parser is built before any command runs.
"""

from __future__ import annotations

import argparse
import shlex
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.settings import ConfigError

if TYPE_CHECKING:
    from tcjepa.ablate.study import StudyConfig, Trial

Say = Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("study", help="YAML of the study: a path, or a name in ablate/studies")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="study overrides")
    parser.add_argument(
        "--reduced", action="store_true", help="at the size of its `reduced` section, for a CPU"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the runs it consists of and what they cost"
    )
    parser.add_argument("--report", action="store_true", help="only write the report anew")
    parser.add_argument(
        "--part", metavar="I/N", help="run the I-th of N shares of the runs, for an array job"
    )
    parser.add_argument(
        "--no-estimate", action="store_true", help="do not time a few steps of each kind first"
    )


def run(parsed: argparse.Namespace, find: Callable[[str], Path], say: Say) -> bool:
    """Run the command; returns whether no run failed. `find` returns a training config's path.

    Raises `ConfigError` for a study that cannot be run, and if there is nothing to report.
    """
    from tcjepa.ablate.reduced import open_study
    from tcjepa.ablate.runner import chosen, run_trials
    from tcjepa.ablate.trial import check_config, is_finished

    study = open_study(parsed.study, parsed.overrides, reduced=parsed.reduced)
    base, part = find(study.base), _part(parsed.part)
    trials = chosen(study, part)
    if parsed.dry_run:
        _describe(study, base, trials, measure=not parsed.no_estimate, say=say)
        return True
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    waiting = [trial for trial in trials if not is_finished(trial)]
    if waiting and study.scheduler is None and not (parsed.report or parsed.no_estimate):
        from tcjepa.ablate.cost import estimate_apart

        say(estimate_apart(study, base, waiting))
    failed = [] if parsed.report else run_trials(study, base, say, part)
    if part is not None:
        say(f"part {parsed.part} is over; --report writes the report once all parts are")
        return not failed
    from tcjepa.ablate.report import write_report
    from tcjepa.ablate.results import outcomes
    from tcjepa.ablate.study import training_config

    for trial in trials:  # what others ran here meanwhile, too
        check_config(trial, training_config(study, trial, base))
    found = outcomes(study)
    if not found:
        raise ConfigError(f"run: no trial in {study.run} is finished, so there is no report")
    print(write_report(study, found, _asked(parsed)))
    return not failed


def _describe(
    study: StudyConfig, base: Path, trials: Sequence[Trial], *, measure: bool, say: Say
) -> None:
    """Print the runs, then how many they are and their cost; every arm's config is checked."""
    from tcjepa.ablate.cost import estimate_apart, missing_shards, operations
    from tcjepa.ablate.study import training_config

    configs = [training_config(study, trial, base) for trial in trials]
    for trial in trials:
        print(f"{trial.folder}: {' '.join(trial.overrides)}")
    arms = len({trial.arm for trial in trials})
    print(f"{len(trials)} runs of {arms} arms; {operations(study, base, trials)}")
    if not measure:
        return
    if missing := missing_shards(configs):
        say(f"no step was timed: {', '.join(missing)} is not there yet")
    else:
        print(estimate_apart(study, base, trials))


def _asked(parsed: argparse.Namespace) -> str:
    """Return the command line that asked for the report, for the report to say."""
    flags = [f"--{flag}" for flag in ("reduced", "report") if getattr(parsed, flag)]
    return shlex.join(["python", "-m", "tcjepa", "ablate", parsed.study, *parsed.overrides, *flags])


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise ConfigError(f"--part {text}: give two numbers, such as 2/8")
    return int(number), int(count)


__all__ = ["add_arguments", "run"]
