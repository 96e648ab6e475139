"""`python -m tcjepa.ablate.noise_reach SHARDS`: what each kind of caption noise does to words.

A kind's rate says which captions it is let loose on. An edit may still leave one as it was, or
bring in nothing that the image's own captions do not say, so equal rates are no equal harm. Counted
at rate 1 on the first captions of the training split's first images.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, get_args

from pipeline.progress import Progress
from pipeline.settings import ConfigError
from tcjepa.data.config import DataConfig
from tcjepa.data.index import ShardIndex
from tcjepa.data.reader import ShardReader
from tcjepa.noise import CaptionNoise, NoiseConfig

_WORD: Final = re.compile(r"\w+")
#: Kinds that corrupt captions without needing captions of another source.
KINDS: Final = tuple(
    kind
    for kind in get_args(NoiseConfig.model_fields["kind"].annotation)
    if kind not in ("none", "weaker")
)


def reach(shards: str, kind: str, images: int, captions: int, strength: float) -> dict[str, float]:
    """Return what a kind of noise does to captions at rate 1, in percent.

    `changed`: captions whose text differs. `words kept`: words of the caption that are still in it,
    whatever their order. `foreign`: captions with a word that none of the image's captions has.
    """
    index = ShardIndex.open(DataConfig(shards=shards))
    reader = ShardReader(index, cache_bytes=2**36)
    noise = CaptionNoise(NoiseConfig(kind=kind, rate=1.0, strength=strength), index)
    changed = foreign = count = 0
    kept = 0.0
    for row in range(min(images, len(index))):
        sample = reader.sample(row)
        own = sample["captions"]
        known = {word for caption in own for word in _words(caption["text"])}
        for number in range(min(captions, len(own))):
            text = noise.text(
                row, sample["uid"], number, own, lambda donor: reader.sample(donor)["captions"]
            )
            before, after = _words(own[number]["text"]), _words(text)
            count += 1
            changed += text != own[number]["text"]
            foreign += not known.issuperset(after)
            kept += (before & after).total() / max(before.total(), 1)
    reader.close()
    if not count:
        raise ConfigError(f"{shards}: none of its first {images} images has a caption")
    return {
        "changed": 100 * changed / count,
        "words kept": 100 * kept / count,
        "foreign": 100 * foreign / count,
    }


def _words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.casefold()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every kind, print it, and write `--json` if it is named."""
    program = "python -m tcjepa.ablate.noise_reach"
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("shards", help="directory or URL of shards")
    parser.add_argument("--images", type=int, default=1000, help="images to count on")
    parser.add_argument("--captions", type=int, default=4, help="first captions of each")
    parser.add_argument("--strength", type=float, default=0.5, help="data.noise.strength")
    parser.add_argument("--json", type=Path, help="file for the result")
    given = parser.parse_args(arguments)
    cells: dict[str, dict[str, Any]] = {}
    try:
        with Progress("kinds", len(KINDS), "kinds") as progress:
            for kind in KINDS:
                found = reach(given.shards, kind, given.images, given.captions, given.strength)
                cells[kind] = {
                    "text changed, %": {"value": found["changed"], "form": ".0f"},
                    "own words kept, %": {"value": found["words kept"], "form": ".0f"},
                    "a word that no caption of the image has, %": {
                        "value": found["foreign"],
                        "form": ".0f",
                    },
                }
                progress.advance(1, note=kind)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for kind, row in cells.items():
        print(kind, *(f"{name}: {cell['value']:.0f}" for name, cell in row.items()), sep="  ")
    if given.json is not None:
        words = [program, *(arguments or sys.argv[1:])]
        content = {
            "about": "What each kind of caption noise does to the captions that it is let loose on",
            "command": " ".join(words),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "hardware": "any: it only counts",
            "kinds": cells,
        }
        given.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
