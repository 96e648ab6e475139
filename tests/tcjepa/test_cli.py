"""The command line: help, plans, errors, evaluation, inspection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tcjepa
from pipeline.settings import ConfigError, load
from tcjepa.cli import main
from tcjepa.config import TrainConfig, differences
from tcjepa.model.jepa import TCJEPA
from tcjepa.train.log import read
from tests.tcjepa.data.test_other_sources import write_pair, write_tar
from tests.tcjepa.shards import image, two_captions, write_shards
from tests.tcjepa.train.runs import write_config

CONFIGS = sorted((Path(tcjepa.__file__).parent / "configs").glob("*.yaml"))
#: METHOD's table: predictor depth, encoder depth, width and heads, grid side.
PUBLISHED = {
    "vit_b16": (6, 12, 768, 12, 14),
    "vit_l16": (12, 24, 1024, 16, 14),
    "vit_h14": (12, 32, 1280, 16, 16),
}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_lists_every_key_with_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for part in (
        "train.lr = 0.001: peak learning rate",
        "train.batch = 2048",
        "[images]",
        "masks.target_scale",
        "model.text.fusion",
        "data.noise.",
        "evaluate.knn.k",
        "--fresh",
    ):
        assert part in said


def test_bad_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pretrane"])
    assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "config.yaml", "--frsh"])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.warmup_step=1", "did you mean train.warmup_steps?"),
        ("train.steps=many", "train.steps"),
        ("train.steps=null", "exactly one"),
        ("data.image_size=48", "model.encoder takes 32-pixel images"),
        ("evaluate.image_size=48", "set evaluate.image_size=32"),
        ("model.encoder_kwargs.img_size=36", "img_size=36 is not a multiple of patch_size=8"),
        (
            "model.encoder_kwargs.img_size=[32,16] model.encoder_kwargs.patch_size=[8,4]",
            "images (32, 16) and patch grid (4, 4) must be square",
        ),
        (
            "model.encoder_kwargs.img_size=32 model.encoder_kwargs.patch_size=[8,4]",
            "images (32, 32) and patch grid (4, 8) must be square",
        ),
        ("data.captions_per_image=0", "model.text=null"),
        ("data.captions_per_image=257", "data.captions_per_image"),
        ("evaluate.captions_per_image=257", "evaluate.captions_per_image"),
        ("data.caption_sources=['ant:*']", "['ant:*']: none of the"),
        ("train.evaluate_after=true", "evaluate.labels"),
        ("train.probe_every=2 evaluate.labels=[typo]", "split == 'test': 0 rows"),
        ("masks.min_context=30", "masks.min_context"),
        ("run=s3://bucket/run", "must be local"),
        ("data.shards=nowhere", "no index.parquet in nowhere"),
        ("train.batch=4096 train.steps=null train.epochs=1", "less than one step"),
    ],
)
def test_bad_configs_are_one_message_that_names_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    config = write_config(tmp_path)
    code, _, said = run(capsys, "pretrain", config, *override.split(), "--dry-run")
    assert code == 2
    assert message in said
    assert said.startswith("error: ")


def test_dry_run_prints_config_and_plan_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    before = sorted(tmp_path.rglob("*"))
    code, said, _ = run(capsys, "pretrain", config, "train.scale_lr=true", "--dry-run")
    assert code == 0
    assert "12 steps of 8 images: 2.40 epochs, 2 steps of warm-up" in said
    assert "scaled by 8/2048" in said
    assert "batch: 8" in said
    assert "starts new" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_dry_run_says_what_becomes_of_a_run_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the real command would refuse, or not train at all, is not said to resume."""
    command = ("pretrain", write_config(tmp_path))
    assert run(capsys, *command, "train.max_minutes=1e-9")[0] == 0
    assert "state     resumes after step 2\n" in run(capsys, *command, "--dry-run")[1]
    code, _, said = run(capsys, *command, "train.lr=0.5", "--dry-run")
    assert code == 2 and "train.lr: 0.001 → 0.5" in said and "--fresh" in said
    assert "starts new" in run(capsys, *command, "train.lr=0.5", "--fresh", "--dry-run")[1]
    assert run(capsys, *command)[0] == 0
    assert "is done: all 12 steps" in run(capsys, *command, "--dry-run")[1]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_packaged_configs_build(path: Path) -> None:
    config = load(TrainConfig, path)
    with torch.device("meta"):
        model = TCJEPA(config.model, 768 if config.model.text else None)
    if path.stem not in PUBLISHED:
        return
    depth, *shape, side = PUBLISHED[path.stem]
    found = model.encoder.shape
    assert [found.depth, found.width, found.heads] == shape
    assert found.grid == (side, side)
    assert (config.model.predictor.depth, config.model.predictor.width) == (depth, 384)
    assert len(model.predictor.blocks) == depth
    train, masks = config.train, config.masks
    assert (train.batch, train.epochs, train.warmup_epochs) == (2048, 50, 10)
    assert (train.start_lr, train.lr, train.final_lr) == (2e-4, 1e-3, 1e-6)
    assert (train.weight_decay, train.final_weight_decay) == (0.04, 0.4)
    assert (train.ema, train.final_ema, train.clip_grad) == (0.996, 1.0, None)
    assert (masks.context_scale, masks.target_scale) == ((0.85, 1.0), (0.15, 0.2))
    assert (masks.target_aspect, masks.targets, masks.min_context) == ((0.75, 1.5), 4, 10)
    assert (config.data.crop_scale, config.data.captions_per_image) == ((0.3, 1.0), 8)
    assert config.model.text is not None
    assert config.model.text.sparsity_weight == 0.1
    assert config.model.text.consistency_weight == 0.5


