"""A probe while a run trains: what the target encoder's pooled features know of some labels.

A JEPA's loss says little about its features, because its targets move; a probe does. It reads at
most `train.probe_images` images of each of `evaluate`'s two sides, so its cost is bounded, and it
changes nothing of the training: not its losses, not its random numbers.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from tcjepa.config import TrainConfig
from tcjepa.evaluate.classification import classify
from tcjepa.evaluate.config import SweepConfig
from tcjepa.evaluate.features import extract
from tcjepa.evaluation import LabelledSet, evaluation_sets

#: The quick linear probe: few settings and passes, as it is repeated; for figures to report use
#: `python -m tcjepa evaluate`.
QUICK = SweepConfig(learning_rates=[3e-3, 1e-2, 1e-1], weight_decays=[0.0], epochs=20)


class TrainingProbe:
    """Probes one encoder after another on the same labelled images.

    Raises `ConfigError` at construction if the images that the config's section `evaluate` names
    are missing.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self._images, self._device = config.train.probe_images, device
        self._sets: tuple[LabelledSet, LabelledSet] = evaluation_sets(config.evaluate, config.data)
        self._config = config.evaluate.model_copy(
            update={"tasks": list(config.train.probe_tasks), "linear": QUICK, "seeds": 1}
        )

    def measure(self, encoder: nn.Module) -> dict[str, float]:
        """Return test accuracies in [0, 1], such as `probe/knn_colour`, of an encoder.

        Every rank calls this and does the same: a sharded encoder gathers its weights in step.
        Raises `ValueError` for labels that the images lack and features that are not finite.
        """
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.autocast(self._device.type, enabled=False):
            train, test = (
                extract(
                    encoder,
                    # Inline: starting worker processes takes longer than reading so few images.
                    dataclasses.replace(side, config=side.config.model_copy(update={"workers": 0})),
                    self._device,
                    max_images=self._images,
                )
                for side in self._sets
            )
            found = classify(train, test, self._config, self._device, [])
        readings = {f"probe/knn_{name}": result.value for name, result in found.knn.items()}
        return readings | {
            f"probe/linear_{name}": result.accuracy.value for name, result in found.linear.items()
        }


__all__ = ["QUICK", "TrainingProbe"]
