"""Hosts, URLs and uids of the blocklists, where tasks find them: in the run directory, by digest.

The lists may be long and tasks are many, so a task carries the digest and a process reads the lists
once. Hosts and URLs are in no fingerprint of `download`: adding a host does not fetch everything
anew; images that were fetched before are dropped by `select`.
"""

from __future__ import annotations

import functools
import hashlib
import json

import pyarrow as pa

from pipeline.fetch.blocklist import Blocklist
from pipeline.fetch.errors import FetchError
from pipeline.fetch.targets import parse
from pipeline.filters.blocklist import BlockConfig
from pipeline.filters.config import FilterConfig
from pipeline.part import Part
from pipeline.sources.row import Source
from pipeline.stages.download import DownloadConfig, download
from pipeline.stages.recaption import RecaptionConfig, recaption
from pipeline.stages.task import StageReport, Task
from pipeline.storage import Directory

FOLDER = "blocklists"


def publish(run: Directory, config: BlockConfig) -> str | None:
    """Write the lists into the run directory; return their digest, None if they are empty.

    Raises `ConfigError` if a list's file can't be read, or an entry is no host or no URL.
    """
    check(config)
    lists = {name: config.entries(name) for name in ("hosts", "urls", "uids")}
    if not any(lists.values()):
        return None
    digest = hashlib.sha256(json.dumps(lists).encode()).hexdigest()[:16]
    directory = run / FOLDER
    if not directory.exists(f"{digest}.json"):
        directory.write_json(f"{digest}.json", lists)
    return digest


def check(config: BlockConfig) -> None:
    """Raise `ConfigError` for an entry that could match nothing: no host, no URL."""
    _blocklist({name: config.entries(name) for name in ("hosts", "urls")})


def fetch(
    task: Task, part: Part, source: Source, config: DownloadConfig, lists: str | None
) -> StageReport:
    """Run `download` under the lists of a digest."""
    blocklist = None if lists is None else _read(task.run.url, lists)
    return download(task, part, source, config, blocklist)


def caption(
    task: Task, part: str, config: RecaptionConfig, filters: FilterConfig, lists: str | None
) -> StageReport:
    """Run `recaption` without the images whose uids are in the lists of a digest.

    `filters` has no blocklist of its own.
    """
    if lists is not None:
        filters = filters.model_copy(update={"block": _uids(task.run.url, lists)})
    return recaption(task, part, config, filters)


def url_reasons(urls: pa.ChunkedArray, config: BlockConfig) -> list[str | None]:
    """Return `blocked_host`, `blocked_url` or null for each URL (n,) of string."""
    blocklist = _blocklist({name: config.entries(name) for name in ("hosts", "urls")})
    return [_reason(url, blocklist) for url in urls.to_pylist()]


def _reason(url: str | None, blocklist: Blocklist) -> str | None:
    try:
        if url is not None:
            blocklist.check(parse(url))
    except FetchError as error:
        # What is no web address, such as a path in a folder, is on no list.
        return error.reason if error.reason.startswith("blocked_") else None
    return None


@functools.lru_cache(maxsize=2)
def _read(url: str, digest: str) -> Blocklist:
    return _blocklist((Directory(url) / FOLDER).read_json(f"{digest}.json"))


@functools.lru_cache(maxsize=2)
def _uids(url: str, digest: str) -> BlockConfig:
    return BlockConfig(uids=(Directory(url) / FOLDER).read_json(f"{digest}.json")["uids"])


def _blocklist(lists: dict[str, list[str]]) -> Blocklist:
    return Blocklist(frozenset(lists["hosts"]), frozenset(lists["urls"]))
