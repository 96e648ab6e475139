"""The command line: `python -m tcjepa {pretrain,evaluate,ablate,export,bench,inspect}`.

Each command is one row of `COMMANDS`: how it reads its arguments and what it does with them. Heavy
modules are imported by the command that needs them, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.schema import SchemaError
from pipeline.settings import ConfigError, Settings, describe, load, to_yaml

DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Command:
    """One subcommand: its help line, its arguments, and what runs; `run` returns the exit code."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    lists_keys: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0 done, 1 failed, 2 bad usage or config, 130 interrupted."""
    parsed = _parse(arguments)
    command: Command = parsed.command
    try:
        return command.run(parsed)
    except (Exception, KeyboardInterrupt) as error:
        code = _said(error)
        if code is None:
            raise
        return code


def _said(error: BaseException) -> int | None:
    """Print the message of an error that has one for the user; return the exit code, else None."""
    if isinstance(error, (ConfigError, SchemaError)):
        say(f"error: {error}")
        return BAD_USAGE
    if isinstance(error, RuntimeError) and is_explained(error):
        # Divergence, unreadable data: the message says what to do, a traceback would hide it.
        say(f"error: {error}")
        return FAILED
    if isinstance(error, KeyboardInterrupt):
        say("interrupted; the same command goes on from the last checkpoint")
        return INTERRUPTED
    return None


def say(line: str) -> None:
    """Print a message where progress goes, so that standard output holds results only."""
    print(line, file=sys.stderr, flush=True)


def is_explained(error: RuntimeError) -> bool:
    """Return whether an error is one of ours, whose message is written for the user."""
    return type(error).__module__.partition(".")[0] in ("tcjepa", "pipeline")


class _HelpWithKeys(argparse.Action):
    """`--help` that also lists every config key with its default and unit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from tcjepa.config import TrainConfig

        parser.print_help()
        print("\nconfig keys (key = default: meaning [unit]):")
        for key, default, description in describe(TrainConfig):
            print(f"  {key} = {default}: {description}")
        parser.exit()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; overrides may stand anywhere, also behind options."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    wrong = [item for item in rest if item.startswith("-") or "=" not in item]
    if rest and (wrong or not hasattr(parsed, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(wrong or rest)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tcjepa",
        description="Pretrain Text-Conditional JEPA on captioned shards, and evaluate it.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, add_help=not command.lists_keys)
        if command.lists_keys:
            text = "show this and every config key"
            sub.add_argument("-h", "--help", action=_HelpWithKeys, nargs=0, help=text)
        command.arguments(sub)
        sub.set_defaults(command=command)
    return parser


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML config: a path, or a name in tcjepa/configs")
    _override_argument(parser)


def _override_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="config overrides")


def config_path(name: str) -> Path:
    """Return a config's path: `name` itself, or the packaged config of that name."""
    packaged = Path(__file__).parent / "configs" / f"{name}.yaml"
    return packaged if not Path(name).exists() and packaged.exists() else Path(name)


S = TypeVar("S", bound=Settings)


