"""Exports: what a user loads in a fresh process is the encoder; a wrong one leaves nothing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.settings import ConfigError
from pipeline.storage import Directory
from tcjepa.data.augment import centre_crop
from tcjepa.evaluate.linear import ProbeResult
from tcjepa.evaluate.measure import Measure
from tcjepa.evaluate.report import EvaluationResult
from tcjepa.export import load_encoder, plain, run
from tcjepa.export.run import FORMATS, export
from tcjepa.export.source import ExportError, digest
from tcjepa.model.config import ModelConfig, PredictorConfig
from tcjepa.model.encoder import Encoder
from tcjepa.model.jepa import TCJEPA, normalise
from tcjepa.model.pretrained import initialise_encoders
from tcjepa.train import checkpoint
from tcjepa.train.checkpoint import Checkpoint
from tests.tcjepa.export.releases import shapes

ROOT = Path(__file__).parents[3]
KWARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
PLAIN_VIT = "vit_base_patch16_gap_224"


def write_run(folder: Path, encoder: str = PLAIN_VIT, **kwargs) -> tuple[Path, TCJEPA]:
    """Write a run directory with one checkpoint whose two encoders differ; return both."""
    torch.manual_seed(1)
    model = TCJEPA(
        ModelConfig(
            encoder=encoder,
            encoder_kwargs={**KWARGS, **kwargs},
            predictor=PredictorConfig(width=16, depth=1, heads=2),
            text=None,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for one in (model.encoder, model.target_encoder):
            one.vit.pos_embed.copy_(Encoder(encoder, {**KWARGS, **kwargs}).vit.pos_embed)
    config = {
        "data": {"shards": "s3://key:secret@bucket/web/shards?token=1"},
        "train": {"batch": 64},
        "model": model.config.model_dump(mode="json"),
    }
    saved = Checkpoint(
        step=30, model=model.state_dict(), optimizer={}, loader={}, config=config, minutes=1.0,
        images=320,
    )  # fmt: skip
    saved.save(Directory(folder), keep=1)
    return folder, model.eval()


def open_run(path: Path):
    found = checkpoint.resolve(path, print)
    return found.config, found.model


def features(encoder: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return encoder(images)


def in_fresh_process(lines: list[str], use: str, folder: Path) -> torch.Tensor:
    """Load as the printed lines say, apply to `folder`/images.pt, return what `use` computes."""
    script = "\n".join(
        [
            "import torch",
            f"images = torch.load({str(folder / 'images.pt')!r})",
            *lines,
            "with torch.no_grad():",
            f"    result = {use}",
            f"torch.save(result, {str(folder / 'result.pt')!r})",
        ]
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=300)
    return torch.load(folder / "result.pt", weights_only=True)


def test_what_the_command_prints_loads_the_encoder_in_a_fresh_process(tmp_path):
    folder, model = write_run(tmp_path / "run")
    out = tmp_path / "out"
    arguments = ["export", str(folder), str(out), "--format", "all"]
    done = subprocess.run(
        [sys.executable, "-m", "tcjepa", *arguments], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6, "two lines per format"
    images = torch.randn(3, 3, 32, 32)
    torch.save(images, tmp_path / "images.pt")
    lines[2:2], lines[5:5] = ["first = encoder"], ["second = encoder"]
    use = (
        "[first(images), first.forward_features(images), "
        "second(images).last_hidden_state, encoder(images)]"
    )
    pooled, *tokens = in_fresh_process(lines, use, tmp_path)
    ours = features(model.target_encoder, images)
    assert torch.allclose(pooled, ours.mean(1), rtol=0, atol=1e-5)
    for loaded in tokens:
        assert torch.allclose(loaded, ours, rtol=0, atol=1e-5)
    assert not torch.allclose(ours, features(model.encoder, images), atol=1e-2)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out", "images.pt", "result.pt"}


@pytest.mark.parametrize("which", ["target", "context"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_export_starts_a_new_model(tmp_path, kind, which):
    folder, model = write_run(tmp_path / "run")
    file = folder / "checkpoints" / "step-00000030.pt"
    export(file, tmp_path / "a" / "out", kind, which=which)
    started = TCJEPA(model.config).eval()
    initialise_encoders(started, str(tmp_path / "a" / "out"), print, open_run)
    images = torch.randn(2, 3, 32, 32)
    exported = model.target_encoder if which == "target" else model.encoder
    for encoder in (started.encoder, started.target_encoder):
        assert torch.allclose(features(encoder, images), features(exported, images), atol=1e-6)


def test_runs_checkpoints_and_whole_exports_start_a_new_model(tmp_path):
    folder, model = write_run(tmp_path / "run")
    export(folder, tmp_path / "all")
    for source in (folder, folder / "checkpoints" / "step-00000030.pt"):
        started = TCJEPA(model.config)
        initialise_encoders(started, str(source), print, open_run)
        for name in ("encoder", "target_encoder"):
            ours, theirs = getattr(model, name).state_dict(), getattr(started, name).state_dict()
            assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    started = TCJEPA(model.config)
    initialise_encoders(started, str(tmp_path / "all"), print, open_run)
    norm = model.target_encoder.vit.norm.weight
    assert torch.equal(started.encoder.vit.norm.weight, norm)
    heads = model.config.model_copy(update={"encoder_kwargs": {**KWARGS, "num_heads": 2}})
    for source in (folder, tmp_path / "all", tmp_path / "all" / "timm"):
        with pytest.raises(ConfigError, match="num_heads: 4"):
            initialise_encoders(TCJEPA(heads), str(source), print, open_run)


@settings(max_examples=6)
@given(shapes())
def test_exports_of_other_shapes(tmp_path_factory, shape):
    folder = tmp_path_factory.mktemp("shapes")
    _, model = write_run(folder / "run", **shape)
    export(folder / "run", folder / "out")
    images = torch.randn(1, 3, shape["img_size"], shape["img_size"])
    reloaded = features(load_encoder(folder / "out" / "safetensors"), images)
    assert torch.equal(reloaded, features(model.target_encoder, images))


def test_architectures_that_huggingface_does_not_have(tmp_path):
    folder, _ = write_run(tmp_path / "run", init_values=0.1, qk_norm=True)
    with pytest.raises(ConfigError, match=r"no place for blocks\.0\.(ls1|attn\.q_norm).*timm"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(folder, tmp_path / "out", "timm")


def test_the_image_processor_crops_as_the_evaluation_does(tmp_path):
    from PIL import Image
    from timm.data import create_transform, resolve_data_config
    from transformers import AutoImageProcessor

    side = 56  # 64 of it before the crop, however a library rounds
    folder, _ = write_run(tmp_path / "run", img_size=side)
    export(folder, tmp_path / "out")
    rows, columns = np.mgrid[0:90, 0:120]
    planes = [np.sin(rows / 20), np.cos(columns / 25), np.sin((rows + columns) / 40)]
    pixels = (127 + 120 * np.stack(planes, axis=2)).astype(np.uint8)
    ours = normalise(torch.from_numpy(centre_crop(pixels, side).copy())[None])
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out" / "huggingface")
    image = Image.fromarray(pixels)
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    assert (pixel_values - ours).abs().max() < 0.1, "resizing filters differ a little"
    config = json.loads((tmp_path / "out" / "timm" / "config.json").read_text())["pretrained_cfg"]
    transform = create_transform(**resolve_data_config(pretrained_cfg=config))
    assert (transform(image)[None] - ours).abs().max() < 0.1
    wrong = normalise(torch.from_numpy(centre_crop(pixels[:, 10:], side).copy())[None])
    assert (wrong - ours).abs().max() > 0.2, "the comparison would see a shifted crop"


def test_an_export_that_is_off_leaves_nothing(tmp_path, monkeypatch):
    folder, _ = write_run(tmp_path / "run")
    before = sorted(path.name for path in tmp_path.iterdir())
    written = plain.write

    def damaged(where: Path, source) -> None:
        written(where, source)
        tensors = load_file(where / plain.FILE)
        tensors["blocks.1.mlp.fc2.bias"][0] += 1e-3  # all alike would be normed away
        save_file(tensors, where / plain.FILE, source.metadata)

    monkeypatch.setattr(plain, "write", damaged)
    for kind in ("safetensors", "timm", "all"):
        with pytest.raises(ExportError, match=r"features differ .* by up to"):
            export(folder, tmp_path / "out", kind)
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    monkeypatch.setattr(plain, "write", lambda where, _: (where / plain.FILE).write_bytes(b"torn"))
    with pytest.raises((ExportError, ConfigError)):
        export(folder, tmp_path / "out", "safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_exists_is_replaced_only_if_asked_and_only_exports(tmp_path, monkeypatch):
    folder, _ = write_run(tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    export(folder, out, "safetensors")
    with pytest.raises(ConfigError, match="--force"):
        export(folder, out, "timm")
    export(folder, out, "timm", force=True)
    assert (out / "config.json").exists()
    with pytest.raises(ConfigError, match="is no export"):
        export(folder, folder, force=True)
    monkeypatch.setattr(run, "_mark", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(folder, out, "safetensors", force=True)
    assert (out / "config.json").exists(), "an export that fails leaves the earlier one"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}


def test_metadata_and_model_card(tmp_path):
    folder, model = write_run(tmp_path / "run")
    export(folder, tmp_path / "out")
    with safe_open(tmp_path / "out" / "safetensors" / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["step"] == "30" and metadata["image_size"] == "32"
    assert json.loads(metadata["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(metadata["encoder_kwargs"]) == model.config.encoder_kwargs
    assert metadata["config_digest"] == digest(checkpoint.resolve(folder, print).config)
    text = (tmp_path / "out" / "huggingface" / "README.md").read_text()
    for part in ("s3://bucket/web/shards,", "320 images per epoch", "30 steps of 64", "6.0 epochs"):
        assert part in text
    assert "licence | unknown" in text and "Nothing:" in text
    assert not any(word in text for word in ("secret", "token=", str(tmp_path)))


def test_the_model_card_has_the_numbers_of_this_very_encoder(tmp_path):
    folder, _ = write_run(tmp_path / "run")

    def result(value: float) -> dict:
        probe = ProbeResult(Measure(value, None, 0.01, (value,)), 0.2, 5, (), ())
        whole = EvaluationResult(10, 10, {"shape": probe}, {}, None, None)
        return json.loads(whole.to_json())

    numbers = {"step": 30, "trained": result(0.75), "random weights": result(0.25)}
    (folder / "evaluation.json").write_text(json.dumps(numbers))
    export(folder, tmp_path / "target", "timm")
    assert "| linear shape | 75.0 ± 1.0 | 25.0 |" in (tmp_path / "target" / "README.md").read_text()
    export(folder, tmp_path / "context", "timm", which="context")
    assert "75.0" not in (tmp_path / "context" / "README.md").read_text()
    (folder / "evaluation.json").write_text(json.dumps({**numbers, "step": 20}))
    export(folder, tmp_path / "later", "timm")
    assert "75.0" not in (tmp_path / "later" / "README.md").read_text()


def test_a_file_that_is_no_export_is_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="not an encoder that `tcjepa export` wrote"):
        load_encoder(tmp_path)
