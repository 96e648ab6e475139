"""What must not be in a data set: hosts, URLs, images by uid, captions by word."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.filters.phrases import find_phrases, phrase_table, read_lines
from pipeline.schema import UID_LENGTH, is_uid
from pipeline.settings import ConfigError, Settings

_FILE = "; a list, or the path of a text file with one a line and # before comments"


class BlockConfig(Settings):
    """Blocklists. Each is a list or the path of a text file."""

    hosts: list[str] | str = Field(
        default=[], description=f"hosts, with all their subdomains, never fetched{_FILE}"
    )
    urls: list[str] | str = Field(default=[], description=f"URLs that are never fetched{_FILE}")
    uids: list[str] | str = Field(
        default=[], description=f"uids of images that are dropped: takedowns{_FILE}"
    )
    words: list[str] | str = Field(
        default=[],
        description=f"words or phrases that drop a caption, matched as whole words whatever their "
        f"case{_FILE}",
    )

    def entries(self, name: str) -> list[str]:
        """Return the sorted distinct entries of a list by its field name, its file read.

        Raises `ConfigError` if the file can't be read. What a stage does depends on the entries
        and not on the path, so they are what its fingerprint must hold.
        """
        given = getattr(self, name)
        lines = read_lines(given, f"filter.block.{name}") if isinstance(given, str) else given
        return sorted(set(lines))


def check_uids(config: BlockConfig) -> None:
    """Raise `ConfigError` for an entry that is no uid and so would block nothing."""
    for uid in config.entries("uids"):
        if not is_uid(uid):
            raise ConfigError(
                f"filter.block.uids: {uid!r} is no uid: {UID_LENGTH} lower-case hex digits, as in "
                "the index"
            )


def block_words(config: BlockConfig) -> pa.Array:
    """Return the blocked words and phrases for `has_blocked_word`; raises `ConfigError`."""
    return phrase_table(config.entries("words"), "filter.block.words")


def has_blocked_word(texts: pa.Array, words: pa.Array) -> npt.NDArray[np.bool_]:
    """Return which texts (n,) of string hold a blocked word or phrase."""
    found = np.zeros(len(texts), dtype=bool)
    found[find_phrases(texts, words)[0]] = True
    return found
