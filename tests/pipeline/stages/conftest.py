"""A run of one part of given rows, fetched from the loopback server under the fetch policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.fetch.blocklist import Blocklist
from pipeline.part import Part, cut
from pipeline.settings import build
from pipeline.stages.download import DownloadConfig, download
from pipeline.stages.task import StageReport, Task, tables_of
from pipeline.storage import Directory


@dataclass
class Rows:
    """A source of rows given as they are."""

    given: Sequence[dict[str, Any]]
    local_root: str | None = None
    in_place: bool = False

    def check(self) -> None:
        pass

    def fingerprint(self) -> str:
        return repr(self.given)

    def rows(self) -> Iterator[dict[str, Any]]:
        for row in self.given:
            yield {"captions": [], "split": "train", "row_error": None, **row}

    def fetch_url(self, url: str) -> str:
        return url

    def serve(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass
class Fetching:
    """What `download` is given, and what it wrote."""

    run: Directory
    part: Part
    source: Rows

    def download(
        self,
        generation: int = 0,
        blocklist: Blocklist | None = None,
        mark: str = "mark",
        **options: Any,
    ) -> StageReport:
        """Fetch with quick settings; loopback is allowed unless the options say otherwise."""
        quick = {"timeout": 10, "retries": 0, "threads": 8, "allow_private_hosts": ["127.0.0.1:*"]}
        config = build(DownloadConfig, {**quick, **options})
        task = Task(self.run, "download", mark)
        part = replace(self.part, generation=generation)
        return download(task, part, self.source, config, blocklist)

    @property
    def table(self) -> pa.Table:
        return tables_of(self.run, "download").read_table("00000.parquet")

    @property
    def reasons(self) -> list[str | None]:
        reasons: list[str | None] = self.table["reason"].to_pylist()
        return reasons

    @property
    def raw(self) -> Directory:
        return self.run / "raw"


@pytest.fixture
def fetching(tmp_path: Path) -> Callable[..., Fetching]:
    """Return a function that makes a run of one part of given rows."""

    def make(rows: Sequence[dict[str, Any]], local_root: str | None = None) -> Fetching:
        run = Directory(tmp_path / "run")
        source = Rows(rows, local_root)
        (part,) = cut(run, source, 10_000)
        return Fetching(run, part, source)

    return make


@pytest.fixture
def six(web: Any, fetching: Callable[..., Any], image: Callable[..., bytes]) -> Any:
    """A part of six rows: three images (two of them the same bytes), three failures."""
    web.add("/big.jpg", image(".jpg", 1, 90, 60))
    web.add("/small.png", image(".png", 2, 20, 20))
    web.add("/copy.png", image(".png", 2, 20, 20))
    return fetching(
        [
            {"url": web.base + "/big.jpg", "captions": ["a", "b"], "colour": "red"},
            {"url": "ftp://no", "row_error": "bad_url"},
            {"url": web.base + "/small.png", "split": "test"},
            {"url": web.base + "/none.jpg", "captions": ["lost"]},
            {"url": None, "row_error": "missing_url"},
            {"url": web.base + "/copy.png"},
        ]
    )
