"""The answers of captioning models, kept per part so that none is paid for twice.

`tables/answers/` holds a Parquet file for each part, and while the part is captioned a new small
one beside it every few seconds, which join the first when the task ends. Files only ever come and
go whole, so it works on object stores, which cannot append; a killed task loses a few seconds of
answers at most, and two workers that were given the same part cannot damage each other's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import pyarrow as pa

from pipeline.storage import Directory

log = logging.getLogger(__name__)

#: Folder of `tables/` that holds the answers; it has a `uid` column, so takedowns reach it.
ANSWERS: Final = "answers"
#: Longest time that an answer is held in memory alone [s].
FLUSH_S = 3.0
_MOST_FILES: Final = 64

_SCHEMA: Final = pa.schema(
    [
        ("uid", pa.string()),
        ("question", pa.string()),
        ("text", pa.string()),
        ("finished", pa.bool_()),
        ("fault", pa.string()),
        ("tokens", pa.int32()),
        ("prompt_tokens", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Answer:
    """What a model wrote, and whether it ended by itself rather than at the token limit.

    `fault` is what the server said is wrong with it (`refused`, `content_filter`), if anything.
    `tokens` were written, `prompt_tokens` were read; 0 where nobody counted them.
    """

    text: str
    finished: bool
    fault: str | None = None
    tokens: int = 0
    prompt_tokens: int = 0


@dataclass
class Costs:
    """What answers cost: how many were new or known, tokens, further tries, and time.

    `busy_s` is the time in which a model on this machine generated, `gpu_s` on its GPU [s].
    """

    asked: int = 0
    reused: int = 0
    retries: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    busy_s: float = 0.0
    gpu_s: float = 0.0


def question(settings: dict[str, Any]) -> str:
    """Return the name of a question: hash(all settings that shape the answer, 128 bits, hex)."""
    content = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


class Answers:
    """Answers by (uid, question); with a directory, those of a part, kept across runs.

    Used as a context manager, which writes what is new every `every_s` seconds and at the end,
    also when the block raises. Without a directory it only remembers.
    """

    def __init__(
        self, directory: Directory | None = None, part: str = "", every_s: float | None = None
    ) -> None:
        self.costs = Costs()
        self._directory, self._part = directory, part
        self._every_s = FLUSH_S if every_s is None else every_s
        self._known: dict[tuple[str, str], Answer] = {}
        self._asked: set[str] = set()
        self._pending: list[tuple[str, str]] = []
        self._files = 0
        self._changing, self._writing = threading.Lock(), threading.Lock()
        self._ended = threading.Event()
        self._late = False
        self._flusher: threading.Thread | None = None

    def get(self, uid: str, question: str) -> Answer | None:
        """Return what is known, or None."""
        return self._known.get((uid, question))

    def knows(self, question: str) -> bool:
        """Return whether the question was ever answered for any image of the part."""
        return question in self._asked

    def put(self, uid: str, question: str, answer: Answer) -> None:
        """Remember an answer and count it; raises if answers cannot be written."""
        with self._changing:
            self._add(uid, question, answer)
            self._pending.append((uid, question))
            self.costs.asked += 1
            self.costs.tokens += answer.tokens
            self.costs.prompt_tokens += answer.prompt_tokens
        if self._late:
            self._flush()

    def bill(self) -> Costs:
        """Return the costs since the last bill."""
        with self._changing:
            costs, self.costs = self.costs, Costs()
        return costs

    def __enter__(self) -> Answers:
        if self._directory is not None:
            self._read(self._directory)
            self._flusher = threading.Thread(target=self._flush_often, daemon=True)
            self._flusher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._flusher is None:
            return
        self._ended.set()
        self._flusher.join()
        self._flush()
        self._join_files()

    def _add(self, uid: str, question: str, answer: Answer) -> None:
        self._known.setdefault((uid, question), answer)
        self._asked.add(question)

    def _read(self, directory: Directory) -> list[str]:
        """Add the part's answers; return the names of the files beside the joined one."""
        # By time, so that of two answers the one given first is taken.
        added = directory.names(f"{self._part}-*.parquet")
        read = []
        for name in [*directory.names(f"{self._part}.parquet"), *added]:
            try:
                rows = directory.read_table(name).to_pylist()
                found = [(row.pop("uid"), row.pop("question"), Answer(**row)) for row in rows]
            except (pa.ArrowException, OSError, TypeError, KeyError) as fault:
                log.warning("answers %s are unreadable and are asked for again: %s", name, fault)
                continue
            with self._changing:
                for uid, question, answer in found:
                    self._add(uid, question, answer)
            read.append(name)
        self._files = len(added)
        return [name for name in added if name in read]

    def _flush_often(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                self._flush()
                if self._files > _MOST_FILES:
                    self._join_files()
                self._late = False
            except Exception as error:  # raised by the next `put`, where somebody sees it
                log.warning("answers of part %s not written: %s", self._part, error)
                self._late = True

    def _flush(self) -> None:
        with self._writing:
            with self._changing:
                keys, self._pending = self._pending, []
            try:
                if keys:
                    self._write(keys)
            except BaseException:
                with self._changing:
                    self._pending = keys + self._pending
                raise

    def _join_files(self) -> None:
        assert self._directory is not None
        with self._writing:
            # Read again, for what another worker added.
            joined = self._read(self._directory)
            if not joined:
                return
            with self._changing:
                keys = sorted(self._known)
            self._directory.write_table(f"{self._part}.parquet", self._table(keys))
            # A crash here leaves answers twice, which reading puts right.
            for name in joined:
                self._directory.remove(name)
            self._files = 0

    def _write(self, keys: list[tuple[str, str]]) -> None:
        if self._directory is None:
            return
        name = f"{self._part}-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
        self._directory.write_table(name, self._table(keys))
        self._files += 1

    def _table(self, keys: list[tuple[str, str]]) -> pa.Table:
        rows = [
            {"uid": uid, "question": question, **vars(self._known[uid, question])}
            for uid, question in keys
        ]
        return pa.Table.from_pylist(rows, schema=_SCHEMA)
