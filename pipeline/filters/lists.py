"""Lists that a config names by path, read once on the driver: workers may lie elsewhere."""

from __future__ import annotations

from pipeline.filters.balance import NOUNS, concept_list
from pipeline.filters.blocklist import block_words, check_uids
from pipeline.filters.config import FilterConfig
from pipeline.filters.phrases import read_lines


def with_lists(config: FilterConfig) -> FilterConfig:
    """Return the config with the entries in place of the paths of files.

    Raises `ConfigError` if a file can't be read, or a uid, word or concept could match nothing.
    """
    block = config.block
    entries = {name: block.entries(name) for name in type(block).model_fields}
    balance = config.balance
    if balance is not None and isinstance(balance.concepts, str) and balance.concepts != NOUNS:
        concepts = read_lines(balance.concepts, "filter.balance.concepts")
        balance = balance.model_copy(update={"concepts": concepts})
    if balance is not None:
        concept_list(balance)
    block = type(block)(**entries)
    check_uids(block)
    block_words(block)
    return config.model_copy(update={"block": block, "balance": balance})
