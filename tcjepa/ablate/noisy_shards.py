"""`python -m tcjepa.ablate.noisy_shards SHARDS OUT kind=derangement rate=0.4`.

Noise of `data.noise` is added while training, after the captions were scored, so no quality score
can see it. This writes finished shards again as plain WebDataset tars whose training captions are
corrupted by the same code, without their scores, and a config with which the pipeline scores and
packs them:

    python -m pipeline shards OUT/noisy.yaml

Its shards then lie in OUT/shards. Which captions were corrupted is in OUT/truth.parquet; nothing
that scores or trains reads it. Captions of the test split stay as they are.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import Field

from pipeline.progress import Progress
from pipeline.schema import Caption, SchemaError
from pipeline.settings import ConfigError, load
from pipeline.storage import Directory
from tcjepa.data.config import DataConfig
from tcjepa.data.index import ShardIndex
from tcjepa.data.reader import ShardReader
from tcjepa.noise import CaptionNoise, NoiseConfig

CONFIG, TRUTH, TARS = "noisy.yaml", "truth.parquet", "tars"
#: Meta keys that are added: the uid in the shards that were read, the corrupted captions' number.
ORIGINAL, COUNT = "original_uid", "corrupted_captions"
_PER_TAR: Final = 1000
_SPLIT, _URL, _CAPTIONS = "split", "url", "captions"
TRUTH_SCHEMA: Final = pa.schema(
    [
        pa.field(ORIGINAL, pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("corrupted", pa.bool_(), nullable=False),
        pa.field("clean_text", pa.string(), nullable=False),
    ]
)


class NoisyConfig(NoiseConfig):
    """What is done to the captions, and to which of them."""

    train_split: str = Field("train", description="split whose captions are corrupted")
    sources: list[str] | None = Field(
        None, description='only captions from these sources are written, e.g. [alt, "blip:*"]'
    )
    text_width: int = Field(
        512, ge=64, le=4096, description="score.alignment.text_width of the written config"
    )


def write_noisy(shards: str, out: Path, config: NoisyConfig) -> Path:
    """Write tars, truth and config into a new folder; return the config's path.

    The same shards and config give the same bytes. An image's captions are those of the shards in
    their order, a text that noise made twice once. Raises `ConfigError` if the folder has content,
    the shards have no such split, or a metadata key has a name that the tars need.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; name a new folder, or remove it to write it anew")
    splits = _splits(shards)
    if config.train_split not in splits:
        raise ConfigError(f"train_split={config.train_split}: {shards} has {', '.join(splits)}")
    (out / TARS).mkdir(parents=True)
    truth: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    for split in splits:
        found = _samples(shards, split, out, config, truth)
        for number, batch in enumerate(_batched(found, _PER_TAR)):
            names |= dict.fromkeys(key for entry, _ in batch for key in entry["meta"])
            _write_tar(out / TARS / f"{split}-{number:05d}.tar", batch)
    pq.write_table(pa.Table.from_pylist(truth, schema=TRUTH_SCHEMA), out / TRUTH)
    path = out / CONFIG
    path.write_text(_pipeline_config(out, list(names), config))
    return path


def _splits(shards: str) -> list[str]:
    index = Directory(shards).read_table("index.parquet", ["split"])
    return sorted(index["split"].unique().to_pylist())


