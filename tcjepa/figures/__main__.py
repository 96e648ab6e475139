"""`python -m tcjepa.figures`: README and docs from the result files under docs/results."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.settings import ConfigError
from tcjepa.figures.build import build
from tcjepa.figures.imports import import_run

DONE, FAILED, BAD_USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, check or import; returns 0 done, 1 something is wrong or stale, 2 bad usage."""
    parsed = _parser().parse_args(arguments)
    if parsed.run is None:
        return _build(parsed.root, parsed.check)
    about = {key: getattr(parsed, key) for key in ("about", "command", "hardware")}
    try:
        import_run(parsed.run, parsed.file, {key: text for key, text in about.items() if text})
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tcjepa.figures", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: here)")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a page differs"
    )
    parser.set_defaults(run=None)
    imports = parser.add_subparsers(metavar="import").add_parser(
        "import", help="make a result file of a run that was evaluated, or of a study"
    )
    imports.add_argument("run", type=Path, help="run directory, or a study's")
    imports.add_argument("file", type=Path, help="the file to write: docs/results/NAME.json")
    imports.add_argument("--command", help="what made the run; a study knows it")
    imports.add_argument("--hardware", help="what it ran on; a study knows it")
    imports.add_argument("--about", help="what the file holds, in a few words")
    return parser


def _build(root: Path, check: bool) -> int:
    errors, stale = build(root, write=not check)
    for problem in errors:
        print(f"error: {problem}", file=sys.stderr)
    if check:
        for problem in stale:
            print(f"stale: {problem}", file=sys.stderr)
        if stale:
            print("`make figures` writes what the result files give", file=sys.stderr)
    else:
        for page, count in Counter(problem.page for problem in stale).items():
            print(f"{page}: {count} passages updated")
    return FAILED if errors or (check and stale) else DONE


if __name__ == "__main__":
    sys.exit(main())
