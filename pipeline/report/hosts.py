"""The hosts that fail most, counted in bounded memory however many hosts a list names."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

# User info is no part of the host, and may hold a password.
_HOST = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(?P<host>[^/?#]+)"
_CAPACITY = 20_000


@dataclass(frozen=True)
class Host:
    """What became of one host's rows."""

    name: str
    rows: int
    failed: int
    top_reason: str

    @property
    def failure_share(self) -> float:
        """Return the share of the host's rows that could not be fetched."""
        return self.failed / self.rows


@dataclass
class HostCounter:
    """Rows and failures by host; keeps the `capacity` hosts with most failures, then most rows.

    Counts are exact while there are no more hosts than that. Beyond, hosts with fewest failures are
    forgotten after each part (Misra & Gries 1982, with counts kept): `missed` bounds the failures
    that any host may have had before it was last forgotten.
    """

    capacity: int = _CAPACITY
    missed: int = 0
    _rows: Counter[str] = field(default_factory=Counter)
    _failed: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, urls: pa.ChunkedArray, reasons: pa.ChunkedArray) -> None:
        """Count rows by the host of their URL; `reasons` is null for fetched rows."""
        hosts = pc.utf8_lower(pc.struct_field(pc.extract_regex(urls, _HOST), "host"))
        table = pa.table({"host": hosts, "reason": reasons})
        table = table.filter(pc.is_valid(table["host"]))
        grouped = table.group_by(["host", "reason"]).aggregate([([], "count_all")])
        for host, reason, count in zip(
            grouped["host"].to_pylist(),
            grouped["reason"].to_pylist(),
            grouped["count_all"].to_pylist(),
            strict=True,
        ):
            self._rows[host] += count
            if reason is not None:
                self._failed.setdefault(host, Counter())[reason] += count
        if len(self._rows) > self.capacity:
            self._forget()

    def _forget(self) -> None:
        order = sorted(self._rows, key=lambda h: (self._failures(h), self._rows[h], h))
        gone = order[: len(order) - self.capacity]
        self.missed += max(self._failures(host) for host in gone)
        for host in gone:
            del self._rows[host]
            self._failed.pop(host, None)

    def _failures(self, host: str) -> int:
        return sum(self._failed.get(host, Counter()).values())

    def __len__(self) -> int:
        return len(self._rows)

    def worst(self, count: int) -> list[Host]:
        """Return the hosts with most failures, most first."""
        order = sorted(self._failed, key=lambda host: (-self._failures(host), host))
        return [
            Host(
                name,
                self._rows[name],
                self._failures(name),
                min(self._failed[name].items(), key=lambda item: (-item[1], item[0]))[0],
            )
            for name in order[:count]
        ]


__all__ = ["Host", "HostCounter"]
