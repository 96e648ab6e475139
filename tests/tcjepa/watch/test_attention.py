"""Patch-word maps: every patch, in both roles, against one plain forward pass per tile."""

from __future__ import annotations

import pytest
import torch

from tcjepa.masks import Masks
from tcjepa.model.config import ModelConfig, PredictorConfig, TextConditioning
from tcjepa.model.jepa import TCJEPA
from tcjepa.text import HashedEncoder, TextBatch, TextConfig
from tcjepa.watch.attention import word_maps

GRID = 6
CAPTIONS = [["a red star", "blue"], ["a ring"], []]


def make_model(conditioning: str = "word_attention", share_context: bool = False) -> TCJEPA:
    torch.manual_seed(0)
    kwargs = {"img_size": 24, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    config = ModelConfig(
        encoder_kwargs=kwargs,
        predictor=PredictorConfig(width=16, depth=3, share_context=share_context),
        text=TextConditioning(
            conditioning=conditioning,
            sparsity="rectified" if conditioning == "word_attention" else "none",
        ),
    )
    return TCJEPA(config, 12)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def text() -> TextBatch:
    return HashedEncoder(TextConfig(width=12)).encode(CAPTIONS, torch.device("cpu"))


@pytest.mark.parametrize("share_context", [False, True])
@pytest.mark.parametrize("layer", [None, -1, 0])
def test_each_patch_is_the_target_of_its_own_tile_and_context_of_all_others(
    images: torch.Tensor, text: TextBatch, layer: int | None, share_context: bool
) -> None:
    model = make_model(share_context=share_context)
    number = torch.arange(GRID * GRID).view(GRID, GRID)
    tiles = [number[a : a + 3, b : b + 3].flatten() for a in (0, 3) for b in (0, 3)]
    target = torch.zeros(3, 2, 3, GRID * GRID)
    context: list[list[torch.Tensor]] = [[] for _ in range(GRID * GRID)]
    model.eval()
    for tile in tiles:
        others = torch.tensor([p for p in range(GRID * GRID) if p not in tile.tolist()])
        masks = Masks(others.expand(3, -1), tile.expand(3, 1, -1))
        with torch.no_grad():
            found = model.predictor(model.encoder(images, masks.context), masks, text)[1]
        chosen = found if layer is None else [found[layer]]
        cosine = sum(each.cosine for each in chosen) / len(chosen)
        for place, patch in enumerate([*others.tolist(), *tile.tolist()]):
            if patch in tile:
                target[..., patch] = cosine[..., place]
            else:
                context[patch].append(cosine[..., place])
    seen = torch.stack([torch.stack(each).mean(0) for each in context], dim=-1)
    for role, wanted in (("target", target), ("context", seen)):
        maps = word_maps(model, images, text, tokens=role, layer=layer)
        valid = maps.valid.unsqueeze(-1)
        torch.testing.assert_close(maps.cosine, wanted * valid, rtol=1e-4, atol=1e-5)
    assert maps.grid == (GRID, GRID)


def test_absent_words_captions_and_images_without_any_stay_zero(
    images: torch.Tensor, text: TextBatch
) -> None:
    maps = word_maps(make_model(), images, text)
    assert maps.valid.sum((1, 2)).tolist() == [4, 2, 0]
    assert not maps.cosine[~maps.valid].any()
    assert not maps.weights[2].any()
    present = maps.weights.sum(2)[:2, 0]
    torch.testing.assert_close(present, torch.ones_like(present))  # shares of attention


def test_a_map_belongs_to_its_word_whatever_the_other_images(
    images: torch.Tensor, text: TextBatch
) -> None:
    model = make_model()
    together = word_maps(model, images, text).cosine
    alone = HashedEncoder(TextConfig(width=12)).encode([["a ring"]], torch.device("cpu"))
    single = word_maps(model, images[1:2], alone).cosine
    torch.testing.assert_close(together[1, 0, :2], single[0, 0, :2], rtol=1e-4, atol=1e-5)


def test_a_model_in_training_is_left_as_it_was(images: torch.Tensor, text: TextBatch) -> None:
    model = make_model().train()
    state = torch.random.get_rng_state()
    word_maps(model, images, text)
    assert model.training
    assert not model.target_encoder.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_grids_that_do_not_divide_are_tiled_unevenly(images: torch.Tensor, text: TextBatch) -> None:
    maps = word_maps(make_model(), images, text, tokens="target", tiles=(4, 5))
    assert maps.cosine[maps.valid].abs().gt(0).all()


def test_predictors_without_words_are_refused(images: torch.Tensor, text: TextBatch) -> None:
    with pytest.raises(ValueError, match="attends to the words"):
        word_maps(make_model("caption_attention"), images, text)
    with pytest.raises(ValueError, match="tiles"):
        word_maps(make_model(), images, text, tiles=(7, 1))
