"""The command line: `python -m pipeline {shards,status,report,forget,calibrate,bench}`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.settings import ConfigError, describe, load, to_yaml

DONE, PARTS_FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0 done, 1 parts failed, 2 bad usage or config, 130 interrupted."""
    parsed = _parse(arguments)
    command: Callable[[argparse.Namespace], int] = parsed.command
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return command(parsed)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return PARTS_FAILED
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def _rounds(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("at least one")
    return count


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


class _ListKeys(argparse.Action):
    """`--help` that also lists every config key with its default and unit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from pipeline.config import PipelineConfig

        parser.print_help()
        print("\nconfig keys (key = default: meaning):")
        for key, default, description in describe(PipelineConfig):
            print(f"  {key} = {default}: {description}")
        parser.exit()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line whose options may stand before, between or behind the overrides."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") or not hasattr(parsed, "overrides")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline", description="Turn image-text lists into scored shards."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shards = commands.add_parser("shards", help="build shards", add_help=False)
    shards.add_argument("config", help="YAML config, see data_configs/")
    shards.add_argument("overrides", nargs="*", metavar="key.sub=value", help="config overrides")
    shards.add_argument("--dry-run", action="store_true", help="print the config and the plan")
    shards.add_argument(
        "--until", metavar="STAGE", help="stop after this stage: download, filter, recaption, "
        "select (to try thresholds), score or choose",
    )  # fmt: skip
    shards.add_argument("-h", "--help", action=_ListKeys, nargs=0, help="show this and all keys")
    shards.set_defaults(command=_shards)
    status = commands.add_parser("status", help="how far a run is, and where its rows went")
    status.add_argument("run", help="run directory")
    status.add_argument("--no-examples", action="store_true", help="leave out the examples")
    status.set_defaults(command=_status)
    report = commands.add_parser("report", help="write report.html of a run, finished or not")
    report.add_argument("run", help="run directory")
    report.set_defaults(command=_report)
    forget = commands.add_parser("forget", help="take images out of a finished run (takedowns)")
    forget.add_argument("run", help="run directory")
    forget.add_argument("uids", nargs="*", metavar="UID", help="images, by their uid")
    forget.add_argument("--file", type=Path, help="more uids, one a line")
    forget.set_defaults(command=_forget)
    calibrate = commands.add_parser(
        "calibrate", help="how well the scores tell faults, in a run that knows its captions' truth"
    )
    calibrate.add_argument("run", help="run directory")
    calibrate.set_defaults(command=_calibrate)
    bench = commands.add_parser("bench", help="speed, as ratios between things measured in turns")
    bench.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    bench.add_argument("--rounds", type=_rounds, help="turns of each case (default: 5; quick: 1)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    bench.set_defaults(command=_bench)
    return parser


def _shards(parsed: argparse.Namespace) -> int:
    from pipeline.config import PipelineConfig
    from pipeline.funnel import count_so_far, format_funnel
    from pipeline.storage import Directory

    config = load(PipelineConfig, parsed.config, parsed.overrides)
    if parsed.dry_run:
        return _dry_run(config)
    from pipeline.run import UNTIL, build_shards

    if parsed.until is not None and parsed.until not in UNTIL:
        raise ConfigError(f"--until: got {parsed.until}, allowed: {', '.join(UNTIL)}")
    result = build_shards(config, parsed.until)
    if result.manifest is None:
        print(f"after {parsed.until}, so far:")
        so_far = count_so_far(Directory(config.run), parsed.until, result.failures)
        print(format_funnel(so_far))
    else:
        print(format_funnel(result.manifest["funnel"]))
        print(f"{result.manifest['samples']:,} samples in {config.run}/shards")
    for part, (stage, error) in sorted(result.failures.items()):
        print(f"part {part} failed in {stage}: {error}", file=sys.stderr)
    if result.failures:
        print("the same command tries the failed parts again", file=sys.stderr)
    return PARTS_FAILED if result.failures else DONE


def _dry_run(config: Any) -> int:
    from pipeline.plan import describe_plan

    print(to_yaml(config))
    print(describe_plan(config))
    return DONE


def _status(parsed: argparse.Namespace) -> int:
    from pipeline.status import describe_run

    print(describe_run(parsed.run, examples=not parsed.no_examples))
    return DONE


def _report(parsed: argparse.Namespace) -> int:
    from pipeline.report.page import REPORT, write_report
    from pipeline.storage import Directory

    write_report(Directory(parsed.run))
    print(f"{parsed.run.rstrip('/')}/{REPORT}")
    return DONE


def _forget(parsed: argparse.Namespace) -> int:
    from pipeline.forget.run import forget

    uids = list(parsed.uids)
    if parsed.file is not None:
        try:
            uids += parsed.file.read_text().split()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--file: {parsed.file} cannot be read: {error}") from error
    if not uids:
        raise ConfigError("no uids given; name some, or a --file of them")
    done = forget(parsed.run, uids)
    print(f"{len(done.uids)} images forgotten: {done.rows} rows, {done.shards} shards rewritten")
    for tar in done.outside:
        print(f"{tar} is the source's own and still holds some of them", file=sys.stderr)
    for uid in done.unknown:
        told = "is the uid of no image of this run (selection.parquet lists them); it is kept out"
        print(f"{uid} {told}", file=sys.stderr)
    return PARTS_FAILED if done.unknown else DONE


def _calibrate(parsed: argparse.Namespace) -> int:
    from pipeline.scorers.calibration.measure import calibrate
    from pipeline.scorers.calibration.report import markdown, write
    from pipeline.storage import Directory

    run = Directory(parsed.run)
    found = calibrate(run)
    print(markdown(found))
    print(*write(found, run), sep="\n")
    return DONE


def _bench(parsed: argparse.Namespace) -> int:
    from pipeline.bench.run import run_benches

    run_benches(parsed.quick, parsed.json, parsed.rounds)
    return DONE