def reload(cls: type[S], data: dict[str, Any], path: str | None, overrides: Sequence[str]) -> S:
    """Return a stored config with a YAML file's keys and then overrides put on top.

    Raises `ConfigError` as `pipeline.settings.load` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "checkpoint.yaml"
        try:
            OmegaConf.save(OmegaConf.merge(data, OmegaConf.load(path) if path else {}), stored)
        except (OSError, OmegaConfBaseException) as error:
            raise ConfigError(f"--config {path}: {error}") from error
        return load(cls, stored, overrides)


def _pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    _config_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the config and the plan")
    parser.add_argument(
        "--fresh", action="store_true", help="start over; an earlier run's files are set aside"
    )


def _pretrain(parsed: argparse.Namespace) -> int:
    from tcjepa.config import TrainConfig, cached_in_run

    config = load(TrainConfig, config_path(parsed.config), parsed.overrides)
    if parsed.dry_run:
        from tcjepa.train.plan import describe_plan

        print(to_yaml(config))
        print(describe_plan(config, say, parsed.fresh))
        return DONE
    from tcjepa.train.loop import Ending
    from tcjepa.train.pretrain import pretrain

    try:
        ending = pretrain(cached_in_run(config), say, parsed.fresh)
    except BaseException as error:
        _end_rank(error)
        raise
    return INTERRUPTED if ending is Ending.INTERRUPTED else DONE


def _end_rank(error: BaseException) -> None:
    """Say what went wrong and end this process, if it is one of several ranks.

    Right here: what Python clears away at its exit would wait for the other ranks, which wait for
    this one. `torchrun` ends them when it sees that this one is gone.
    """
    from tcjepa.train import distributed

    if distributed.is_joined():
        code = _said(error)
        if code is None:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(FAILED if code is None else code)


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", help="run directory, or a checkpoint (.pt or .dcp)")
    parser.add_argument("--config", help="YAML with other settings, e.g. an `evaluate:` section")
    _override_argument(parser)


def _evaluate(parsed: argparse.Namespace) -> int:
    from tcjepa.config import TrainConfig, cached_in_run, differences, stored
    from tcjepa.train import checkpoint
    from tcjepa.train.pretrain import evaluate_found

    target = Path(parsed.target)
    found = checkpoint.resolve(target, say)
    run = checkpoint.run_of(target)
    if run is None:
        raise ConfigError(
            f"{target} lies in no run's {checkpoint.FOLDER}/ folder, where its results would go; "
            f"move it to RUN/{checkpoint.FOLDER}/"
        )
    own = stored(found.config, run)
    config = cached_in_run(reload(TrainConfig, own, parsed.config, parsed.overrides))
    changed = differences(found.config, config.model_dump(mode="json"))
    if changed:
        raise ConfigError(
            "an evaluation cannot change how the checkpoint was trained:\n"
            + "\n".join(f"  {line}" for line in changed)
        )
    evaluate_found(found, config)
    return DONE


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "targets", nargs="+", metavar="TARGET",
        help="run directories; or a directory or URL that holds index.parquet, and after it a "
        'filter of its rows, e.g. "quality_best >= 0.5"',
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="runs: the page (HTML) to write")
    parser.add_argument("--split", default="train", help="shards: rows of this split")
    parser.add_argument(
        "--pointing", type=Path, metavar="FILE",
        help="one run: the picture (PNG) to write of the patches that words of its first test "
        "images point at; it must have been evaluated with the task grounding",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=3, help="shards: samples to show; --pointing: images"
    )


def _inspect(parsed: argparse.Namespace) -> int:
    from tcjepa.inspection import describe_runs, describe_shards
    from tcjepa.watch.runfiles import is_run

    first, *rest = parsed.targets
    if parsed.pointing is not None:
        from tcjepa.watch.grounded import picture

        if rest or not is_run(Path(first)):
            raise ConfigError("inspect: --pointing draws one run; name its directory alone")
        parsed.pointing.write_bytes(picture(Path(first), parsed.samples, say))
        print(f"words and where they point: {parsed.pointing}")
        return DONE
    if is_run(Path(first)):
        print(describe_runs([Path(target) for target in parsed.targets], parsed.out))
        return DONE
    if len(rest) > 1:
        raise ConfigError(
            f"inspect: {first} is no run directory, and shards take one filter, not {rest}"
        )
    from tcjepa.data.config import DataConfig

    condition = rest[0] if rest else None
    config = DataConfig(shards=first, split=parsed.split, filter=condition, verify="none")
    print(describe_shards(config, parsed.samples))
    return DONE


def _ablate_arguments(parser: argparse.ArgumentParser) -> None:
    from tcjepa.ablate.command import add_arguments

    add_arguments(parser)


def _ablate(parsed: argparse.Namespace) -> int:
    from tcjepa.ablate.command import run

    return DONE if run(parsed, config_path, say) else FAILED


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    from tcjepa.bench.command import add_arguments

    add_arguments(parser)


def _bench(parsed: argparse.Namespace) -> int:
    from tcjepa.bench.command import run

    run(parsed)
    return DONE


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", help="run directory, or a checkpoint")
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    formats = ("timm", "huggingface", "safetensors", "all")
    parser.add_argument(
        "--format", choices=formats, default="all", help="default: all, one subfolder each"
    )
    parser.add_argument(
        "--which", choices=("target", "context"), default="target", help="encoder (default: target)"
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export")


def _export(parsed: argparse.Namespace) -> int:
    from tcjepa.export.run import export

    target, options = Path(parsed.target), {"which": parsed.which, "force": parsed.force}
    print(*export(target, parsed.out, parsed.format, say=say, **options), sep="\n")
    return DONE


COMMANDS: dict[str, Command] = {
    "pretrain": Command(
        "train on shards; rerun to resume", _pretrain_arguments, _pretrain, lists_keys=True
    ),
    "evaluate": Command(
        "probe a trained encoder and an untrained one", _evaluate_arguments, _evaluate, True
    ),
    "ablate": Command("run a study; rerun to resume", _ablate_arguments, _ablate),
    "bench": Command("speed, as ratios between things measured in turns", _bench_arguments, _bench),
    "export": Command(
        "an encoder for timm, Hugging Face or as safetensors", _export_arguments, _export
    ),
    "inspect": Command("curves and faults of runs; what shards hold", _inspect_arguments, _inspect),
}
