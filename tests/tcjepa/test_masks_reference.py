"""`masks: reference` against a plain rewriting of I-JEPA's public sampler, as distributions.

Rewritten from the description of facebookresearch/ijepa's `MaskCollator`: one random number sets
scale and aspect of the batch's blocks; a block's corner is drawn from 0 to H - h - 1; a context
block loses the cells of the image's targets, and is drawn again while it keeps no more than
`min_keep`, after every 20 failures with one target fewer in mind; last, all contexts of the batch
are cut to the shortest, from the front of the raster order.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tcjepa.masks import MaskConfig, sample_masks, token_counts

GRID, MIN_KEEP = 14, 10
Cells = list[int]


def _block_size(
    share: float, scale: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int]:
    area = int(GRID * GRID * (scale[0] + share * (scale[1] - scale[0])))
    ratio = aspect[0] + share * (aspect[1] - aspect[0])
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    while height >= GRID:
        height -= 1
    while width >= GRID:
        width -= 1
    return height, width


def _rectangle(size: tuple[int, int], draw: random.Random) -> Cells:
    top, left = draw.randrange(GRID - size[0]), draw.randrange(GRID - size[1])
    return [
        row * GRID + column
        for row in range(top, top + size[0])
        for column in range(left, left + size[1])
    ]


def _plain(batch: int, draw: random.Random) -> tuple[list[Cells], list[list[Cells]]]:
    """Return contexts and targets of a batch."""
    target_size = _block_size(draw.random(), (0.15, 0.2), (0.75, 1.5))
    context_size = _block_size(draw.random(), (0.85, 1.0), (1.0, 1.0))
    contexts, targets = [], []
    for _ in range(batch):
        blocks = [_rectangle(target_size, draw) for _ in range(4)]
        tries = 0
        while True:
            minded = blocks[: max(4 - tries // 20, 0)]
            hidden = {cell for block in minded for cell in block}
            context = [cell for cell in _rectangle(context_size, draw) if cell not in hidden]
            if len(context) > MIN_KEEP:
                break
            tries += 1
        contexts.append(context)
        targets.append(blocks)
    shortest = min(map(len, contexts))
    return [context[:shortest] for context in contexts], targets


def _ours(batch: int, step: int) -> tuple[list[Cells], list[list[Cells]]]:
    masks = sample_masks(MaskConfig(sampler="reference"), (GRID, GRID), batch, 7, step)
    return masks.context.tolist(), masks.targets.tolist()


@pytest.fixture(scope="module", params=[1, 8], ids="batch {}".format)
def drawn(request):
    """Draws of both samplers, `rounds` batches each."""
    batch: int = request.param
    rounds, draw = 1600 // batch, random.Random(11)
    return [_plain(batch, draw) for _ in range(rounds)], [_ours(batch, s) for s in range(rounds)]


def _distance(
    measure: Callable[[list[Cells], list[list[Cells]]], float],
    drawn: tuple[list[tuple[list[Cells], list[list[Cells]]]], ...],
) -> float:
    """Return the two-sample Kolmogorov-Smirnov statistic of one number per batch.

    Scaled by sqrt(n m / (n + m)): then under one distribution it exceeds `UNLIKELY` once in 1,000
    cases at most (Smirnov's limit; numbers with ties exceed it less often).
    """
    plain, ours = (np.array([measure(*batch) for batch in batches]) for batches in drawn)
    values = np.union1d(plain, ours)
    shares = [np.searchsorted(np.sort(x), values, "right") / len(x) for x in (plain, ours)]
    scale = math.sqrt(len(plain) * len(ours) / (len(plain) + len(ours)))
    return float(np.abs(shares[0] - shares[1]).max()) * scale


UNLIKELY = math.sqrt(-math.log(0.001 / 2) / 2)


@pytest.mark.parametrize(
    "measure",
    [
        lambda contexts, targets: len(contexts[0]),
        lambda contexts, targets: len(targets[0][0]),
        lambda contexts, targets: targets[0][0][0] // GRID,
        lambda contexts, targets: targets[0][3][0] % GRID,
        lambda contexts, targets: len({cell for block in targets[0] for cell in block}),
        lambda contexts, targets: contexts[0][0],
        lambda contexts, targets: contexts[0][-1],
    ],
    ids=["context", "target", "top", "left", "covered", "first context", "last context"],
)
def test_one_number_per_batch_is_distributed_alike(drawn, measure):
    assert _distance(measure, drawn) < UNLIKELY


def test_the_shapes_of_target_blocks_are_distributed_alike(drawn):
    """A chi-square test of (height, width), which one random number draws together.

    Its cube root is close to normal (Wilson and Hilferty): 3.09 is exceeded once in 1,000 cases.
    """

    def shapes(batches: list[tuple[list[Cells], list[list[Cells]]]]) -> Counter[tuple[int, int]]:
        blocks = [targets[0][0] for _, targets in batches]
        return Counter((len({c // GRID for c in b}), len({c % GRID for c in b})) for b in blocks)

    plain, ours = map(shapes, drawn)
    kinds = sorted(plain.keys() | ours.keys())
    table = np.array([[plain[kind] for kind in kinds], [ours[kind] for kind in kinds]])
    common = table[:, table.sum(0) >= 10]
    assert common.shape[1] >= 5
    expected = common.sum(1, keepdims=True) * common.sum(0) / common.sum()
    statistic, degrees = ((common - expected) ** 2 / expected).sum(), common.shape[1] - 1
    spread = 2 / (9 * degrees)
    assert ((statistic / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread) < 3.09


@pytest.mark.parametrize("what", ["context", "targets"])
def test_coverage_maps_are_alike(drawn, what):
    """How often a cell is covered: of 196 differences in standard errors, few are large.

    Cells of a block come together, so the errors are taken over batches and not over cells.
    """

    def coverage(batches: list[tuple[list[Cells], list[list[Cells]]]]) -> NDArray[np.float64]:
        maps = np.zeros((len(batches), GRID * GRID))
        for row, (contexts, targets) in enumerate(batches):
            blocks = contexts if what == "context" else [b for image in targets for b in image]
            for block in blocks:
                maps[row, block] += 1 / len(blocks)
        return maps

    plain, ours = map(coverage, drawn)
    error = np.sqrt(plain.var(0) / len(plain) + ours.var(0) / len(ours))
    difference = np.abs(plain.mean(0) - ours.mean(0))
    assert (difference[error == 0] == 0).all()
    assert (difference <= 4.5 * error).all()
    assert (difference > 3 * error).mean() < 0.05


def test_the_tests_above_tell_the_samplers_apart(drawn):
    """The default sampler is not the reference: the same test must say so."""
    plain, ours = drawn
    batch = len(plain[0][0])
    default = []
    for step in range(len(ours)):
        masks = sample_masks(MaskConfig(), (GRID, GRID), batch, 7, step)
        default.append((masks.context.tolist(), masks.targets.tolist()))
    assert _distance(lambda contexts, _: len(contexts[0]), (plain, default)) > 2 * UNLIKELY
    lowest = [max(b[-1] for image in targets for b in image) // GRID for _, targets in default]
    assert max(lowest) == GRID - 1 and not any(
        block[-1] // GRID == GRID - 1 for _, targets in ours for image in targets for block in image
    )


def test_token_counts_of_the_default_are_constant():
    """Whatever batch, seed and step: one shape for the compiler, one task for the model."""
    counts = token_counts(MaskConfig(), (GRID, GRID))
    for batch, seed, step in [(1, 0, 0), (3, 1, 10**6), (64, 2, 5), (256, 3, 1)]:
        masks = sample_masks(MaskConfig(), (GRID, GRID), batch, seed, step)
        assert masks.context.shape == (batch, counts.context)
        assert masks.targets.shape == (batch, 4, counts.target)
