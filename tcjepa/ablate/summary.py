"""From the outcomes of a study's runs to its `result.json`: estimates, differences, shares."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tcjepa.ablate import provenance, results
from tcjepa.ablate.bootstrap import REPLICATES, SEED, Combined, combine, share
from tcjepa.ablate.grids import override, slug
from tcjepa.ablate.intervals import slope_coefficients
from tcjepa.ablate.measurements import Arms, Twins, random_arms, repeated
from tcjepa.ablate.portable import portable
from tcjepa.ablate.results import Outcome
from tcjepa.ablate.schema import (
    MINUS,
    ArmRecord,
    BootstrapRecord,
    ContrastRecord,
    CurveRecord,
    Estimate,
    Measured,
    MissingRecord,
    RecoveryRecord,
    SlopeRecord,
    StudyResult,
    TrialRecord,
)
from tcjepa.ablate.study import StudyConfig, Trial, arms_of, curves_of, remedies_of, trials_of
from tcjepa.ablate.trial import has_begun, last_lines

#: Keys of a study that say where and how fast it runs, not what it is.
_PLACE: Final = frozenset(
    {"run", "shards", "parallel", "threads", "scheduler", "resources", "reduced", "asks"}
)
_LAST_WORDS: Final = 400
#: Overrides that put a trial into the study's directory.
_FOLDERS: Final = ("run=", "data.cache_dir=")


def summarise(
    study: StudyConfig, found: Sequence[Outcome], command: str, replicates: int = REPLICATES
) -> StudyResult:
    """Return the results of a study's finished runs; `command` is what asked for them.

    Raises `ConfigError` if they are of different code or data and `study.mixed` is false.
    """
    made_by = provenance.check_same(study, [outcome.trial for outcome in found])
    twins = random_arms(found)
    arms, images = repeated(found, twins, replicates)
    minutes = [outcome.minutes for outcome in found if outcome.minutes is not None]
    return StudyResult(
        name=Path(study.run).name,
        about=study.asks,
        command=portable(command),
        commands=tuple(portable(line) for line in _commands(study, command)),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=_hardware(found),
        minutes=sum(minutes) if minutes else None,
        provenance=tuple(made_by),
        mixed=study.mixed,
        settings=portable(study.model_dump(mode="json", exclude=set(_PLACE))),
        x=study.x,
        seeds=tuple(study.seeds),
        measures=tuple(_measured(name, images) for name in arms),
        arms=(*_arm_records(study), *(ArmRecord(name=n, role="random weights") for n in twins)),
        curves=tuple(
            CurveRecord(name=curve.name, points=tuple((x, arm.name) for x, arm in curve.points))
            for curve in curves_of(study)
        ),
        trials=(*(_trial(outcome) for outcome in found), *_twin_trials(twins)),
        missing=tuple(_missing(study, found)),
        estimates={
            measure: {name: _estimate(combine([(1.0, name)], own)) for name in own}
            for measure, own in arms.items()
        },
        contrasts=tuple(_contrasts(study, arms)),
        slopes=tuple(_slopes(study, arms)),
        recoveries=tuple(_recoveries(study, arms)),
        bootstrap=BootstrapRecord(replicates=replicates, seed=SEED),
    )


def _commands(study: StudyConfig, command: str) -> list[str]:
    """Return what runs the study again, then what runs each arm alone with the first seed."""
    lines = [re.sub(r" --(report|no-estimate)\b| --part \S+", "", command)]
    for trial in trials_of(study)[: len(arms_of(study))]:
        keys = [item for item in trial.overrides if not item.startswith(_FOLDERS)]
        run = override("run", f"runs/{Path(study.run).name}-{slug(trial.arm.name)}")
        words = ["python", "-m", "tcjepa", "pretrain", study.base, *keys, run]
        lines.append(f"{shlex.join(words)}  # {trial.arm.name}")
    return lines


def _estimate(found: Combined | None) -> Estimate:
    if found is None:
        return Estimate(value=None, interval=None, student=None, seeds=0)
    return Estimate(
        value=found.value,
        interval=found.interval,
        student=found.student,
        seeds=len(found.seeds),
    )


def _contrasts(study: StudyConfig, arms: Arms) -> list[ContrastRecord]:
    records = []
    for better, worse in study.contrasts:
        both = {m: combine([(1.0, better), (-1.0, worse)], own) for m, own in arms.items()}
        found = {m: _estimate(one) for m, one in both.items() if one is not None}
        records.append(
            ContrastRecord(
                name=f"{better}{MINUS}{worse}", better=better, worse=worse, measures=found
            )
        )
    return records


def _slopes(study: StudyConfig, arms: Arms) -> list[SlopeRecord]:
    records = []
    for curve in curves_of(study):
        points = [
            (float(x), arm.name)
            for x, arm in curve.points
            if isinstance(x, (int, float)) and not isinstance(x, bool)
        ]
        found: dict[str, Estimate] = {}
        fewer: dict[str, tuple[int, int]] = {}
        for measure, own in arms.items():
            known = [(x, name) for x, name in points if name in own]
            if len({x for x, _ in known}) < 2:
                continue
            coefficients = slope_coefficients([x for x, _ in known])
            terms = [(c, name) for (_, name), c in zip(known, coefficients, strict=True)]
            fitted = combine(terms, own)
            if fitted is not None:
                found[measure] = _estimate(fitted)
                if len(known) < len(points):
                    fewer[measure] = len(known), len(points)
        if found:
            records.append(SlopeRecord(curve=curve.name, measures=found, points=fewer))
    return records


def _recoveries(study: StudyConfig, arms: Arms) -> list[RecoveryRecord]:
    records = []
    for entry in study.recovery:
        clean, noisy = entry.clean, entry.noisy
        remedies = [arm.name for arm in remedies_of(study, entry)]
        losses: dict[str, Estimate] = {}
        shares: dict[str, dict[str, Estimate]] = {name: {} for name in remedies}
        for measure, own in arms.items():
            lost = combine([(1.0, clean), (-1.0, noisy)], own)
            if lost is None or not results.can_be_lost(measure):
                continue
            losses[measure] = _estimate(lost)
            for name in remedies:
                # On the seeds that all three have: the loss is taken on the same.
                won = combine([(1.0, name), (-1.0, noisy), (0.0, clean)], own)
                same = combine([(1.0, clean), (-1.0, noisy), (0.0, name)], own)
                if won is not None and same is not None:
                    shares[name][measure] = Estimate(**vars(share(won, same)))
        if losses:  # none where `only` or `references` left out one of the two arms
            records.append(
                RecoveryRecord(
                    name=entry.title, clean=clean, noisy=noisy, losses=losses, shares=shares
                )
            )
    return records


def _measured(name: str, images: dict[str, int]) -> Measured:
    return Measured(
        name=name,
        unit="" if results.scale(name) == 1 else "%",
        images=images[name],
        resampled="seeds and images" if images[name] else "seeds",
    )


def _arm_records(study: StudyConfig) -> list[ArmRecord]:
    return [
        ArmRecord(
            name=arm.name,
            overrides=tuple(portable(item) for item in arm.overrides),
            role="grid" if arm.places else "reference",
            places=arm.places,
        )
        for arm in arms_of(study)
    ]


def _trial(outcome: Outcome) -> TrialRecord:
    return TrialRecord(
        arm=outcome.trial.arm.name,
        seed=outcome.trial.seed,
        values=outcome.values,
        training=outcome.training,
        minutes=outcome.minutes,
    )


def _twin_trials(twins: Twins) -> list[TrialRecord]:
    return [
        TrialRecord(
            arm=arm,
            seed=seed,
            values={m: own[seed].random[m] for m, own in firsts.items() if seed in own},
        )
        for arm, firsts in twins.items()
        for seed in sorted({seed for own in firsts.values() for seed in own})
    ]


def _missing(study: StudyConfig, found: Sequence[Outcome]) -> list[MissingRecord]:
    finished = {outcome.trial for outcome in found}
    missing = [(trial, _last_words(trial)) for trial in trials_of(study) if trial not in finished]
    return [
        MissingRecord(
            arm=trial.arm.name,
            seed=trial.seed,
            begun=bool(said) or has_begun(trial),
            last_words=said,
        )
        for trial, said in missing
    ]


def _last_words(trial: Trial) -> str:
    said = last_lines(trial, 3)
    return "" if said.startswith("see ") else str(portable(said))[-_LAST_WORDS:]


def _hardware(found: Sequence[Outcome]) -> str:
    counts = Counter(outcome.hardware or "not recorded" for outcome in found)
    return "; ".join(f"{name} ({count} runs)" for name, count in counts.most_common())


__all__ = ["summarise"]
