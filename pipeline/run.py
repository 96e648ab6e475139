"""A pipeline run from source to shards: which jobs, in which order, with which fingerprints.

`download → filter → recaption` runs part by part without waiting; the search for duplicates
(`select`) and the alignment fit (`fit`) are the only steps that wait for all parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.engine import Engine, Job
from pipeline.manifest import build_manifest, write_results
from pipeline.part import Part, cut, fingerprint
from pipeline.settings import ConfigError, Settings, to_yaml
from pipeline.sources.build import build_source
from pipeline.sources.row import Source
from pipeline.stages import download, filter, pack, recaption, score, select
from pipeline.stages.task import is_done, tables_of
from pipeline.storage import TEMPORARY_PREFIX, Directory

CONFIG = "config.yaml"
#: The name of a job that concerns the whole run.
ALL = "all"
# Settings that change how work is done and not what comes out: they are in no fingerprint.
_NO_EFFECT = {"resources", "threads"}


@dataclass(frozen=True)
class RunResult:
    """How a run ended: its manifest, and (stage, error) of every part that failed."""

    manifest: dict[str, Any]
    failures: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprint of every stage's output for each part, known before anything runs."""

    config: PipelineConfig

    def download(self, part: Part) -> str:
        """What the part's images and their fate depend on."""
        return self._of("download", download.VERSION, self.config.download, part.fingerprint)

    def filter(self, part: Part) -> str:
        """What the part's measures depend on."""
        measured = filter.measured_settings(self.config.filter)
        return self._of("filter", filter.VERSION, measured, self.download(part))

    def recaption(self, part: Part) -> str:
        """What the part's new captions depend on."""
        read = [self.config.recaption.model_dump(exclude=_NO_EFFECT), self.config.filter.image]
        return self._of("recaption", recaption.VERSION, read, self.filter(part))

    def select(self, parts: list[Part]) -> str:
        """What the verdicts of all parts depend on."""
        inputs = [self.filter(part) for part in parts]
        return self._of("select", select.VERSION, self.config.filter, *inputs)

    def features(self, part: Part, parts: list[Part]) -> str:
        """What the part's alignment features depend on."""
        read = score.features_settings(self.config.score)
        inputs = [self.select(parts), self.recaption(part)]
        return self._of("features", score.VERSION, read, *inputs)

    def fit(self, parts: list[Part]) -> str:
        """What the alignment model depends on."""
        inputs = [self.features(part, parts) for part in parts]
        return self._of("fit", score.VERSION, self.config.score, *inputs)

    def score(self, part: Part, parts: list[Part]) -> str:
        """What the part's scores depend on."""
        read = [self.config.score, self.config.pack.min_captions]
        inputs = [self.fit(parts), self.features(part, parts)]
        return self._of("score", score.VERSION, read, *inputs)

    def shard(self, shard: pack.Shard, parts: list[Part]) -> str:
        """What a shard's bytes depend on."""
        content = [shard.name, [sample.uid for sample in shard.samples]]
        inputs = [self.score(part, parts) for part in parts]
        return self._of("pack", pack.VERSION, content, *inputs)

    def _of(self, stage: str, version: int, read: Any, *inputs: str) -> str:
        return fingerprint(stage, version, _plain(read), inputs)


def build_shards(config: PipelineConfig) -> RunResult:
    """Run the pipeline, resuming what an earlier run left; returns how it ended.

    Raises `ConfigError` before any work for a source that can't be read, or if another process
    is working in the same run directory. Parts that fail are left out and listed.
    """
    run = Directory(config.run)
    source = build_source(config.source)
    source.check()
    recaption.check(config.recaption)
    with _locked(run):
        _sweep(run)
        run.write_text(CONFIG, to_yaml(config))
        try:
            parts = cut(run, source, config.part_rows)
        except (OSError, EOFError) as error:
            raise ConfigError(f"source: it could not be read to its end: {error}") from error
        if not parts:
            raise ConfigError("source: it has no rows")
        with Engine(run, config.cluster) as engine:
            return _run_stages(config, run, source, parts, engine)


