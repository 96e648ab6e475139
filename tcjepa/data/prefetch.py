"""Fetches the remote shards of the window in use and the next one, ahead of the workers."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from pipeline.settings import ConfigError
from tcjepa.data.config import DataConfig
from tcjepa.data.index import ShardIndex
from tcjepa.data.plan import Plan
from tcjepa.data.reader import ShardReader
from tcjepa.data.remote import BrokenOffError

_FETCHERS: Final = 4


class ShardPrefetcher:
    """Keeps the cache one window ahead; does nothing where shards are local.

    A window shuffles all its shards together, so its first batch needs nearly every one of them:
    without fetching ahead, training would stop at each window for the time of a full fetch. Ranks
    of a node may all prefetch; the cache's locks make one of them fetch each shard. Raises
    `ConfigError` if the cache is too small for two windows.
    """

    def __init__(self, index: ShardIndex, config: DataConfig, plan: Plan) -> None:
        self._index, self._plan = index, plan
        self._cache = ShardReader(index, config.cache_bytes).cache
        self._asked: set[tuple[int, int]] = set()
        if self._cache is not None:
            _check_room(index, config)
        self._pool = ThreadPoolExecutor(_FETCHERS, "shards") if self._cache else None

    def at(self, start: int, stop: int) -> None:
        """Note that the global batch at positions `[start, stop)` is about to be built."""
        if self._pool is None:
            return
        ahead = self._plan.shards_ahead(start, stop)
        for epoch, window, shards in ahead:
            if (epoch, window) not in self._asked:
                for number in shards:
                    self._pool.submit(self._fetch, self._index.shards[number])
        self._asked = {(epoch, window) for epoch, window, _ in ahead}

    def close(self) -> None:
        """Drop what was not begun and break off what was."""
        if self._pool is not None and self._cache is not None:
            self._cache.close()
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, shard: str) -> None:
        assert self._cache is not None
        try:
            self._cache.fetch(shard)
        except BrokenOffError:
            pass
        except Exception as error:  # the worker that needs the shard meets and raises it
            warnings.warn(f"prefetch of {shard}: {error}", stacklevel=1)


def _check_room(index: ShardIndex, config: DataConfig) -> None:
    """Refuse a cache that cannot hold the window in use and the next one.

    It would evict shards that are about to be read again, and fetch each of them many times.
    """
    known = index.expected()
    # Whole files are fetched, of which the selected rows may be the first few.
    sizes = [
        max(end, (known[name].size or 0) if name in known else 0)
        for name, end in zip(index.shards, index.shard_ends.tolist(), strict=True)
    ]
    needed = sum(sorted(sizes)[-2 * config.window :])
    if needed > config.cache_bytes:
        raise ConfigError(
            f"data.cache_bytes = {config.cache_bytes:,} cannot hold two windows of {config.window} "
            f"shards, up to {needed:,} bytes; raise it or lower data.window"
        )
