"""Whole runs of the baselines: they learn, resume exactly, run on ranks, are exported."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from pipeline.schema import Caption
from pipeline.settings import ConfigError
from tcjepa.cli import main
from tcjepa.train import checkpoint, trace
from tcjepa.train.distributed import World
from tcjepa.train.log import read
from tcjepa.train.loop import train
from tcjepa.train.run import Run
from tests.tcjepa.shards import caption, write_shards
from tests.tcjepa.train.runs import finish, start, tiny_config, write_config
from tests.tcjepa.train.scenarios import run_scenarios

CPU = World(0, 1, 0, 1, torch.device("cpu"))
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
KINDS = {
    "supervised": ["train.objective=supervised", "train.labels=[colour]"],
    "contrastive": [
        "train.objective=contrastive",
        "model.contrastive={width: 16, text_width: 16, text_depth: 1}",
    ],
}


def colour_of(number: int) -> str:
    return random.Random(number).choice(list(COLOURS))


def draw(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), COLOURS[colour_of(number)]).save(buffer, "PNG")
    return buffer.getvalue()


def captions_of(number: int) -> list[Caption]:
    return [] if number % 9 == 8 else [caption(f"something {colour_of(number)}")]


def coloured(folder: Path, **keys: object) -> Path:
    """Write a tiny config and shards of 48 training and 24 test images, each of one colour."""
    path = write_config(folder, **{"steps": 40, "lr": 3e-3, "warmup_steps": 2, **keys})
    write_shards(
        folder / "shards", 72, captions_of, size=(40, 40), image_format="png", encode=draw,
        split=lambda number: "test" if number % 3 == 0 else "train", shard_size=16,
        meta=lambda number: {"colour": colour_of(number)},
    )  # fmt: skip
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_baseline_learns_and_is_evaluated_by_the_same_commands(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = coloured(tmp_path)
    own = [*KINDS[kind], "evaluate.labels=[colour]", "evaluate.tasks=[knn,agreement]"]
    assert main(["pretrain", str(path), *own, "train.evaluate_after=true"]) == 0
    said = capsys.readouterr().out
    assert kind in said and "agreement: skipped" in said
    records = read(tmp_path / "run")
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert "ema" not in records[0] and "predict" not in records[0]
    if kind == "supervised":
        assert records[-1]["accuracy_colour"] > 0.9
        assert main(["pretrain", str(path), "train.objective=supervised"]) == 2
        assert "train.labels=[" in capsys.readouterr().err
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert content["trained"]["knn"]["colour"]["value"] > 0.9
    assert (
        main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "safetensors"])
        == 0
    )
    assert kind in (tmp_path / "out" / "README.md").read_text()
    assert main(["inspect", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_baseline_resumes_bit_for_bit(tmp_path: Path, kind: str) -> None:
    coloured(tmp_path, steps=6, trace=True)
    for name in ("whole", "halves"):
        limits = ["train.max_minutes=1e-9"] if name == "halves" else []
        own = [f"run={tmp_path / name}", *KINDS[kind]]
        with Run(tiny_config(tmp_path, *own, *limits), CPU, lambda _: None) as run:
            train(run)
        assert run.is_done == (name == "whole")
    with Run(tiny_config(tmp_path, *own), CPU, lambda _: None) as run:
        train(run)
    both = [(tmp_path / name / trace.TRACE_FILE).read_bytes() for name in ("whole", "halves")]
    assert both[0] == both[1]


def test_baselines_on_two_ranks_follow_one(tmp_path: Path) -> None:
    """The contrast is over the images of all ranks, captioned or not."""
    path = coloured(tmp_path, steps=4, trace=True)
    kinds = {
        "supervised": "train.objective=supervised,train.labels=[colour]",
        "contrastive": "train.objective=contrastive",
    }
    run_scenarios(path, [f"{kind}:{own}" for kind, own in kinds.items()], CPU)
    parallel = {"ddp": "", "fsdp2": ",train.parallel=fsdp2"}
    given = [
        f"{kind}_{name}:{own}{extra}"
        for kind, own in kinds.items()
        for name, extra in parallel.items()
    ]
    code, said = finish(start(path, *given, ranks=2, module="tests.tcjepa.train.scenarios"))
    assert code == 0, said
    for kind in kinds:
        one = read(tmp_path / kind)
        end = checkpoint.resolve(tmp_path / kind, print)
        for name in parallel:
            run = tmp_path / f"{kind}_{name}"
            for ours, theirs in zip(read(run), one, strict=True):
                reading = "captioned" if kind == "contrastive" else "accuracy_colour"
                for key in ("loss", "grad_norm", reading):
                    # How far sums in another order are apart depends on the processor, too.
                    assert ours[key] == pytest.approx(theirs[key], rel=1e-4), (name, key)
            for key, value in checkpoint.resolve(run, print).model.items():
                torch.testing.assert_close(value, end.model[key], rtol=1e-3, atol=2e-4)


def test_a_baseline_in_micro_batches(tmp_path: Path) -> None:
    path = coloured(tmp_path, steps=4)
    run_scenarios(
        path,
        [
            "whole:train.objective=supervised,train.labels=[colour]",
            "parts:train.objective=supervised,train.labels=[colour],train.micro_batch=3",
        ],
        CPU,
    )
    for ours, theirs in zip(read(tmp_path / "parts"), read(tmp_path / "whole"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    with pytest.raises(ConfigError, match=r"micro_batch=3: with train\.objective=contrastive"):
        tiny_config(tmp_path, "train.objective=contrastive", "train.micro_batch=3")


def test_a_baseline_starts_from_the_target_encoder_of_a_jepa(tmp_path: Path) -> None:
    coloured(tmp_path, steps=3)
    with Run(tiny_config(tmp_path), CPU, lambda _: None) as jepa:
        train(jepa)
    said: list[str] = []
    own = [f"run={tmp_path / 'own'}", f"model.init={tmp_path / 'run'}", *KINDS["supervised"]]
    with Run(tiny_config(tmp_path, *own), CPU, said.append) as run:
        kept = run.model.kept_encoder.state_dict()
        for name, value in jepa.model.kept_encoder.state_dict().items():
            assert torch.equal(value, kept[name])
        train(run)
    assert any("model.init" in line and "predictor" not in line for line in said)
    back = [f"run={tmp_path / 'back'}", f"model.init={tmp_path / 'own'}"]
    with Run(tiny_config(tmp_path, *back), CPU, said.append) as again:
        for encoder in again.model.encoders().values():
            for name, value in run.model.encoder.state_dict().items():
                assert torch.equal(value, encoder.state_dict()[name])


def test_checkpoints_from_before_there_were_baselines_are_jepas(tmp_path: Path) -> None:
    path = write_config(tmp_path, steps=3)
    assert main(["pretrain", str(path)]) == 0
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["train"]["objective"] == "jepa"
    with pytest.raises(ConfigError, match=r"train\.objective: jepa → contrastive"):
        Run(tiny_config(tmp_path, "train.steps=3", "train.objective=contrastive"), CPU, print)
