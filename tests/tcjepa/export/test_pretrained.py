"""Published weights, in each form that they come in, as initialisation of a `TCJEPA`."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.settings import ConfigError
from tcjepa.model.config import ModelConfig, PredictorConfig
from tcjepa.model.encoder import sincos_positions
from tcjepa.model.jepa import TCJEPA
from tcjepa.model.pretrained import initialise_encoders
from tests.tcjepa.export import releases
from tests.tcjepa.export.releases import ENCODER, KWARGS, OriginalEncoder

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def encoder() -> OriginalEncoder:
    return OriginalEncoder(1).eval()


@pytest.fixture(scope="module")
def target() -> OriginalEncoder:
    return OriginalEncoder(2).eval()


def new_model(**changes) -> TCJEPA:
    torch.manual_seed(0)
    predictor = PredictorConfig(width=16, depth=1)
    config = ModelConfig(
        encoder=ENCODER, encoder_kwargs={**KWARGS, **changes}, predictor=predictor, text=None
    )
    return TCJEPA(config).eval()


def not_ours(path: Path):
    raise AssertionError(f"{path} was taken for a run of ours")


def initialised(name: str | Path, **changes) -> tuple[TCJEPA, str]:
    model, said = new_model(**changes), []
    initialise_encoders(model, str(name), said.append, not_ours)
    return model, "\n".join(said)


def same(ours: torch.nn.Module, theirs: OriginalEncoder) -> bool:
    images = torch.randn(2, 3, releases.SIDE, releases.SIDE)
    with torch.no_grad():
        return torch.allclose(ours(images), theirs(images), rtol=0, atol=1e-5)


FORMS = {
    "release.pth.tar": lambda path, e: releases.write_original(path, e, e),
    "timm.safetensors": releases.write_timm_file,
    "timm.pth": releases.write_timm_file,
    "timm": releases.write_timm_folder,
    "huggingface": releases.write_huggingface,
    "sharded": lambda path, e: releases.write_huggingface(path, e, shard="20KB"),
    "classifier": lambda path, e: releases.write_huggingface(path, e, classifier=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_features_it_was_published_for(tmp_path, encoder, form):
    path = FORMS[form](tmp_path / form, encoder)
    untouched = new_model()
    model, said = initialised(path)
    assert same(model.encoder, encoder) and same(model.target_encoder, encoder)
    assert not same(untouched.encoder, encoder)
    for name, value in model.predictor.state_dict().items():
        assert torch.equal(value, untouched.predictor.state_dict()[name]), "the predictor is new"
    assert not any(p.requires_grad for p in model.target_encoder.parameters())
    assert all(p.requires_grad for n, p in model.encoder.named_parameters() if "pos" not in n)
    assert str(path) in said
    assert ("left out classifier" in said) == (form == "classifier")


def test_the_modules_own_names_of_transformers_are_read_too(tmp_path, encoder):
    from transformers import IJepaModel

    folder = releases.write_huggingface(tmp_path / "hub", encoder)
    tensors = IJepaModel.from_pretrained(folder).state_dict()
    save_file(tensors, tmp_path / "module.safetensors")
    model, _ = initialised(tmp_path / "module.safetensors")
    assert same(model.encoder, encoder)


def test_the_releases_own_target_encoder_is_taken_over(tmp_path, encoder, target):
    model, said = initialised(releases.write_original(tmp_path / "r.tar", encoder, target))
    assert same(model.encoder, encoder) and same(model.target_encoder, target)
    assert "its own target encoder" in said


def test_half_precision_weights_become_float32(tmp_path, encoder):
    half = {name: tensor.bfloat16() for name, tensor in encoder.state_dict().items()}
    save_file(half, tmp_path / "half.safetensors")
    model, _ = initialised(tmp_path / "half.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    expected = sincos_positions((releases.GRID, releases.GRID), releases.WIDTH)
    assert torch.equal(model.encoder.vit.pos_embed[0], expected), "positions are not rounded"


def test_another_grid_gets_its_own_positions(tmp_path, encoder):
    path = releases.write_timm_file(tmp_path / "w.safetensors", encoder)
    model, said = initialised(path, img_size=2 * releases.SIDE)
    expected = sincos_positions((8, 8), releases.WIDTH)
    assert torch.equal(model.encoder.vit.pos_embed[0], expected)
    assert "positions computed for 64 patches, not 16" in said
    assert torch.equal(model.encoder.vit.norm.weight, encoder.norm.weight)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"depth": 3}, "missing: blocks.2.*set model.encoder_kwargs {depth: 2}"),
        ({"depth": 1}, "unexpected: blocks.1.*set model.encoder_kwargs {depth: 2}"),
        ({"patch_size": 4}, "patch_embed.proj.weight 32x3x8x8, not 32x3x4x4.*{patch_size: 8}"),
        ({"embed_dim": 64}, "and [0-9]+ more.*{embed_dim: 32}"),
        ({"mlp_ratio": 2.0}, "blocks.0.mlp.fc1.bias 128, not 64.*{mlp_ratio: 4}"),
        ({"qkv_bias": False}, "unexpected: blocks.0.attn.qkv.bias, blocks.1.attn.qkv.bias"),
        ({"num_heads": 2}, "set model.encoder_kwargs {num_heads: 4}"),
    ],
)
def test_what_does_not_fit_is_listed_with_the_fix(tmp_path, encoder, changes, fix):
    for write in (releases.write_huggingface, releases.write_timm_folder):
        path = write(tmp_path / write.__name__, encoder)
        with pytest.raises(ConfigError, match="(?s)does not fit model.encoder.*" + fix):
            initialised(path, **changes)


def test_a_refusal_leaves_the_model_as_it_was(tmp_path, encoder, target):
    releases.write_original(tmp_path / "r.tar", encoder, target)
    content = torch.load(tmp_path / "r.tar", weights_only=True)
    del content["target_encoder"]["module.norm.weight"]
    torch.save(content, tmp_path / "r.tar")
    model, untouched = new_model(), new_model()
    with pytest.raises(ConfigError, match=r"missing: norm\.weight"):
        initialise_encoders(model, str(tmp_path / "r.tar"), print, not_ours)
    for name, value in model.state_dict().items():
        assert torch.equal(value, untouched.state_dict()[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(pos_embed=torch.randn_like(t["pos_embed"])), "learned ones"),
        (lambda t: t.update(pos_embed=t["pos_embed"][:, 1:]), "1x15x32.*another grid"),
        (lambda t: t.pop("pos_embed"), "missing: pos_embed"),
        (lambda t: t.update(cls_token=torch.zeros(1, 1, 32)), "unexpected: cls_token"),
        (lambda t: t["norm.bias"].fill_(float("nan")), "not finite: norm.bias"),
    ],
)
def test_weights_of_another_kind_are_refused(tmp_path, encoder, change, message):
    path = releases.write_timm_file(tmp_path / "w.safetensors", encoder)
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with pytest.raises(ConfigError, match=message):
        initialised(path)


def test_settings_that_tensors_do_not_show(tmp_path, encoder):
    folder = releases.write_huggingface(tmp_path / "tanh", encoder, hidden_act="gelu_new")
    with pytest.raises(ConfigError, match="activation is gelu_new"):
        initialised(folder)
    folder = releases.write_huggingface(tmp_path / "epsilon", encoder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-12}))
    assert "epsilon is 1e-06 here and was 1e-12 there" in initialised(folder)[1]
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit_mae"}))
    with pytest.raises(ConfigError, match="vit_mae model"):
        initialised(folder)


class Payload:
    """Pickles into a call that leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_run_code_is_refused(tmp_path, encoder, legacy):
    mark, path = tmp_path / "ran", tmp_path / "evil.pth"
    content = {"encoder": encoder.state_dict(), "loss": Payload(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ConfigError, match="run code"):
        initialised(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists(), "the payload would have worked"


def test_a_file_of_an_old_torch_is_read(tmp_path, encoder):
    torch.save(encoder.state_dict(), tmp_path / "o.pth", _use_new_zipfile_serialization=False)
    assert same(initialised(tmp_path / "o.pth")[0].encoder, encoder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.safetensors", "does not exist; it may be"),
        ("./owner/name", "does not exist"),
        ("tests/nowhere", "does not exist"),
        ("vit_huge_patch14_gap_224.in1k_ijepaa", "vit_huge_patch14_gap_224.in1k_ijepa,"),
        ("vit_huge_patch14_gap_224", "does not exist; it may be"),
    ],
)
def test_a_name_that_means_nothing(monkeypatch, name, message):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=message):
        initialised(name)


