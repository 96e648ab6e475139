"""From a run that was evaluated to the picture of where the words of its test images point."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.settings import ConfigError
from pipeline.storage import Directory
from tcjepa.config import TrainConfig, cached_in_run, stored
from tcjepa.evaluate.grounding import GroundingResult, halves
from tcjepa.evaluate.mention_maps import READINGS, mention_maps
from tcjepa.evaluate.mentions import Mention, find_mentions
from tcjepa.evaluate.report import EvaluationResult
from tcjepa.evaluation import TRAINED, captioned_images
from tcjepa.model.jepa import TCJEPA
from tcjepa.text import open_text_encoder
from tcjepa.train import checkpoint
from tcjepa.watch.pointing import MOST_WORDS, PointedImage, PointedWord, draw_pointing
from tcjepa.watch.runfiles import EVALUATION_FILE

#: Test images looked at for some with words; at a word or two an image far more than are drawn.
_READ: Final = 200


def picture(run: Path, images: int, say: Callable[[str], None]) -> bytes:
    """Return a PNG of the first test images of a run and the patches that their words point at.

    Nothing is picked: the images are the first ones, in the order of the index, of the half that
    grounding was tested on, that have a word; a row shows the words of the caption that names most
    objects. Maps are read as the evaluation chose. Raises `ConfigError` if the run's newest
    checkpoint was not evaluated with the task `grounding`.
    """
    found = checkpoint.resolve(run, say)
    result, settings = _evaluated(run, found.step)
    section = {**settings, "captioned_images": min(_READ, settings["captioned_images"])}
    own = stored({**found.config, "evaluate": section}, run)
    config = cached_in_run(TrainConfig.model_validate(own))
    text = open_text_encoder(config.text)
    model = TCJEPA(config.model, text.width)
    model.load_state_dict(found.model)
    test = captioned_images(config)
    grid = model.encoder.shape.grid
    chosen = _of_one_caption(find_mentions(test, text.spans_of, grid).found, halves(test.uids))
    chosen = dict(list(chosen.items())[:images])
    mentions = [mention for own in chosen.values() for mention in own]
    device = torch.device("cpu")
    maps = mention_maps(model, text, test, mentions, device, batch=config.evaluate.batch)
    of_word = iter(maps[:, READINGS.index(result.reading)])
    drawn = [
        PointedImage(
            np.ascontiguousarray(test.images[image].permute(1, 2, 0).numpy()),
            test.captions[image][own[0].caption]["text"],
            [
                PointedWord(word.category, next(of_word).reshape(grid), word.patches.reshape(grid))
                for word in own
            ],
        )
        for image, own in chosen.items()
    ]
    return draw_pointing(drawn, _title(result))


def _title(result: GroundingResult) -> str:
    compared = f"chance {100 * result.chance.value:.0f}%"
    if result.other is not None:
        compared += f", on another object {100 * result.other.value:.0f}%"
    hits = f"{100 * result.pointing.value:.0f}% of {result.words} words hit"
    return f"{hits} ({compared})   {result.reading}"


def _of_one_caption(
    mentions: Sequence[Mention], held: NDArray[np.bool_]
) -> dict[int, list[Mention]]:
    """Return, by image of the test half, each name of its caption that has most of them, once."""
    named: dict[int, dict[int, dict[str, Mention]]] = {}
    for mention in mentions:
        if not held[mention.image]:
            of_caption = named.setdefault(mention.image, {}).setdefault(mention.caption, {})
            of_caption.setdefault(mention.category, mention)
    return {
        image: [*max(own.values(), key=len).values()][:MOST_WORDS] for image, own in named.items()
    }


def _evaluated(run: Path, step: int) -> tuple[GroundingResult, dict[str, Any]]:
    directory = Directory(run)
    content = directory.read_json(EVALUATION_FILE) if directory.exists(EVALUATION_FILE) else None
    if content is not None and content["step"] == step:
        result = EvaluationResult.from_json(json.dumps(content[TRAINED])).grounding
        if result is not None:
            return result, content["settings"]
    raise ConfigError(
        f"{run} holds no grounding of its newest checkpoint; run python -m tcjepa evaluate {run} "
        '"evaluate.tasks=[grounding]" first, on shards with annotations'
    )


__all__ = ["picture"]
