"""Published weights as a start: both encoders of a `TCJEPA` take them, the predictor starts anew.

The predictor is never taken over, though the original release has one: the same weights are
published by timm and Hugging Face without it, and what a name gives must not depend on which of
them was named. A text-conditioned predictor also has parts that no release knows.

Positions are no weights here: they are fixed sine-cosine vectors of the patch grid, so those of the
source are only compared with what they must be, and weights trained on one grid start another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.settings import ConfigError
from tcjepa.model.encoder import Encoder, EncoderShape, sincos_positions
from tcjepa.model.learner import Learner
from tcjepa.model.weight_sources import OpenRun, Tensors, Weights, read_weights

#: Heads and poolers that a source may have and no JEPA encoder has; left out, and said so.
_LEFT_OUT = ("head.", "fc.", "classifier.", "pooler.", "embeddings.mask_token")
#: Sine-cosine vectors lie in [-1, 1]; this tells them from learned ones, after bfloat16 too.
_POSITION_TOLERANCE = 0.01
_MOST_LISTED = 6


def initialise_encoders(
    model: Learner, name: str, say: Callable[[str], None], open_run: OpenRun
) -> None:
    """Give a model's encoder, and its target encoder if any, published weights `name`, in place.

    `name` is what `model.init` may be; `open_run` opens our own runs and checkpoints. Where the
    source has a target encoder of its own that is taken over too, otherwise it starts as a copy. A
    baseline, which has one encoder, starts from the source's target encoder, if it has one.
    Raises `ConfigError` if the source cannot be read, or unless every tensor of it and every tensor
    of the encoder is accounted for.
    """
    weights = read_weights(name, open_run)
    kept = weights.encoder if weights.target is None else weights.target
    encoder, left_out = accounted(
        model.encoder, weights, weights.encoder if model.has_target else kept
    )
    target = encoder
    if model.has_target and weights.target is not None:
        target, _ = accounted(model.kept_encoder, weights, weights.target)
    for module, tensors in ((model.encoder, encoder), (model.kept_encoder, target)):
        module.vit.load_state_dict(tensors)
    own = "its own target encoder" if weights.target is not None else "a copy as target encoder"
    rest = f", with {own}; a new predictor" if model.has_target else ""
    say(f"model.init: {len(encoder)} tensors of {weights.origin}{rest}")
    if left_out:
        say(f"model.init: left out {_listed(left_out)}, which this encoder has no use for")
    grid = weights.encoder["pos_embed"].shape[-2]
    if grid != model.encoder.shape.patches:
        say(f"model.init: positions computed for {model.encoder.shape.patches} patches, not {grid}")
    epsilon = model.encoder.vit.norm.eps
    if weights.epsilon is not None and weights.epsilon != epsilon:
        say(f"model.init: LayerNorm epsilon is {epsilon} here and was {weights.epsilon} there")


def accounted(encoder: Encoder, weights: Weights, tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Return what an encoder's `vit` can load strictly, and the names that are left out.

    Raises `ConfigError` that lists every tensor that is missing, unexpected, of another shape or
    not finite, and says which settings would make them fit.
    """
    expected: dict[str, Tensor] = encoder.vit.state_dict()
    left_out = sorted(k for k in tensors.keys() - expected.keys() if k.startswith(_LEFT_OUT))
    found = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    positions = found.get("pos_embed")
    shared = (found.keys() & expected.keys()) - {"pos_embed"}
    wrong_shapes = [
        f"{name} {_size(found[name])}, not {_size(expected[name])}"
        for name in sorted(shared)
        if found[name].shape != expected[name].shape
    ]
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": wrong_shapes,
        "not finite": sorted(n for n in shared if not bool(found[n].isfinite().all())),
    }
    lines = [f"{kind}: {_listed(names)}" for kind, names in problems.items() if names]
    lines += _other_settings(encoder, weights, found)
    if positions is not None and not lines:
        lines += _position_problems(encoder.shape, positions)
    if lines:
        raise ConfigError(
            f"model.init: {weights.origin} does not fit model.encoder:\n"
            + "\n".join(f"  {line}" for line in lines)
        )
    return {**found, "pos_embed": expected["pos_embed"]}, left_out


def _other_settings(encoder: Encoder, weights: Weights, found: Tensors) -> list[str]:
    """Return lines on settings that differ from the source's, tensors of another shape or not."""
    theirs, ours = _settings(found), _settings(encoder.vit.state_dict())
    if weights.heads is not None:  # no tensor's shape tells the number of heads
        theirs["num_heads"], ours["num_heads"] = weights.heads, encoder.shape.heads
    changed = {
        key: value
        for key, value in theirs.items()
        if not math.isclose(value, ours.get(key, value), rel_tol=1e-3)
    }
    lines = []
    if changed:
        wanted = ", ".join(f"{key}: {value:g}" for key, value in changed.items())
        lines.append(f"set model.encoder_kwargs {{{wanted}}}, or the model.encoder that has them")
    if weights.activation not in (None, "gelu"):
        lines.append(f"its activation is {weights.activation}; this encoder has gelu only")
    return lines


def _settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the `encoder_kwargs` that tensors under timm's names imply."""
    settings: dict[str, Any] = {}
    patch = tensors.get("patch_embed.proj.weight")
    if patch is not None and patch.ndim == 4:
        settings |= {"patch_size": patch.shape[-1], "embed_dim": patch.shape[0]}
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    if blocks:
        settings["depth"] = len(blocks)
    hidden = tensors.get("blocks.0.mlp.fc1.weight")
    if hidden is not None and hidden.ndim == 2:
        settings["mlp_ratio"] = hidden.shape[0] / hidden.shape[1]
    return settings


def _position_problems(shape: EncoderShape, positions: Tensor) -> list[str]:
    """Return what is wrong with a source's positions (1, P', D): they must be fixed sine-cosine."""
    count = positions.shape[-2] if positions.ndim > 1 else 0
    side = math.isqrt(count)
    grids = [shape.grid] if count == shape.patches else []
    if side and side * side == count:
        grids.append((side, side))
    for grid in grids:
        fixed = sincos_positions(grid, shape.width)
        given = positions.float().reshape(-1, positions.shape[-1])
        if given.shape == fixed.shape and torch.allclose(
            given, fixed, rtol=0, atol=_POSITION_TOLERANCE
        ):
            return []
    return [
        f"its positions {_size(positions)} are not the fixed sine-cosine vectors of a "
        f"{side} x {side} grid but learned ones or those of another grid, and this encoder's are "
        "fixed; take weights of an I-JEPA"
    ]


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


__all__ = ["accounted", "initialise_encoders"]