def test_an_empty_folder_and_torn_files(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no model\.safetensors"):
        initialised(tmp_path)
    for suffix in (".safetensors", ".pt"):
        torn = tmp_path / f"torn{suffix}"
        torn.write_bytes(b"not tensors")
        with pytest.raises(ConfigError, match=f"torn{suffix}"):
            initialised(torn)


BY_NAME = """
import sys, json, torch
from timm.models import _registry
from timm.models._pretrained import PretrainedCfg
from pipeline.settings import ConfigError, build
from tcjepa.model.config import ModelConfig
from tcjepa.model.jepa import TCJEPA
from tcjepa.model.pretrained import initialise_encoders

config, url, out, *names = sys.argv[1:]
for name in ("vit_test.ijepa", "vit_test.other"):
    _registry._model_pretrained_cfgs[name] = PretrainedCfg(url=f"{url}/{name}.pth.tar")
for name in names:
    model = TCJEPA(build(ModelConfig, json.loads(config)))
    try:
        initialise_encoders(model, name, print, None)
    except ConfigError as error:
        print(f"refused: {error}")
    else:
        torch.save(model.state_dict(), f"{out}/{name.replace('/', ' ')}.pt")
"""
HUB_NAMES = ["owner/ijepa", "hf-hub:owner/sharded@main", "vit_test.ijepa"]


def by_name(url: str, folder: Path, *names: str, **environment: str) -> str:
    """Initialise from names in a fresh process whose hubs are `url`; return what it says.

    Models go to `folder`, which holds the caches too.
    """
    caches = {"HF_HOME": f"{folder}/hf", "TORCH_HOME": f"{folder}/torch", "HF_ENDPOINT": url}
    config = new_model().config.model_dump_json()
    done = subprocess.run(
        [sys.executable, "-c", BY_NAME, config, url, str(folder), *names],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **caches, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_of_hubs_are_fetched_once(tmp_path, encoder):
    hub = tmp_path / "hub"
    releases.write_huggingface(hub / "owner" / "ijepa", encoder)
    releases.write_huggingface(hub / "owner" / "sharded", encoder, shard="20KB")
    releases.write_original(hub / "vit_test.ijepa.pth.tar", encoder, encoder)
    with releases.serve(hub) as url:
        said = by_name(url, tmp_path, *HUB_NAMES)
    for name in HUB_NAMES:
        assert f"tensors of {name}" in said
        saved = tmp_path / f"{name.replace('/', ' ')}.pt"
        model = new_model()
        model.load_state_dict(torch.load(saved, weights_only=True))
        assert same(model.encoder, encoder)
        saved.unlink()
    others = ["owner/other", "vit_test.other"]
    said = by_name(url, tmp_path, *HUB_NAMES, *others, HF_HUB_OFFLINE="1")
    assert said.count("tensors of") == 3, "with no network the cache is enough"
    for name, cache in zip(others, ("HF_HOME", "TORCH_HOME"), strict=True):
        assert f"refused: model.init={name} cannot be downloaded" in said
        assert f"or set {cache} to a cache that has it" in said
