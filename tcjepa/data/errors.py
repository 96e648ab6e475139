"""What can go wrong with data so badly that a run stops; each message says what to do.

A sample that cannot be read is none of these: it is a `SampleError`, replaced and written down.
"""

from __future__ import annotations


class DataError(RuntimeError):
    """Base of the errors below: they cross from loader processes to the trainer as they are."""


class ShardUnavailableError(DataError):
    """A shard that cannot be had: the run stops rather than train on substitutes for all of it."""


class DamagedShardError(ShardUnavailableError):
    """A shard that is not the one the index was made for."""


class CacheFullError(DataError):
    """No room on the disk of `data.cache_dir`."""


class TooManyUnreadableError(DataError):
    """More samples had to be replaced than the config allows."""


class WorkerDiedError(DataError):
    """A loader process ended without being asked to."""


__all__ = [
    "CacheFullError",
    "DamagedShardError",
    "DataError",
    "ShardUnavailableError",
    "TooManyUnreadableError",
    "WorkerDiedError",
]