def test_only_keys_that_change_results_count_as_different(tmp_path: Path) -> None:
    config = write_config(tmp_path)

    def resolved(*overrides: str) -> dict[str, object]:
        return load(TrainConfig, config, overrides).model_dump(mode="json")

    free = ("run=elsewhere", "data.workers=1", "train.threads=2", "evaluate.seeds=1")
    assert differences(resolved(), resolved(*free)) == []
    assert differences(resolved(), resolved("text.width=8")) == ["text.width: 16 → 8"]
    assert (
        differences(resolved("model.text=null"), resolved("model.text=null", "text.width=8")) == []
    )
    assert differences(resolved(), resolved("train.steps=13")) == ["train.steps: 12 → 13"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished run that was evaluated, and its labelled shards."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder, evaluate_after=True, steps=4)
    write_shards(
        folder / "shards",
        60,
        size=(40, 40),
        split=lambda n: "test" if n % 3 == 0 else "train",
        meta=lambda n: {"parity": "even" if n % 2 == 0 else "odd"},
    )
    assert main(["pretrain", str(config), *QUICK]) == 0
    return folder


QUICK = (
    "evaluate.labels=[parity]",
    "evaluate.tasks=[linear,knn,spectrum,agreement]",
    "evaluate.linear.epochs=2",
    "evaluate.linear.learning_rates=[0.01]",
    "evaluate.linear.weight_decays=[0.0]",
    "evaluate.batch=8",
)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluate.labels=[colour]", "evaluate.labels: the shards have no column colour. Columns"),
        ("evaluate.labels=[score]", "meta.score holds double; classes are text or whole numbers"),
        ("evaluate.labels=[late]", "no image of evaluate.test_split=test has meta.late"),
        ("evaluate.test_split=val", "val"),
        ("evaluate.test_split=train", "train is the split that probes learn on"),
    ],
)
def test_what_the_evaluation_would_miss_is_said_before_training(
    tmp_path: Path, override: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, evaluate_after=True, steps=4)

    def meta(number: int) -> dict[str, Any]:
        late = {} if number % 3 == 0 else {"late": "yes"}
        return {"parity": "even" if number % 2 == 0 else "odd", "score": 0.5, **late}

    write_shards(
        tmp_path / "shards", 30, split=lambda n: "test" if n % 3 == 0 else "train", meta=meta
    )
    assert main(["pretrain", str(config), *QUICK, override]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_pretraining_ends_with_a_table_and_its_json(trained: Path) -> None:
    content = json.loads((trained / "run" / "evaluation.json").read_text())
    assert content["step"] == 4
    assert content["trained"]["agreement"]["images"] == 20
    assert content["random weights"]["linear"].keys() == {"parity"}
    assert content["settings"]["labels"] == ["parity"]
    assert [record["step"] for record in read(trained / "run")] == [0, 1, 2, 3]


def test_evaluate_a_run_a_file_and_a_folder(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = run(capsys, "evaluate", trained / "run", "evaluate.tasks=[knn]")
    assert code == 0
    assert "TC-JEPA" in said
    assert "random weights" in said
    assert "kNN parity" in said
    assert "linear" not in said
    for number in range(20):
        path = tmp_path / "photos" / ("a" if number % 2 else "b") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number * 12, 0, 100)).save(path)
    extra = tmp_path / "evaluate.yaml"
    extra.write_text("evaluate: {labels: [], tasks: [knn]}")
    file = trained / "run" / "checkpoints" / "step-00000004.pt"
    folder = f"evaluate.folder={tmp_path / 'photos'}"
    code, said, _ = run(capsys, "evaluate", file, "--config", extra, folder)
    assert code == 0
    assert "kNN class" in said
    lone = tmp_path / "best.pt"
    lone.write_bytes(file.read_bytes())
    code, _, said = run(capsys, "evaluate", lone, "--config", extra, folder)
    assert code == 2
    assert "best.pt lies in no run's checkpoints/ folder" in said
    (tmp_path / "photos" / "train").mkdir()
    code, _, said = run(capsys, "evaluate", file, "--config", extra, folder)
    assert code == 2
    assert "not both train/ and test/" in said


