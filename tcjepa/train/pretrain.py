"""The pretraining job: join the ranks, start or resume the run, train, evaluate."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pipeline.storage import Directory
from tcjepa.config import TrainConfig
from tcjepa.data.captioned import check_captioned
from tcjepa.evaluate.tally import TALLIES_FILE, to_bytes
from tcjepa.evaluation import check_evaluable, evaluate_checkpoint, table, to_json
from tcjepa.train import checkpoint, distributed, hardware
from tcjepa.train.checkpoint import Checkpoint
from tcjepa.train.distributed import World
from tcjepa.train.loop import Ending, train
from tcjepa.train.plan import summary
from tcjepa.train.run import EVALUATION_FILE, WRITTEN, Run

Say = Callable[[str], None]


def pretrain(config: TrainConfig, say: Say, fresh: bool = False) -> Ending:
    """Train the run that `config` describes, from its newest checkpoint if it has one.

    `fresh` sets an earlier run's files aside and starts over. After the last step the encoder is
    evaluated, if `train.evaluate_after`. Raises `ConfigError` for what the
    config gets wrong and `DivergedError` where the loss stops being finite.
    """
    world = distributed.start(config.train.device)
    tell = say if world.is_main else _say_nothing
    ending = _train(config, world, tell, fresh)
    distributed.wait(world)
    # Not after an error: NCCL's group is left together, and the other ranks may wait elsewhere.
    distributed.stop()
    if world.is_main and config.train.evaluate_after and ending is Ending.FINISHED:
        found = checkpoint.latest(Directory(config.run), say)
        if found is not None:
            evaluate_found(found, config)
    return ending


def evaluate_found(found: Checkpoint, config: TrainConfig) -> None:
    """Evaluate a checkpoint, print the table, and keep results and tallies in the run's directory.

    `evaluation.json` is of the newest checkpoint; the results of an older one have its name in
    theirs. They say what they were made on, and the time that training and evaluation took
    [minutes]. `config` is the checkpoint's, but for the keys that an evaluation may change.
    """
    device, began = distributed.pick_device(config.train.device), time.monotonic()
    results, tallies = evaluate_checkpoint(found, config, device)
    print(table(results, config))
    settings = config.evaluate.model_dump(mode="json")
    content = {
        **to_json(results, found.step),
        "settings": settings,
        "hardware": hardware.described(device),
        "minutes": found.minutes + (time.monotonic() - began) / 60,
    }
    directory = Directory(config.run)
    newest = checkpoint.names(directory)[-1:] in ([], [checkpoint.name_of(found.step)])
    name, tallies_name = EVALUATION_FILE, TALLIES_FILE
    if not newest:
        step = checkpoint.name_of(found.step)
        name, tallies_name = f"evaluation-{step}.json", f"tallies-{step}.npz"
    directory.write_bytes(tallies_name, to_bytes(tallies))  # before what says that all is there
    directory.write_json(name, content)


def _train(config: TrainConfig, world: World, say: Say, fresh: bool) -> Ending:
    if fresh and world.is_main:
        aside = checkpoint.set_aside(Directory(config.run), WRITTEN)
        if aside:
            say(f"the earlier run's files are now in {Path(config.run) / aside}")
    if world.is_main and (config.train.evaluate_after or config.train.probe_every):
        check_evaluable(config.evaluate, config.data)
    distributed.wait(world)
    run = Run(config, world, say)
    if run.is_done:
        say(f"{config.run} is done: all {run.schedule.steps} steps. --fresh starts over")
        return Ending.FINISHED
    if world.is_main and config.reads_captions:
        check_captioned(run.index, config.data)
    distributed.wait(world)
    say(summary(run))
    ending = train(run)
    if ending is not Ending.FINISHED:
        reason = "a signal" if ending is Ending.INTERRUPTED else "train.max_minutes"
        say(
            f"stopped by {reason} after step {run.step} of {run.schedule.steps}; the state is "
            "saved, and the same command goes on from here"
        )
    return ending


def _say_nothing(line: str) -> None:
    del line
