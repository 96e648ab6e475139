"""Probe and attention images of a real run: what they write, and that they change nothing."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.settings import ConfigError
from tcjepa.train.log import read
from tcjepa.train.loop import train
from tcjepa.train.pretrain import pretrain
from tcjepa.train.run import Run
from tcjepa.watch.page import COLOURS, config_table
from tcjepa.watch.pictures import draw, pixels
from tcjepa.watch.runfiles import read_run
from tests.tcjepa.shards import write_shards
from tests.tcjepa.train.runs import finish, start, tiny_config
from tests.tcjepa.watch.test_monitors import CPU

WATCHED = (
    "train.probe_every=4", "train.probe_images=16", "train.probe_tasks=[knn, linear]",
    "train.attention_every=6", "train.attention_images=2", "evaluate.labels=[label]",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("watched")
    tiny_config(root)
    shutil.rmtree(root / "shards")
    write_shards(
        root / "shards", 60, size=(40, 40), shard_size=16,
        split=lambda number: "test" if number % 3 == 2 else "train",
        meta=lambda number: {"label": f"class {number % 2}"},
    )  # fmt: skip
    for name, overrides in (("plain", ()), ("watched", WATCHED)):
        train(Run(tiny_config(root, f"run={root / name}", *overrides), CPU, lambda _: None))
    return root


def test_watching_changes_no_loss(folder: Path) -> None:
    plain, watched = (
        [record["loss"] for record in read(folder / name)] for name in ("plain", "watched")
    )
    assert plain == watched
    assert len(plain) == 12


def test_the_probe_is_logged_when_due_and_bounded(folder: Path) -> None:
    keys = {"probe/knn_label", "probe/linear_label"}
    probed = {r["step"]: r for r in read(folder / "watched") if keys <= r.keys()}
    assert list(probed) == [3, 7, 11]
    assert all(0 <= float(probed[11][key]) <= 1 for key in keys)
    # Sixteen test images at most: accuracies are sixteenths.
    assert float(probed[11]["probe/knn_label"]) * 16 == pytest.approx(
        round(float(probed[11]["probe/knn_label"]) * 16)
    )


def test_attention_images_are_files_and_tensorboard_events(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = read_run(folder / "watched", "watched").pictures
    assert sorted({picture.step for picture in found}) == [6, 12]
    assert len(found) == 4
    with Image.open(found[0].path) as image:
        assert image.width > 400
    events = EventAccumulator(str(folder / "watched" / "tensorboard"))
    events.Reload()
    assert len(events.Tags()["images"]) == 2


def test_ranks_measure_and_draw_what_one_does(folder: Path) -> None:
    """Whole and sharded; every rank computes, one writes."""
    own = ",".join(WATCHED).replace("[knn, linear]", "[linear]")
    scenarios = (f"ddp:{own}", f"fsdp2:train.parallel=fsdp2,{own}")
    module = "tests.tcjepa.train.scenarios"
    code, said = finish(start(folder / "config.yaml", *scenarios, ranks=2, module=module))
    assert code == 0, said
    expected = folder / "watched"
    for name in ("ddp", "fsdp2"):
        for record, other in zip(read(folder / name), read(expected), strict=True):
            assert record["loss"] == pytest.approx(other["loss"], rel=2e-5)
            assert ("probe/linear_label" in record) == ("probe/linear_label" in other)
            # Features that differ in their last bits may move one of the sixteen images.
            if "probe/linear_label" in record:
                assert record["probe/linear_label"] == pytest.approx(
                    other["probe/linear_label"], abs=1.5 / 16
                )
        drawn, as_expected = (read_run(folder / run, run).pictures for run in (name, expected.name))
        assert len(drawn) == 4
        for picture, other in zip(drawn, as_expected, strict=True):
            assert picture.path.name == other.path.name
            shown, wanted = (pixels(Path(one.path).read_bytes()) for one in (picture, other))
            assert np.abs(shown.astype(int) - wanted).mean() < 1


def test_a_probe_without_labels_or_images_is_refused_before_training(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.probe_every=4 needs evaluate.labels"):
        tiny_config(folder, "train.probe_every=4")
    with pytest.raises(ConfigError, match="attends to words"):
        tiny_config(folder, "train.attention_every=4", "model.text=null")
    config = tiny_config(folder, f"run={folder / 'none'}", *WATCHED, "evaluate.test_split=nowhere")
    with pytest.raises(ConfigError, match="nowhere"):
        Run(config, CPU, lambda _: None)
    config = tiny_config(folder, f"run={folder / 'typo'}", *WATCHED, "evaluate.labels=[typo]")
    with pytest.raises(ConfigError, match="the shards have no column typo"):
        pretrain(config, lambda _: None)
    assert not (folder / "typo").exists()


def test_a_map_is_drawn_where_it_is_high() -> None:
    image = np.full((32, 32, 3), 128, np.uint8)
    corner = np.zeros((4, 4), np.float32)
    corner[0, 0] = 1.0
    png = draw(image, "a $5 star", [("star", corner), ("$5", corner.T[::-1])], "step 1")
    assert png == draw(image, "a $5 star", [("star", corner), ("$5", corner.T[::-1])], "step 1")
    shown = pixels(png).astype(int)
    orange = (shown[..., 0] - shown[..., 2]) > 80
    columns = np.flatnonzero(orange.any(0))
    # The first map's corner lies left of the second's; the colour bar is at the right edge.
    assert columns.min() > shown.shape[1] // 5
    with Image.open(io.BytesIO(png)) as opened:
        assert opened.format == "PNG"


def test_configs_are_compared_key_by_key(folder: Path) -> None:
    runs = [read_run(folder / name, name) for name in ("plain", "watched")]
    rows, differing = config_table(runs)
    assert differing
    assert dict(rows)["train.probe_every"] == ["0", "4"]
    assert "train.lr" not in dict(rows)
    assert "train.lr" in dict(config_table(runs[:1])[0])
    assert COLOURS == 8
