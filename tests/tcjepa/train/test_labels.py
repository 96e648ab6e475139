"""Classes of training images, from the columns of the index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.settings import ConfigError
from tcjepa.data.config import DataConfig
from tcjepa.data.index import ShardIndex
from tcjepa.train.labels import Labels
from tests.tcjepa.shards import write_shards


def index_of(folder: Path, meta: Any) -> tuple[ShardIndex, list[dict[str, Any]]]:
    samples = write_shards(folder / "shards", 20, meta=meta)
    index = ShardIndex.open(DataConfig(shards=str(folder / "shards")))
    return index, [sample["meta"] for sample in samples]


def test_a_class_is_the_place_of_a_value_among_the_sorted_ones(tmp_path: Path) -> None:
    index, metas = index_of(
        tmp_path, lambda i: {"colour": ["red", "blue", "green"][i % 3], "count": 7 - i % 4}
    )
    labels = Labels(index, ["colour", "meta.count"])
    assert labels.classes == {"colour": ["blue", "green", "red"], "count": ["4", "5", "6", "7"]}
    assert labels.counts == {"colour": 3, "count": 4}
    rows = torch.tensor([11, 3, 3, 0])
    uids = index.table.column("uid").to_pylist()
    by_uid = dict(zip(index_uids(index), metas, strict=True))
    for row, numbers in zip(rows.tolist(), labels.of(rows).tolist(), strict=True):
        own = by_uid[uids[row]]
        assert labels.classes["colour"][numbers[0]] == own["colour"]
        assert int(labels.classes["count"][numbers[1]]) == own["count"]


def index_uids(index: ShardIndex) -> list[str]:
    """Return the uids in the order that the shards were written in, which is the index's."""
    return index.table.column("uid").to_pylist()


@pytest.mark.parametrize(
    ("meta", "name", "message"),
    [
        (lambda i: {"colour": "red" if i else "blue"}, "color", "no column color.*meta.colour"),
        (lambda i: {"colour": "red"}, "colour", "all 20 images have the same meta.colour"),
        (lambda i: {"size": i / 3}, "size", "holds double; classes are text or whole numbers"),
        (lambda i: {"colour": "red"} if i % 2 else {"x": i}, "colour", "10 of 20 images have no"),
    ],
)
def test_labels_that_are_none_are_refused(
    tmp_path: Path, meta: Any, name: str, message: str
) -> None:
    index, _ = index_of(tmp_path, meta)
    with pytest.raises(ConfigError, match=f"train.labels: .*{message}"):
        Labels(index, [name])