def _run_stages(
    config: PipelineConfig, run: Directory, source: Source, parts: list[Part], engine: Engine
) -> RunResult:
    marks = Fingerprints(config)
    to_fetch = [p for p in parts if not is_done(run, "download", p.name, marks.download(p))]
    with source.serve() if to_fetch else nullcontext():
        engine.execute("images", _part_jobs(config, source, parts, marks))
    sound = _sound(parts, engine)
    engine.execute("select", [_select_job(config, sound, marks)])
    _stop_if_failed(engine, ALL)
    engine.execute("captions", _score_jobs(config, sound, marks))
    _stop_if_failed(engine, ALL)
    scored = _sound(sound, engine)
    kept = select.kept_samples(run, [part.name for part in scored])
    shards = pack.plan_shards(kept, config.pack)
    _forget_missing(run, shards)
    jobs = [
        Job("pack", shard.name, marks.shard(shard, sound), pack.pack, (shard,)) for shard in shards
    ]
    engine.execute("shards", jobs)
    lost = [shard.name for shard in shards if shard.name in engine.failures]
    if lost:
        raise RuntimeError(f"shard {lost[0]} could not be written: {engine.failures[lost[0]][1]}")
    manifest = build_manifest(config, run, parts, scored, shards)
    write_results(run, scored, shards, manifest)
    return RunResult(manifest, engine.failures)


def _part_jobs(
    config: PipelineConfig, source: Source, parts: list[Part], marks: Fingerprints
) -> Iterator[Job]:
    for part in parts:
        yield Job(
            "download", part.name, marks.download(part), download.download,
            (part, source, config.download), resources=config.download.resources,
        )  # fmt: skip
        yield Job(
            "filter", part.name, marks.filter(part), filter.measure,
            (part.name, config.filter), after=(f"download-{part.name}",),
        )  # fmt: skip
        yield Job(
            "recaption", part.name, marks.recaption(part), recaption.recaption,
            (part.name, config.recaption, config.filter),
            after=(f"filter-{part.name}",), resources=config.recaption.resources,
        )  # fmt: skip


def _select_job(config: PipelineConfig, parts: list[Part], marks: Fingerprints) -> Job:
    names = [part.name for part in parts]
    return Job("select", ALL, marks.select(parts), select.select, (names, config.filter))


def _score_jobs(config: PipelineConfig, parts: list[Part], marks: Fingerprints) -> Iterator[Job]:
    names = [part.name for part in parts]
    for part in parts:
        mark = marks.features(part, parts)
        yield Job("features", part.name, mark, score.features, (part.name, config.score))
    yield Job(
        "fit", ALL, marks.fit(parts), score.fit, (names, config.score),
        after=tuple(f"features-{name}" for name in names),
    )  # fmt: skip
    for part in parts:
        yield Job(
            "score", part.name, marks.score(part, parts), score.score,
            (part.name, config.score, config.pack.min_captions), after=(f"fit-{ALL}",),
        )  # fmt: skip


def _sound(parts: list[Part], engine: Engine) -> list[Part]:
    sound = [part for part in parts if part.name not in engine.failures]
    if not sound:
        stage, error = next(iter(engine.failures.values()))
        raise RuntimeError(f"every part failed; the first error, in {stage}: {error}")
    return sound


def _stop_if_failed(engine: Engine, name: str) -> None:
    if name in engine.failures:
        stage, error = engine.failures[name]
        raise RuntimeError(f"{stage} failed: {error}")


def _forget_missing(run: Directory, shards: list[pack.Shard]) -> None:
    """Have shards that somebody deleted packed again: their tables alone don't make them done."""
    present = set((run / pack.SHARDS).names("*.tar"))
    for shard in shards:
        if f"{shard.name}.tar" not in present:
            tables_of(run, "pack").remove(f"{shard.name}.parquet")


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.model_dump(mode="json", exclude=_NO_EFFECT)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _sweep(run: Directory) -> None:
    """Remove what a killed run left half-written; the lock says that nobody is writing it now."""
    if run.is_local and Path(run.path()).is_dir():
        import shutil

        for path in Path(run.path()).rglob(f"{TEMPORARY_PREFIX}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def _locked(run: Directory) -> Iterator[None]:
    """Hold the run directory's lock, which the kernel drops even when the process is killed."""
    if not run.is_local:
        yield
        return
    import fcntl

    folder = Path(run.path())
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"run: another process is working in {run.url}") from None
        yield