def test_evaluate_on_tars_and_on_masks(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        members = {}
        for number in range(20):
            write_pair(tmp_path / "masks" / part, number)
            members[f"{number}.jpg"] = image(number, 40, 40)
            members[f"{number}.cls"] = str(number % 2).encode()
        write_tar(tmp_path / f"{part}.tar", members)
    tars = [f"evaluate.{part}_tars={tmp_path / part}.tar" for part in ("train", "test")]
    target = (trained / "run", "evaluate.labels=[]")
    code, said, _ = run(capsys, "evaluate", *target, *tars, "evaluate.tasks=[knn]")
    assert code == 0
    assert "kNN class" in said
    tasks = "evaluate.tasks=[segmentation,knn]"
    code, said, _ = run(capsys, "evaluate", *target, f"evaluate.folder={tmp_path / 'masks'}", tasks)
    assert code == 0
    assert "mIoU" in said
    assert "the images have no class" in said
    code, _, said = run(capsys, "evaluate", *target, tars[0])
    assert code == 2
    assert "give both or neither" in said


def test_evaluate_refuses_what_it_cannot_do(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = run(capsys, "evaluate", trained / "run", "evaluate.labels=[colour]")
    assert code == 2
    assert "parity" in said
    code, _, said = run(capsys, "evaluate", trained / "run", "train.lr=1.0")
    assert code == 2
    assert "train.lr: 0.001 → 1.0" in said
    code, _, said = run(capsys, "evaluate", trained / "nowhere")
    assert code == 2
    assert "nowhere is neither a checkpoint" in said


def test_fresh_sets_the_earlier_run_aside(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = trained / "config.yaml"
    target = f"run={trained / 'again'}"
    plain = ("train.evaluate_after=false", target)
    assert run(capsys, "pretrain", config, *plain)[0] == 0
    code, _, said = run(capsys, "pretrain", config, *plain, "train.lr=0.002", "--fresh")
    assert code == 0, said
    assert "replaced-000" in said
    assert (trained / "again" / "replaced-000" / "log.jsonl").exists()
    assert [record["step"] for record in read(trained / "again")] == [0, 1, 2, 3]


def test_inspect_shows_counts_scores_and_captions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path, 10, two_captions)
    code, said, _ = run(capsys, "inspect", tmp_path, "n_captions >= 2", "--samples", 2)
    assert code == 0
    assert "10 images in 2 shards" in said
    assert "20 captions" in said
    assert "quality" in said
    assert "alt text of image 1" in said
    assert "alignment  not computed" in said
    code, _, said = run(capsys, "inspect", tmp_path, "quality > 2")
    assert code == 2
    assert "unknown column" in said


def test_an_unknown_text_encoder_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"text\.encoder"):
        from tcjepa.text import TextConfig, open_text_encoder

        open_text_encoder(TextConfig(encoder=str(tmp_path / "nothing")))
