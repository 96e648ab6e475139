"""A made-up study's result: two noise kinds over rates, and remedies."""

from __future__ import annotations

from tcjepa.ablate.schema import (
    ArmRecord,
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

UNSURE = Estimate(value=None, interval=None, student=None, seeds=2)


def estimate(value: float, half: float) -> Estimate:
    def around(width: float) -> tuple[float, float]:
        return round(value - width, 3), round(value + width, 3)

    value = round(value, 3)
    return Estimate(value=value, interval=around(half), student=around(4 * half), seeds=2)


def made_up() -> StudyResult:
    """Return a result with something of everything, and names that need escaping."""
    arms = {"I-JEPA": 40.0, "random weights": 25.0, "rate 0": 60.0}
    arms |= {"swap, rate 0.4": 55.0, "swap, rate 1": 41.0, "<typo> & | rate 1": 58.0}
    values = {"linear colour": 1.0, "mIoU": 0.7}
    return StudyResult(
        name="noise",
        about="What does <noise> do?",
        command="python -m tcjepa ablate noise --report",
        commands=("python -m tcjepa ablate noise",),
        date="2026-01-02T03:04:05+00:00",
        hardware="2 cores (12 runs)",
        minutes=12.5,
        provenance=("code 0123, data 4567; torch 2.11 (12 runs)",),
        settings={"x": "data.noise.rate"},
        x="data.noise.rate",
        seeds=(0, 1),
        measures=(
            Measured(name="linear colour", unit="%", images=200, resampled="seeds and images"),
            Measured(name="mIoU", unit="%", images=200, resampled="seeds and images"),
            Measured(name="text gain", unit="", images=0, resampled="seeds"),
        ),
        arms=(
            ArmRecord(name="random weights", role="random weights"),
            ArmRecord(name="I-JEPA", role="reference", overrides=("model.text=null",)),
            *(ArmRecord(name=name, places=((("rate", 0.4),),)) for name in list(arms)[2:]),
        ),
        curves=(
            CurveRecord(
                name="swap", points=((0, "rate 0"), (0.4, "swap, rate 0.4"), (1, "swap, rate 1"))
            ),
            CurveRecord(name="<typo> & |", points=((0, "rate 0"), (1, "<typo> & | rate 1"))),
        ),
        trials=tuple(
            TrialRecord(
                arm=name,
                seed=seed,
                values={m: round(k * v + seed, 3) for m, k in values.items()}
                | ({"text gain": round(0.01 * v, 3)} if "rate" in name else {}),
                training={"prediction loss": 0.5},
            )
            for seed in (0, 1)
            for name, v in arms.items()
        ),
        missing=(
            MissingRecord(arm="swap, rate 1", seed=2, begun=True, last_words="<b>killed</b>"),
        ),
        estimates={
            m: {name: estimate(k * v + 0.5, 0.8) for name, v in arms.items()}
            for m, k in values.items()
        }
        | {"text gain": {n: estimate(0.01 * v, 0.003) for n, v in arms.items() if "rate" in n}},
        contrasts=(
            ContrastRecord(
                name="rate 0 − I-JEPA",
                better="rate 0",
                worse="I-JEPA",
                measures={"linear colour": estimate(20, 1.1), "mIoU": estimate(14, 5)},
            ),
        ),
        slopes=(SlopeRecord(curve="swap", measures={"linear colour": estimate(-19, 2)}),),
        recoveries=(
            RecoveryRecord(
                name="40% swapped",
                clean="rate 0",
                noisy="swap, rate 1",
                losses={
                    "linear colour": estimate(19, 2),
                    "mIoU": estimate(0.1, 2),
                    "text gain": estimate(0.19, 0.05),
                },
                shares={
                    "swap, rate 0.4": {
                        "linear colour": estimate(0.7, 0.1),
                        "mIoU": UNSURE,
                        "text gain": estimate(0.72, 0.2),
                    }
                },
            ),
        ),
    )
