"""Settings of an evaluation; defaults follow the papers named in each field."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from pipeline.settings import Settings

Task = Literal["linear", "few_shot", "knn", "segmentation", "spectrum", "agreement", "grounding"]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
#: Those that learn from labels, and so are not to be tested on what they learned.
LEARNING_TASKS: Final = frozenset({"linear", "few_shot", "knn", "segmentation"})


class SweepConfig(Settings):
    """The grid of AdamW settings of a linear classifier, and how long each one trains."""

    learning_rates: list[Positive] = Field(
        [3e-4, 1e-3, 3e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1, 1.0],
        min_length=1,
        description="peak learning rates swept",
    )
    weight_decays: list[NonNegative] = Field(
        [0.0, 0.01, 0.1, 1.0], min_length=1, description="decoupled weight decays swept"
    )
    epochs: int = Field(50, ge=1, description="passes over the training features")
    batch: int = Field(256, ge=1, description="minibatch [images]")
    validation_share: float = Field(
        0.2, gt=0, lt=1, description="share of the training images that chooses the setting"
    )


class KnnConfig(Settings):
    """Weighted kNN; defaults are DINO's (Caron et al. 2021)."""

    k: int = Field(20, ge=1, description="neighbours that vote")
    temperature: float = Field(0.07, gt=0, description="vote weight is exp(cosine / temperature)")


class SegmentationConfig(Settings):
    """Linear segmentation of patch features."""

    sweep: SweepConfig = Field(
        SweepConfig(
            learning_rates=[1e-2, 3e-2, 1e-1], weight_decays=[0.0, 0.1], epochs=8, batch=16
        ),
        description="grid of the patch classifier",
    )
    max_train: int = Field(
        2000, ge=2, description="training images; their patch features are held in memory [images]"
    )
    max_test: int = Field(2000, ge=1, description="test images, likewise [images]")


class EvaluateConfig(Settings):
    """What to measure on frozen features, and how."""

    labels: list[str] = Field(
        [], description="what to classify: index columns or meta keys; [] takes a folder's classes"
    )
    tasks: list[Task] = Field(
        ["linear", "few_shot", "knn", "segmentation", "spectrum", "agreement", "grounding"],
        min_length=1,
        description="what to measure; agreement (prediction error with right, swapped and no "
        "captions) and grounding (is a patch most like a word where the word's object is) need "
        "captioned shards and a model that reads captions",
    )
    image_size: int = Field(224, ge=16, description="side of the centre crop [pixels]")
    batch: int = Field(128, ge=1, description="images per encoder call [images]")
    max_train: int | None = Field(None, ge=2, description="first images of the training set to use")
    max_test: int | None = Field(None, ge=1, description="first images of the test set to use")
    seeds: int = Field(3, ge=1, description="probe repetitions: initial weights, order, split")
    few_shot: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.01, 0.1],
        description="the linear probe again, with the labels of this much of each class [share]",
    )
    lidar_images: int = Field(
        256, ge=0, description="test images for LiDAR, ten crops of each; 0: leave it out [images]"
    )
    linear: SweepConfig = Field(SweepConfig(), description="grid of the linear probe")
    knn: KnnConfig = Field(KnnConfig(), description="nearest neighbours")
    segmentation: SegmentationConfig = Field(SegmentationConfig(), description="patch classifier")


__all__ = ["EvaluateConfig", "KnnConfig", "SegmentationConfig", "SweepConfig", "Task"]
