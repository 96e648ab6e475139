"""A pipeline run from source to shards: which jobs, in which order. Read this first.

`download → filter → [embed] → recaption` runs part by part without waiting; `select` (duplicates),
`fit` (the alignment model), `choose` (balancing), `plan` and `finish` are single tasks that wait
for all parts. The driver holds names and counts, never rows.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from pipeline.cluster import check_resources
from pipeline.config import PipelineConfig, check_scores
from pipeline.engine import Engine, Job
from pipeline.filters.blocklist import BlockConfig
from pipeline.filters.lists import with_lists
from pipeline.fingerprints import Fingerprints, needs_features
from pipeline.lock import locked
from pipeline.manifest import write_manifest
from pipeline.part import Part, cut, retry_transient, with_generations
from pipeline.settings import ConfigError, to_yaml
from pipeline.sources.build import build_source
from pipeline.sources.row import Source
from pipeline.stages import (
    blocked,
    choose,
    embed,
    filter,
    finish,
    fit,
    pack,
    recaption,
    score,
    select,
    shuffle,
)
from pipeline.stages.task import ALL, SHARDS, discard_marks, is_done, tables_of, which_done
from pipeline.storage import Directory

CONFIG = "config.yaml"
#: Beside it, thresholds that `--until` only tried: the verdicts are theirs, the shards are not.
TRIED = "tried.yaml"

#: Tables of parts, and of shards, that are made of those of a stage of the whole run.
_MADE_OF = {"fit": "score", "plan": "pack"}

#: Where `shards --until` can stop.
UNTIL = ("download", "filter", "recaption", "select", "score", "choose")


@dataclass(frozen=True)
class RunResult:
    """How a run ended: its manifest (None if it was stopped early), and (stage, error) of every
    part that failed."""

    manifest: dict[str, Any] | None
    failures: dict[str, tuple[str, str]]


def build_shards(config: PipelineConfig, until: str | None = None) -> RunResult:
    """Run the pipeline, resuming what an earlier run left; returns how it ended.

    `until` names the last stage to run (one of `UNTIL`). Raises `ConfigError` before any work for
    a source that can't be read, or if another process is working in the same run directory. Parts
    that fail are left out and listed.
    """
    run = Directory(config.run).absolute()  # workers have working directories of their own
    source = build_source(config.source)
    check(config, source)
    written = to_yaml(config)
    config = config.model_copy(update={"filter": with_lists(config.filter)})
    with locked(run):
        if until is None or not run.exists(CONFIG):
            run.write_text(CONFIG, written)
            run.remove(TRIED)
        else:  # the shards that are there are still those of CONFIG
            run.write_text(TRIED, written)
        try:
            parts = cut(run, source, config.part_rows)
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"source: it could not be read to its end: {error}") from error
        if not parts:
            raise ConfigError("source: it has no rows")
        with Engine(run, config.cluster) as engine:
            return _Run(config, run, source, engine).build(parts, until)


def check(config: PipelineConfig, source: Source) -> None:
    """Raise `ConfigError` for what would fail later: sources, models, lists, scores, workers."""
    source.check()
    recaption.check(config.recaption)
    score.check(config.score, config.embed)
    blocked.check(with_lists(config.filter).block)
    check_scores(config)
    needed = {
        "download.resources": config.download.resources,
        "recaption.resources": config.recaption.resources,
        "embed.resources": config.embed.resources if config.embed else {},
        "score.agreement.resources": getattr(config.score.agreement, "resources", {}),
    }
    check_resources(config.cluster, needed)


class _Run:
    """One run: its stages in order, with the engine that executes them."""

    def __init__(
        self, config: PipelineConfig, run: Directory, source: Source, engine: Engine
    ) -> None:
        self.config, self.run, self.source, self.engine = config, run, source, engine

    def build(self, parts: list[Part], until: str | None) -> RunResult:
        parts = self._fetched_again(with_generations(self.run, parts))
        for stages in self._stages(parts, until):
            if until in stages:
                return RunResult(None, self.engine.failures)
        manifest = write_manifest(self.config, self.run)
        report_run(self.run)
        return RunResult(manifest, self.engine.failures)

    def _stages(self, parts: list[Part], until: str | None) -> Iterator[tuple[str, ...]]:
        """Run the stages, yielding the names of those that have just ended."""
        self._fetch(parts, until)
        yield "download", "filter", "recaption"
        sound = self._sound(parts)
        names = [part.name for part in sound]
        marks = Fingerprints(self.config, sound)
        filters = self.config.filter
        self._once("select", marks.select, select.select, (names, filters))
        yield ("select",)
        self.engine.execute("scores", self._score_jobs(sound, marks))
        self._stop_if_failed(names)
        yield ("score",)
        few = self.config.pack.min_captions
        self._once("choose", marks.choose, choose.choose, (names, filters, few))
        yield ("choose",)
        self._once("plan", marks.plan, shuffle.plan, (names, self.config.pack))
        self._pack(marks)
        rows = {part.name: part.rows for part in parts}
        if not finish.is_written(self.run):
            tables_of(self.run, "finish").remove(f"{ALL}.parquet")
        self._once("finish", marks.finish(parts), finish.finish, (rows, names))
        yield ("finish",)

    def _fetched_again(self, parts: list[Part]) -> list[Part]:
        """With `download.retry: transient`, have parts with transient failures fetched again."""
        if self.config.download.retry is None:
            return parts
        if self.source.in_place:
            raise ConfigError(
                "download.retry: the images of this source are read where they lie, and none is "
                "fetched that could be fetched again; leave it out"
            )
        marks = Fingerprints(self.config, parts)
        done = which_done(self.run, [("download", p.name, marks.download(p)) for p in parts])
        names = {part.name for part, there in zip(parts, done, strict=True) if there}
        return retry_transient(self.run, parts, names)

    def _fetch(self, parts: list[Part], until: str | None) -> None:
        marks = Fingerprints(self.config, parts)
        done = which_done(self.run, [("download", p.name, marks.download(p)) for p in parts])
        with nullcontext() if all(done) else self.source.serve():
            jobs = self._part_jobs(parts, marks, until)
            self.engine.execute("images", jobs, before=self._discard_fit)

    def _discard_fit(self, stages: set[str]) -> None:
        """Captioners need not answer alike twice: what was fitted to their captions goes first."""
        if "recaption" in stages:
            discard_marks(self.run, "fit")

    def _part_jobs(
        self, parts: list[Part], marks: Fingerprints, until: str | None
    ) -> Iterator[Job]:
        config = self.config
        last = UNTIL.index(until) if until else len(UNTIL)
        # Lists may be long: tasks find them in the run.
        filters = config.filter.model_copy(update={"block": BlockConfig()})
        lists = blocked.publish(self.run, config.filter.block)
        fetch, fetching = self._obtaining(lists)
        for part in parts:
            yield Job(
                "download", part.name, marks.download(part), fetch,
                (part, self.source, config.download, *fetching),
                resources=config.download.resources,
            )  # fmt: skip
            if last < UNTIL.index("filter"):
                continue
            yield Job(
                "filter", part.name, marks.filter(part), filter.measure,
                (part.name, filters, needs_features(config)),
                after=(f"download-{part.name}",),
            )  # fmt: skip
            if config.embed is not None:
                yield Job(
                    "embed", part.name, marks.embed(part), embed.embed,
                    (part.name, config.embed), after=(f"download-{part.name}",),
                    resources=config.embed.resources,
                )  # fmt: skip
            if until == "select" or last < UNTIL.index("recaption"):
                continue
            yield Job(
                "recaption", part.name, marks.recaption(part), blocked.caption,
                (part.name, config.recaption, filters, lists),
                after=(f"filter-{part.name}",), resources=config.recaption.resources,
            )  # fmt: skip

    def _obtaining(self, lists: str | None) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return the task that gets a part's images, fetched or in place, and more arguments."""
        if not self.source.in_place:
            return blocked.fetch, (lists,)
        from pipeline.stages.adopt import adopt

        return adopt, ()

    def _score_jobs(self, parts: list[Part], marks: Fingerprints) -> Iterator[Job]:
        names = [part.name for part in parts]
        settings = (self.config.score, self.config.embed)
        self._begin_anew("fit", marks.fit)
        resources = score.resources(*settings)
        yield Job("fit", ALL, marks.fit, fit.fit, (names, *settings), resources=resources)
        for part in parts:
            yield Job(
                "score", part.name, marks.score(part), score.score, (part.name, *settings),
                after=(f"fit-{ALL}",), resources=resources,
            )  # fmt: skip

    def _pack(self, marks: Fingerprints) -> None:
        shards = shuffle.planned(self.run)
        names = [shard.name for shard in shards]
        pack.drop_unplanned(self.run, names)
        _forget_missing(self.run, names)
        jobs = [
            Job("pack", shard.name, marks.pack(shard), pack.pack, (shard.name,)) for shard in shards
        ]
        self.engine.execute("shards", jobs)
        self._stop_if_failed(names)

    def _once(
        self, stage: str, mark: str, function: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> None:
        self._begin_anew(stage, mark)
        self.engine.execute(stage, [Job(stage, ALL, mark, function, arguments)])
        self._stop_if_failed([ALL])

    def _begin_anew(self, stage: str, mark: str) -> None:
        """Take away the mark of a stage that will overwrite its tables one after another.

        Killed on the way, tables of two configs would lie under the mark of the first. So would
        scores, and shards, that were made of what images and captions were before.
        """
        if is_done(self.run, stage, ALL, mark):
            return
        tables_of(self.run, stage).remove(f"{ALL}.parquet")
        if stage in _MADE_OF:
            made = tables_of(self.run, _MADE_OF[stage])
            for table in made.names("*.parquet"):
                made.remove(table)

    def _sound(self, parts: list[Part]) -> list[Part]:
        failures = self.engine.failures
        sound = [part for part in parts if part.name not in failures]
        if not sound:
            stage, error = next(iter(failures.values()))
            raise RuntimeError(f"every part failed; the first error, in {stage}: {error}")
        return sound

    def _stop_if_failed(self, names: Sequence[str]) -> None:
        for name in [ALL, *names]:
            if name in self.engine.failures:
                stage, error = self.engine.failures[name]
                raise RuntimeError(f"{stage} failed ({name}): {error}")


def report_run(run: Directory) -> None:
    """Write `report.html`; what goes wrong there is printed and harms no finished run."""
    from pipeline.report.page import write_report

    try:
        write_report(run)
    except Exception as error:
        print(f"report.html could not be written: {error!r}", file=sys.stderr)


def _forget_missing(run: Directory, shards: list[str]) -> None:
    """Have shards that somebody deleted packed again: their tables alone don't make them done."""
    present = set((run / SHARDS).names("*.tar"))
    for shard in shards:
        if f"{shard}.tar" not in present:
            tables_of(run, "pack").remove(f"{shard}.parquet")
