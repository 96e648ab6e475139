"""What `inspect` says: of a shard directory as text, of runs as text and as one page."""

from __future__ import annotations

import tempfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from pipeline.schema import META_PREFIX, SCORES, score_column
from tcjepa.data.config import DataConfig
from tcjepa.data.decode import SampleError
from tcjepa.data.index import ShardIndex
from tcjepa.data.reader import ShardReader

_BINS = 10
_BLOCKS = " ▁▂▃▄▅▆▇█"


def describe_shards(config: DataConfig, samples: int) -> str:
    """Return counts, a histogram of each score and the first `samples` samples' captions.

    Nothing is kept: the index is mapped in a temporary folder, whatever `config.cache_dir` says.
    What would drive a terminal shows as U+FFFD, for captions come from anywhere. Raises
    `ConfigError` if the shards are missing or the filter leaves no row.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = ShardIndex.open(config.model_copy(update={"cache_dir": folder}))
        lines = _lines(index, config, samples)
    return "\n".join(map(_harmless, lines))


def _lines(index: ShardIndex, config: DataConfig, samples: int) -> list[str]:
    table = index.table
    counts = Counter(index.caption_counts().tolist())
    meta = [name for name in table.column_names if name.startswith(META_PREFIX)]
    lines = [
        f"{len(index)} images in {len(index.shards)} shards of {config.shards}, split "
        f"{config.split}" + (f", where {config.filter}" if config.filter else ""),
        f"{int(index.caption_counts().sum())} captions: "
        + ", ".join(f"{n} images with {k}" for k, n in sorted(counts.items())),
        "metadata: " + (", ".join(meta) or "none"),
        f"best score of an image's captions, 0 to 1 in {_BINS} bins:",
        *(f"  {score:<10} {_histogram(table, score)}" for score in SCORES),
    ]
    reader = ShardReader(index, config.cache_bytes)
    for row in range(min(samples, len(index))):
        lines += _sample(reader, row)
    return lines


def describe_runs(paths: Sequence[Path], out: Path | None) -> str:
    """Write the page about one or more runs and return what looks wrong with each.

    The page is `out`, or `inspect.html` in the directory of the only run; several runs without
    `out` share one in the directory of the first. Raises `ConfigError` if a path is no run.
    """
    # Imported here: shards are described without reading any of this.
    from tcjepa.watch.page import PAGE, write_page
    from tcjepa.watch.runfiles import names_of, read_run

    runs = [read_run(path, name) for path, name in zip(paths, names_of([*paths]), strict=True)]
    page = out or paths[0] / PAGE
    lines = []
    for name, findings in write_page(runs, page).items():
        warnings = sum(not finding.is_note for finding in findings)
        lines.append(f"{name}: {f'{warnings} warnings' if warnings else 'nothing looks wrong'}")
        lines += [f"  {finding.severity}: {finding}" for finding in findings]
    return "\n".join([*lines, f"curves: {page}"])


def _sample(reader: ShardReader, row: int) -> list[str]:
    try:
        sample = reader.sample(row)
    except SampleError as error:
        return [f"row {row} cannot be read: {error}"]
    lines = [f"{sample['uid']}  {sample['width']}x{sample['height']}  {sample['url']}"]
    for caption in sample["captions"]:
        quality = caption["scores"].get("quality")
        shown = "   - " if quality is None else f"{quality:.2f}"
        lines.append(f"  {shown}  {caption['source']:<18} {caption['text']}")
    return lines


def _harmless(line: str) -> str:
    """Return a line without control characters; spaces of any width are none."""
    return "".join(
        char
        if char.isprintable() or unicodedata.category(char) == "Zs"
        else "\N{REPLACEMENT CHARACTER}"
        for char in line
    )


def _histogram(table: object, score: str) -> str:
    column = table.column(score_column(score, "best"))  # type: ignore[attr-defined]
    values = pc.drop_null(column).to_numpy()
    if not len(values):
        return "not computed"
    counts, _ = np.histogram(values, bins=_BINS, range=(0.0, 1.0))
    top = max(int(counts.max()), 1)
    bars = "".join(_BLOCKS[-(-8 * int(count) // top)] for count in counts)
    return f"|{bars}| mean {float(values.mean()):.2f} of {len(values)}"
