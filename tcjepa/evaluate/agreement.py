"""Image-to-caption agreement: does an image's own text make its hidden patches easier to predict?

Per test image the prediction error is taken three times under the same masks: with its own
captions, with those of another image, and with none. The text gain is the error with swapped
captions minus the error with the right ones. A predictor that ignores text has a gain of 0; one
that was taught by captions of other images has, too.

The error is Eq. 1 of the paper whatever was minimised: mean over target patches of the L2 norm of
prediction minus layer-normed target, so it is of order √D. Letters as in docs/architecture.md; n
images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tcjepa import keyed
from tcjepa.evaluate.captioned import CaptionedImages, measured
from tcjepa.evaluate.features import Prepare, frozen
from tcjepa.evaluate.measure import Measure
from tcjepa.evaluate.tally import Tally
from tcjepa.masks import MaskConfig, Masks, sample_masks
from tcjepa.model.encoder import gather_patches
from tcjepa.model.jepa import TCJEPA, normalise
from tcjepa.model.precision import wide
from tcjepa.text import TextBatch, TextEncoder

#: Images whose masks are drawn together. A constant, so that `evaluate.batch` changes no result:
#: the reference sampler cuts contexts to the shortest of a batch.
_DRAWN: Final = 64
RIGHT, SWAPPED = "prediction error, right captions", "prediction error, swapped captions"
NONE, GAIN = "prediction error, no captions", "text gain"


class NoAgreementError(ValueError):
    """Agreement cannot be measured here; the message says why, for a note."""


@dataclass(frozen=True)
class AgreementResult:
    """Mean prediction errors of test images that have captions, and the text gain.

    In the unit of Eq. 1 (layer-normed features), not shares; errors are standard errors over
    images, that of `gain` of the per-image difference.
    """

    right: Measure
    swapped: Measure
    none: Measure
    gain: Measure
    images: int


def agree(
    model: TCJEPA,
    text: TextEncoder,
    test: CaptionedImages,
    masks: MaskConfig,
    device: torch.device,
    *,
    batch: int,
    prepare: Prepare = normalise,
) -> tuple[AgreementResult, dict[str, Tally]]:
    """Measure a text-conditioned model's agreement on test images; also tallies by measure's name.

    Images without a caption are left out: they have nothing to swap. `batch` [images] go through
    the model at a time. Raises `NoAgreementError` if fewer than two images have captions.
    """
    rows = [row for row, captions in enumerate(test.captions) if captions]
    if len(rows) < 2:
        raise NoAgreementError(f"{len(rows)} test images have captions, so none can be swapped")
    shown = test.only(rows)
    errors = prediction_errors(model, text, shown, masks, device, batch=batch, prepare=prepare)
    if not np.isfinite(errors).all():
        raise ValueError("predictions are not finite: the model has diverged")
    right, swapped, none = errors.T
    values = {RIGHT: right, SWAPPED: swapped, NONE: none, GAIN: swapped - right}
    tallies = {name: Tally.of_values(shown.uids, own) for name, own in values.items()}
    result = AgreementResult(
        right=measured(tallies[RIGHT]),
        swapped=measured(tallies[SWAPPED]),
        none=measured(tallies[NONE]),
        gain=measured(tallies[GAIN]),
        images=len(rows),
    )
    return result, tallies


@torch.no_grad()
def prediction_errors(
    model: TCJEPA,
    text: TextEncoder,
    test: CaptionedImages,
    masks: MaskConfig,
    device: torch.device,
    *,
    batch: int,
    prepare: Prepare = normalise,
) -> NDArray[np.float64]:
    """Return errors (n, 3) of test images: with right, swapped and no captions.

    All targets and contexts are computed once and serve the three predictions.
    """
    partner = derangement(len(test))
    found = []
    with frozen(model):
        for part, own_masks in _parts(len(test), masks, model.encoder.shape.grid, batch):
            own, others = list(part), [int(partner[number]) for number in part]
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                images = prepare(test.images[own].to(device))
                both = text.encode([*test.texts(own), *test.texts(others)], device)
                right, swapped = both.caption[: len(own)], both.caption[len(own) :]
                texts = [
                    TextBatch(both.words, both.valid, caption)
                    for caption in (right, swapped, torch.full_like(right, -1))
                ]
                found.append(_errors(model, images, own_masks.to(device), texts).cpu())
    return np.asarray(torch.cat(found).double().numpy())


def derangement(count: int) -> NDArray[np.int64]:
    """Return for each of at least two images whose captions it is shown (count,): never its own.

    A single cycle through all of them in an order drawn once and for all, so that whatever orders
    the test set (classes, parts) does not make partners alike.
    """
    order = keyed.permutation(keyed.key("swapped captions"), count)
    partner = np.empty(count, np.int64)
    partner[order] = np.roll(order, 1)
    return partner


def _parts(
    count: int, config: MaskConfig, grid: tuple[int, int], batch: int
) -> Iterator[tuple[range, Masks]]:
    """Yield image numbers, at most `batch` at a time, and their masks: a function of the number."""
    for step, first in enumerate(range(0, count, _DRAWN)):
        drawn = sample_masks(config, grid, _DRAWN, seed=0, step=step)
        last = min(first + _DRAWN, count)
        for start in range(first, last, batch):
            part = range(start, min(start + batch, last))
            own = slice(part.start - first, part.stop - first)
            yield part, Masks(drawn.context[own], drawn.targets[own])


def _errors(model: TCJEPA, images: Tensor, masks: Masks, texts: Sequence[TextBatch]) -> Tensor:
    """Return Eq. 1's mean error per image and text, (B, len(texts))."""
    B, M, T = masks.targets.shape
    target_BPD = model.targets(images)
    target_BMTD = gather_patches(target_BPD, masks.targets.flatten(1)).view(B, M, T, -1)
    context_BCD = model.encoder(images, masks.context)
    errors = []
    for text in texts:
        predicted_BMTD = model.predictor(context_BCD, masks, text)[0]
        error_BMT = torch.linalg.vector_norm(wide(predicted_BMTD) - wide(target_BMTD), dim=-1)
        errors.append(error_BMT.mean(dim=(1, 2)))
    return torch.stack(errors, dim=1)


__all__ = [
    "GAIN",
    "NONE",
    "RIGHT",
    "SWAPPED",
    "AgreementResult",
    "NoAgreementError",
    "agree",
    "derangement",
    "prediction_errors",
]
