"""`python -m tcjepa bench [all|loader|step|monitors]`: which bench runs, with which arguments.

Imports nothing heavy: every command's parser is built before any command runs.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any, Final

#: Name, what it measures, and the module with `add_arguments(parser)` and `run(parsed)`.
_PARTS: Final = (
    ("all", "every bench at its default sizes", "tcjepa.bench.run"),
    ("loader", "decoders, the loader and its rivals on the same shards", "tcjepa.bench.loader_run"),
    ("step", "what a training step costs", "tcjepa.bench.step_run"),
    ("monitors", "what watching costs, as a share of a step", "tcjepa.bench.monitors"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benches as subcommands; without one, all of them run."""
    add_common_arguments(parser)
    parser.set_defaults(bench="tcjepa.bench.run")
    parts = parser.add_subparsers(metavar="all|loader|step|monitors", parser_class=_LateParser)
    for name, text, module in _PARTS:
        part = parts.add_parser(name, help=text, description=text)
        part.set_defaults(bench=module)


def run(parsed: argparse.Namespace) -> None:
    """Run the bench that was asked for; raises `ConfigError` for arguments that cannot be met."""
    importlib.import_module(parsed.bench).run(parsed)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the benches have in common."""
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")


class _LateParser(argparse.ArgumentParser):
    """A parser that asks its bench's module, which imports torch, for arguments when it is used."""

    _filled = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if not self._filled:
            self._filled = True
            importlib.import_module(self.get_default("bench")).add_arguments(self)
        return super().parse_known_args(args, namespace)
