"""CLIP and SigLIP against transformers' own forward, one pair at a time."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from pipeline.scorers import alignment_clip, dual_encoder
from pipeline.scorers.batching import in_batches
from pipeline.scorers.config import ClipAlignmentConfig, EncoderAgreementConfig, ScoreConfig
from pipeline.scorers.dual_encoder import load_dual_encoder
from pipeline.scorers.embedding import EmbedConfig
from pipeline.scorers.text_encoder import load_text_encoder
from pipeline.settings import ConfigError, build
from pipeline.stages.score import check

_spec = importlib.util.spec_from_file_location(
    "tiny_encoders", Path(__file__).with_name("tiny_encoders.py")
)
assert _spec is not None
assert _spec.loader is not None
tiny: ModuleType = importlib.util.module_from_spec(_spec)
sys.modules["tiny_encoders"] = tiny
_spec.loader.exec_module(tiny)

TEXTS = ["a red dog on the grass", "a cat", "a blue bird sits on sand and a large green dog runs",
         "small " * 100, "unheard words"]  # fmt: skip


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save: Callable[[Path], Path] = getattr(tiny, f"save_{request.param}")
    return save(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.save_bert(tmp_path_factory.mktemp("bert"))
    return folder


def encoder(folder: Path, batch_size: int = 3) -> dual_encoder.DualEncoder:
    return load_dual_encoder(EmbedConfig(model=str(folder), batch_size=batch_size))


def test_cosines_are_those_of_the_models_own_forward(folder: Path) -> None:
    images = [tiny.picture(seed, size) for seed, size in enumerate([(40, 30), (20, 60), (32, 32)])]
    model, processor = (
        AutoModel.from_pretrained(folder).eval(),
        AutoProcessor.from_pretrained(folder),
    )
    expected = np.zeros((len(images), len(TEXTS)))
    for row, image in enumerate(images):
        picture = Image.open(io.BytesIO(image)).convert("RGB")
        for column, text in enumerate(TEXTS):
            inputs = processor(
                images=picture, text=text, padding="max_length", truncation=True,
                max_length=tiny.LENGTH, return_tensors="pt",
            )  # fmt: skip
            with torch.inference_mode():
                output = model(**inputs)
            expected[row, column] = float((output.image_embeds @ output.text_embeds.T)[0, 0])
    assert expected.std() > 0.01
    vectors, sound = encoder(folder).images(images)
    assert sound.all()
    texts = encoder(folder).texts(TEXTS)
    np.testing.assert_allclose(vectors @ texts.T, expected, atol=1e-5)
    stored = vectors.astype(np.float16).astype(np.float32)
    for row in range(len(images)):
        found = alignment_clip.cosines(stored, texts, [row] * len(TEXTS))
        np.testing.assert_allclose(found, expected[row], atol=4e-4)


def test_the_batch_size_changes_nothing(folder: Path) -> None:
    images = [tiny.picture(seed) for seed in range(7)]
    whole, one = encoder(folder, 64), encoder(folder, 1)
    np.testing.assert_allclose(whole.images(images)[0], one.images(images)[0], atol=1e-5)
    np.testing.assert_allclose(whole.texts(TEXTS), one.texts(TEXTS), atol=1e-5)
    np.testing.assert_allclose(whole.texts(TEXTS)[1], whole.texts(["a cat"])[0], atol=1e-5)


def test_siglip_2_reads_lowercase_whatever_its_tokenizer_does(folder: Path, tmp_path: Path) -> None:
    texts = ["A Red Dog", "a red dog", "A RED CAT"]
    upper, lower, other = encoder(tiny.save_siglip(tmp_path, tiny.gemma_tokenizer())).texts(texts)
    np.testing.assert_array_equal(upper, lower)
    assert np.abs(upper - other).max() > 0.01
    # Those that read capitals are given them.
    upper, lower, _ = encoder(folder).texts(texts)
    assert np.abs(upper - lower).max() > 0.01


def test_what_is_no_image_is_marked(folder: Path) -> None:
    vectors, sound = encoder(folder).images([b"", tiny.picture(0), b"no image"])
    assert sound.tolist() == [False, True, False]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([0, 1, 0], abs=1e-5)
    none, empty = encoder(folder).images([])
    assert none.shape == (0, encoder(folder).width)
    assert empty.shape == (0,)


def test_slivers_are_no_images(folder: Path) -> None:
    sizes = [(3, 40), (40, 1), (400, 10), (8, 8), (160, 8)]
    _, sound = encoder(folder).images([tiny.picture(0, size) for size in sizes])
    assert sound.tolist() == [False, False, False, True, True]


def test_text_vectors_are_means_of_the_encoders_states(bert: Path) -> None:
    config = EncoderAgreementConfig(model=str(bert), batch_size=2)
    found = load_text_encoder(config).encode(TEXTS)
    model, words = AutoModel.from_pretrained(bert).eval(), tiny.tokenizer()
    for text, vector in zip(TEXTS, found, strict=True):
        inputs = words(text, truncation=True, max_length=tiny.LENGTH, return_tensors="pt")
        with torch.inference_mode():
            mean = model(**inputs).last_hidden_state[0].mean(0)
        expected = torch.nn.functional.normalize(mean, dim=0).numpy()
        np.testing.assert_allclose(vector, expected, atol=2e-5)
    assert np.abs(found[0] - found[1]).max() > 0.01
    assert load_text_encoder(config).encode([]).size == 0


def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    sizes: list[int] = []

    def run(items: Any) -> Any:
        sizes.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("as a GPU says it")
        return np.array([[item] for item in items], np.float32)

    assert in_batches(list(range(8)), 8, run)[:, 0].tolist() == list(range(8))
    assert sizes == [8, 4, 2, 2, 2, 2]

    def never(items: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")

    with pytest.raises(RuntimeError, match="not enough memory"):
        in_batches([1, 2], 2, never)


def test_calibration_is_even_odds_and_keeps_the_order() -> None:
    draw = np.random.RandomState(0)
    texts = draw.normal(size=(400, 16))
    images = texts + 1.2 * draw.normal(size=texts.shape)
    images[:100] = draw.normal(size=(100, 16))  # a quarter of the captions is swapped
    images, texts = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (images, texts))
    model = alignment_clip.fit(images.astype(np.float32), texts.astype(np.float32))
    assert model is not None
    assert alignment_clip.ClipAlignment.from_bytes(model.to_bytes()) == model
    cosines = alignment_clip.cosines(images.astype(np.float32), texts, np.arange(400))
    scores = alignment_clip.score(model, cosines)
    order = np.argsort(cosines)
    assert (np.diff(scores[order]) >= 0).all()
    assert scores[100:].mean() > 0.75
    assert scores[:100].mean() < 0.35
    assert alignment_clip.fit(images[:63], texts[:63]) is None
    images[0] = np.nan
    assert np.isnan(alignment_clip.cosines(images, texts, [0, *range(1, 400)])[0])


@pytest.mark.parametrize(
    ("embed", "message"),
    [
        (None, "score.alignment: clip needs a model"),
        ({"model": "./nowhere"}, "embed.model: folder ./nowhere does not exist"),
    ],
)
def test_what_cannot_run_is_refused_before_work(embed: Any, message: str) -> None:
    config = ScoreConfig(alignment=ClipAlignmentConfig())
    with pytest.raises(ConfigError, match=message):
        check(config, build(EmbedConfig, embed) if embed else None)


def test_folders_are_looked_into(folder: Path, bert: Path, tmp_path: Path) -> None:
    config = ScoreConfig(alignment=ClipAlignmentConfig())
    check(config, EmbedConfig(model=str(folder)))
    with pytest.raises(ConfigError, match="BertModel, which has no two towers"):
        check(config, EmbedConfig(model=str(bert)))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        check(config, EmbedConfig(model=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard"}))
    with pytest.raises(ConfigError, match="no model that transformers knows"):
        check(config, EmbedConfig(model=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"score.agreement.model: folder /nowhere"):
        check(ScoreConfig(agreement=EncoderAgreementConfig(model="/nowhere")))
    check(ScoreConfig(agreement=EncoderAgreementConfig(model=str(bert))))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    with pytest.raises(ConfigError, match="embed: needs torch: pip install"):
        check(ScoreConfig(), EmbedConfig(model="openai/clip-vit-base-patch32"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_config_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"embed.device: cuda asked for"):
        load_dual_encoder(EmbedConfig(model=str(folder), device="cuda"))
