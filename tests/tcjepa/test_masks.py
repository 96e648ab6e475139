import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.settings import ConfigError, build
from tcjepa import masks as masks_module
from tcjepa.masks import MaskConfig, Masks, sample_masks, token_counts

UNIFORM = MaskConfig()
REFERENCE = MaskConfig(sampler="reference")


def _disjoint(masks: Masks) -> bool:
    return not (masks.context[:, :, None] == masks.targets.flatten(1)[:, None, :]).any()


def _connected(cells: Tensor, width: int) -> bool:
    todo, seen = [int(cells[0])], set()
    own = set(cells.tolist())
    while todo:
        cell = todo.pop()
        if cell in seen:
            continue
        seen.add(cell)
        row, column = divmod(cell, width)
        near = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        todo += [r * width + c for r, c in near if 0 <= c < width and r * width + c in own]
    return seen == own


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(8, 16), st.integers(8, 16)),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(0, 2**40),
    st.integers(0, 10**7),
)
def test_uniform_masks_keep_their_promises(grid, batch, targets, seed, step):
    config = MaskConfig(targets=targets)
    counts = token_counts(config, grid)
    masks = sample_masks(config, grid, batch, seed, step)
    assert masks.context.shape == (batch, counts.context)
    assert masks.targets.shape == (batch, targets, counts.target)
    assert masks.context.dtype == masks.targets.dtype == torch.int64
    everything = torch.cat([masks.context, masks.targets.flatten(1)], dim=1)
    assert int(everything.min()) >= 0 and int(everything.max()) < grid[0] * grid[1]
    assert (masks.context.diff(dim=1) > 0).all(), "raster order, no repeats"
    assert (masks.targets.diff(dim=2) > 0).all()
    assert _disjoint(masks)
    assert all(_connected(block, grid[1]) for block in masks.targets.flatten(0, 1))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))
def test_uniform_masks_do_not_depend_on_ranks_or_batch(ranks, per_rank, step):
    batch = ranks * per_rank
    whole = sample_masks(UNIFORM, (14, 14), batch, 3, step)
    for rank in range(ranks):
        rows = slice(rank * per_rank, (rank + 1) * per_rank)
        own = sample_masks(UNIFORM, (14, 14), batch, 3, step, rows=rows)
        assert torch.equal(own.context, whole.context[rows])
        assert torch.equal(own.targets, whole.targets[rows])
    larger = sample_masks(UNIFORM, (14, 14), batch + 5, 3, step)
    assert torch.equal(larger.context[:batch], whole.context)


def test_seed_and_step_change_masks():
    draws = [sample_masks(UNIFORM, (14, 14), 4, *key).context for key in [(0, 0), (0, 1), (1, 0)]]
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_uniform_covers_the_grid_evenly_enough():
    masks = sample_masks(UNIFORM, (14, 14), 4000, 0, 0)
    hits = torch.bincount(masks.targets.flatten(), minlength=196).view(14, 14).double()
    for turned in (hits.flip(0), hits.flip(1)):
        assert torch.allclose(hits, turned, rtol=0.35), "no side is favoured"
    assert hits[-1].min() > 0 and hits[:, -1].min() > 0
    context = torch.bincount(masks.context.flatten(), minlength=196)
    assert int(context.min()) > 0


def test_few_draws_are_repeated():
    config, grid = UNIFORM, (14, 14)
    numbers = np.random.default_rng(1).random((5000, masks_module._draws_per_attempt(config)))
    counts = token_counts(config, grid)
    free, _ = masks_module._blocks(config, grid, numbers, counts.target)
    assert (free.sum(1) < counts.context).mean() == pytest.approx(0.1, abs=0.03)


def test_images_that_always_fall_short_get_overlapping_targets(monkeypatch):
    grid, counts = (14, 14), masks_module.TokenCounts(context=150, target=34)
    numbers = np.random.default_rng(1).random(
        (8, masks_module.ATTEMPTS, masks_module._draws_per_attempt(UNIFORM))
    )
    free, targets = masks_module._draw(UNIFORM, grid, numbers, counts)
    assert (free.sum(1) >= 150).all()
    for row in range(8):
        assert not free[row, targets[row].ravel()].any()


def test_too_small_a_grid_names_the_key():
    with pytest.raises(ConfigError, match=r"masks\.min_context.*4x4"):
        sample_masks(UNIFORM, (4, 4), 2, 0, 0)
    with pytest.raises(ConfigError, match=r"masks\.min_context.*3x3"):
        sample_masks(REFERENCE, (3, 3), 2, 0, 0)


@pytest.mark.parametrize("value", [[0.5, 0.2], [0.0, 0.5], [0.5, 1.5]])
def test_bad_scales_are_refused(value):
    with pytest.raises(ConfigError, match="target_scale"):
        build(MaskConfig, {"target_scale": value})


@pytest.mark.parametrize(("batch", "steps", "expected"), [(1, 150, 82), (32, 12, 56), (256, 2, 46)])
def test_reference_context_shrinks_with_the_batch_as_known(batch, steps, expected):
    draws = [sample_masks(REFERENCE, (14, 14), batch, 0, step) for step in range(steps)]
    assert np.mean([masks.context.shape[1] for masks in draws]) == pytest.approx(expected, abs=6)


def test_reference_never_covers_the_last_row_and_column_with_targets():
    cells = torch.cat(
        [sample_masks(REFERENCE, (14, 14), 16, 0, s).targets.flatten() for s in range(10)]
    )
    assert int((cells // 14).max()) == 12 and int((cells % 14).max()) == 12


def test_reference_is_seeded_and_sliced():
    whole = sample_masks(REFERENCE, (14, 14), 6, 0, 3)
    part = sample_masks(REFERENCE, (14, 14), 6, 0, 3, rows=slice(2, 4))
    assert torch.equal(part.context, whole.context[2:4])
    assert _disjoint(whole)
