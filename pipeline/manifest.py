"""The manifest: the last file of a run, which says what the shards are and how they came about."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.schema import MANIFEST_FILE, SCHEMA_VERSION
from pipeline.settings import effective
from pipeline.stages.finish import pack_marks, read_funnel
from pipeline.stages.shuffle import planned
from pipeline.stages.task import SHARDS
from pipeline.storage import Directory

_TOOLS = ("tcjepa", "img2dataset", "webdataset", "pyarrow", "opencv-python-headless", "spacy")
_READERS = 16


def write_manifest(config: PipelineConfig, run: Directory) -> dict[str, Any]:
    """Write and return the manifest of a finished run; remove shards that an earlier run left."""
    shards = planned(run)
    with ThreadPoolExecutor(_READERS) as pool:
        marks = list(pool.map(lambda shard: pack_marks(run, shard.name), shards))
    entries = [
        {"name": f"{shard.name}.tar", "samples": shard.samples, **mark}
        for shard, mark in zip(shards, marks, strict=True)
    ]
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "config_sha256": config_digest(config),
        "tools": {name: _version(name) for name in _TOOLS} | {"python": platform.python_version()},
        "shards": entries,
        "samples": sum(shard.samples for shard in shards),
        "funnel": read_funnel(run),
    }
    target = run / SHARDS
    wanted = {entry["name"] for entry in entries}
    for stale in set(target.names("*.tar")) - wanted:
        target.remove(stale)
    target.write_json(MANIFEST_FILE, manifest)
    return manifest


def config_digest(config: PipelineConfig) -> str:
    """Return a digest of what of a config decides the shards.

    Where the run directory lies, on what machines it was made and how patiently change nothing.
    """
    made_of = config.model_copy(update={"run": "", "cluster": type(config.cluster)()})
    text = repr(sorted(effective(made_of).items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