def _samples(
    shards: str, split: str, out: Path, config: NoisyConfig, truth: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], tuple[str, bytes]]]:
    """Yield (entry of the JSON member, (image format, image)) of each sample of a split."""
    data = DataConfig(shards=shards, split=split, cache_dir=str(out / "cache"))
    index = ShardIndex.open(data)
    reader = ShardReader(index, data.cache_bytes)
    kind = NoiseConfig(**config.model_dump(include=set(NoiseConfig.model_fields)))
    kind = kind if split == config.train_split else NoiseConfig()
    noise = CaptionNoise(kind, index, config.sources)
    with Progress(split, len(index), "images") as progress:
        for row in range(len(index)):
            image, image_format, sample = reader.image_and_sample(row)
            taken = {ORIGINAL, COUNT, _SPLIT, _URL, _CAPTIONS} & sample["meta"].keys()
            if taken:
                raise ConfigError(f"{shards}: meta.{sorted(taken)[0]} has a name of the tars' own")
            written = _corrupted(noise, row, sample, reader, config)
            truth.extend({ORIGINAL: sample["uid"], **caption} for caption in written)
            count = sum(caption["corrupted"] for caption in written)
            entry = {
                "uid": sample["uid"],
                _URL: sample["url"],
                _SPLIT: split,
                _CAPTIONS: [caption["text"] for caption in written],
                "meta": {**sample["meta"], ORIGINAL: sample["uid"], COUNT: count},
            }
            yield entry, (image_format, bytes(image))
            progress.advance(1)


def _corrupted(
    noise: CaptionNoise, row: int, sample: Any, reader: ShardReader, config: NoisyConfig
) -> list[dict[str, Any]]:
    """Return the captions of an image as they are written, each text once, with the truth.

    A caption counts as corrupted if its text is none of the image's own: noise may find nothing to
    change, and a swapped caption may say what another one of the image says as well.
    """
    captions: Sequence[Caption] = sample["captions"]
    own = {caption["text"] for caption in captions}
    found: dict[str, dict[str, Any]] = {}
    for number, caption in enumerate(captions):
        if config.sources is not None and not any(
            fnmatchcase(caption["source"], pattern) for pattern in config.sources
        ):
            continue
        text = noise.text(
            row, sample["uid"], number, captions, lambda other: reader.sample(other)["captions"]
        )
        said = {"source": caption["source"], "clean_text": caption["text"]}
        found.setdefault(text, {"text": text, "corrupted": text not in own, **said})
    return list(found.values())


def _batched(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _write_tar(path: Path, batch: list[tuple[dict[str, Any], tuple[str, bytes]]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for entry, (image_format, image) in batch:
            flat = {**entry["meta"], **{key: entry[key] for key in (_URL, _SPLIT, _CAPTIONS)}}
            text = json.dumps(flat, sort_keys=True, ensure_ascii=False).encode()
            for kind, data in ((image_format, image), ("json", text)):
                member = tarfile.TarInfo(f"{entry['uid']}.{kind}")
                member.size, member.mode = len(data), 0o444
                tar.addfile(member, io.BytesIO(data))


def _pipeline_config(out: Path, names: list[str], config: NoisyConfig) -> str:
    """Return the config that scores and packs the tars: nothing is dropped, all is scored."""
    data = {
        "run": str(out),
        "part_rows": _PER_TAR,
        "source": {
            "kind": "webdataset",
            "paths": str(out / TARS / "*.tar"),
            "caption_columns": [_CAPTIONS],
            "split_column": _SPLIT,
            "keep_columns": names,
        },
        "filter": {"preset": "none"},
        "score": {
            "alignment": {"kind": "linear", "text_width": config.text_width},
            "agreement": {"kind": "words"},
        },
        "pack": {"shard_mb": 8},
    }
    head = f"# {config.kind} at rate {config.rate} before scoring, by tcjepa.ablate.noisy_shards.\n"
    return head + yaml.safe_dump(data, sort_keys=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 done, 2 bad usage or config."""
    parser = argparse.ArgumentParser(
        prog="python -m tcjepa.ablate.noisy_shards",
        description="Write shards again with corrupted training captions and without scores.",
    )
    parser.add_argument("shards", help="directory or URL of finished shards")
    parser.add_argument("out", type=Path, help="new folder for tars, truth and config")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="kind, rate, seed, …")
    parsed = parser.parse_args(arguments)
    try:
        path = write_noisy(parsed.shards, parsed.out, load(NoisyConfig, None, parsed.overrides))
    except (ConfigError, SchemaError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"now score and pack them: python -m pipeline shards {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
