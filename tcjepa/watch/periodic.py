"""What a run does now and then besides training: probe its encoder, draw attention images."""

from __future__ import annotations

from collections.abc import Collection

from tcjepa.config import TrainConfig
from tcjepa.data.index import ShardIndex
from tcjepa.model.jepa import TCJEPA
from tcjepa.model.learner import Learner
from tcjepa.text import TextEncoder
from tcjepa.train.distributed import World
from tcjepa.train.inputs import InputMaker
from tcjepa.train.log import RunLog
from tcjepa.watch import snapshots
from tcjepa.watch.pictures import pixels
from tcjepa.watch.probe import TrainingProbe


class Periodic:
    """The probe and the attention images of a run, as far as its config asks for them.

    Raises `ConfigError` at construction if the probe's images are missing.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        index: ShardIndex,
        text: TextEncoder | None,
        inputs: InputMaker,
    ) -> None:
        self._run, self._is_main = config.run, world.is_main
        self._probe = TrainingProbe(config, world.device) if config.train.probe_every else None
        self._pictures: snapshots.AttentionImages | None = None
        if config.train.attention_every and text is not None:
            self._pictures = snapshots.AttentionImages(
                config, index, text, inputs.encode, world.device
            )

    def measure(
        self, due: Collection[str], model: Learner, step: int, log: RunLog
    ) -> dict[str, float]:
        """Return the probe's readings and draw the images, if due after `step` optimizer steps.

        Every rank calls this and computes the same, since a sharded model answers only to all of
        them; the first one writes.
        """
        readings: dict[str, float] = {}
        if "probe" in due and self._probe is not None:
            readings |= self._probe.measure(model.kept_encoder)
        if "attention" in due and self._pictures is not None:
            assert isinstance(model, TCJEPA)  # the config sees to it
            for uid, png in self._pictures.draw(model, step, self._is_main):
                snapshots.save(self._run, step, uid, png)
                log.image(step, f"attention/{uid[:12]}", pixels(png))
        return readings


__all__ = ["Periodic"]
