"""Settings of the training loop; every published value cites its source.

"Paper" is TC-JEPA's (arXiv 2605.03245), "I-JEPA" its ancestor's released code.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.settings import Settings

#: The batch that the published learning rates belong to (I-JEPA: 16 GPUs x 128 images).
PUBLISHED_BATCH = 2048
#: Warm-up share of the published image-text runs: 10 of 50 epochs (the paper).
PUBLISHED_WARMUP_SHARE = 0.2


#: What trains the encoder: the method, or one of the two baselines it is compared with.
Objective = Literal["jepa", "supervised", "contrastive"]


class TrainSection(Settings):
    """How the model is optimised, watched and saved (config section `train`)."""

    objective: Objective = Field(
        "jepa",
        description="what trains the encoder: jepa (TC-JEPA, or I-JEPA with model.text=null), or a "
        "baseline by the same loop: supervised (cross-entropy of train.labels) or contrastive "
        "(images and captions as in CLIP, arXiv 2103.00020). Baselines see all patches and keep no "
        "average, so masks, model.predictor, model.text and train.ema are not read",
    )
    labels: list[str] = Field(
        [],
        description="columns of the shard index that train.objective=supervised classifies, a "
        "linear head each: text or whole numbers, such as colour or meta.colour",
    )
    batch: int = Field(
        PUBLISHED_BATCH, ge=1, description="batch of one optimizer step, all ranks; paper [images]"
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="largest batch of one forward pass on one rank; a smaller one than "
        "batch / ranks accumulates gradients, exactly even where it leaves a rest; null: no "
        "accumulation [images]",
    )
    epochs: float | None = Field(
        None, gt=0, description="length of the run; give epochs or steps [epochs]"
    )
    steps: int | None = Field(
        None, ge=1, description="length of the run; give epochs or steps [optimizer steps]"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate at batch 2048; I-JEPA, paper")
    start_lr: float = Field(2e-4, ge=0, description="learning rate before warm-up; I-JEPA, paper")
    final_lr: float = Field(1e-6, ge=0, description="learning rate at the end; I-JEPA, paper")
    scale_lr: bool = Field(False, description="multiply the three learning rates by batch / 2048")
    warmup_epochs: float | None = Field(
        None,
        ge=0,
        description="linear warm-up; paper: 40 on ImageNet, 10 on image-text data; with "
        "warmup_steps also null, a fifth of the run [epochs]",
    )
    warmup_steps: int | None = Field(
        None, ge=0, description="linear warm-up, instead of warmup_epochs [optimizer steps]"
    )
    weight_decay: float = Field(0.04, ge=0, description="weight decay at the start; I-JEPA, paper")
    final_weight_decay: float = Field(
        0.4, ge=0, description="weight decay at the end; I-JEPA, paper"
    )
    weight_decay_schedule: Literal["cosine", "linear"] = Field(
        "cosine", description="cosine is I-JEPA's code, linear is the paper's text"
    )
    ema: float = Field(
        0.996, ge=0, le=1, description="momentum of the target encoder at the start; I-JEPA, paper"
    )
    final_ema: float = Field(
        1.0, ge=0, le=1, description="momentum of the target encoder at the end; I-JEPA, paper"
    )
    betas: tuple[float, float] = Field(
        (0.9, 0.999), description="AdamW's moment decays; I-JEPA uses torch's defaults"
    )
    clip_grad: float | None = Field(
        None, gt=0, description="largest gradient norm; null: no clipping, as in I-JEPA"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA where there is one"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 autocast where the GPU or CPU computes in bf16, else fp32"
    )
    compile: bool = Field(False, description="torch.compile the model; pays off on GPUs")
    parallel: Literal["ddp", "fsdp2"] = Field(
        "ddp",
        description="several ranks each hold the whole model (ddp), or a slice of it (fsdp2: less "
        "memory, more communication)",
    )
    activation_checkpointing: bool = Field(
        False,
        description="compute the blocks of encoder and predictor again in the backward pass "
        "instead of keeping their insides: less memory, about a third more work",
    )
    seed: int = Field(0, ge=0, description="seeds initial weights, masks and every random layer")
    log_every: int = Field(
        10,
        ge=1,
        description="how often losses are fetched from the device and written; every step has its "
        "own line all the same [steps]",
    )
    monitor_every: int = Field(
        100, ge=0, description="how often ranks and text gain are measured; 0: never [steps]"
    )
    monitor_images: int = Field(
        256, ge=2, description="held images that they are measured on; bounds the rank [images]"
    )
    probe_every: int = Field(
        0,
        ge=0,
        description="how often the target encoder is probed on labelled images, as `evaluate` "
        "names them; 0: never [steps]",
    )
    probe_images: int = Field(
        2000, ge=2, description="first images of each side that the probe reads [images]"
    )
    probe_tasks: list[Literal["knn", "linear"]] = Field(
        ["knn"], min_length=1, description="what is probed; `linear` is a short, coarse sweep"
    )
    attention_every: int = Field(
        0,
        ge=0,
        description="how often pictures of patch-word similarity are drawn into attention/; "
        "0: never [steps]",
    )
    attention_images: int = Field(
        4, ge=1, description="images that they are drawn of, a second each [images]"
    )
    checkpoint_every_steps: int | None = Field(
        None, ge=1, description="how often to save, in steps; null: only by minutes [steps]"
    )
    checkpoint_every_minutes: float = Field(
        10.0, gt=0, description="how often to save, in time [minutes]"
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="newest checkpoints kept; two survive one torn by a crash"
    )
    keep_every_steps: int | None = Field(
        None,
        ge=1,
        description="checkpoints of these multiples are kept for good besides the newest; null: "
        "none [steps]",
    )
    async_save: bool = Field(
        False,
        description="copy the state to CPU memory and write it while training goes on; needs "
        "memory for one more copy",
    )
    trace: bool = Field(
        False,
        description="write trace.jsonl: uids and exact losses of every step and rank, to compare "
        "runs with",
    )
    max_minutes: float | None = Field(
        None, gt=0, description="save and stop after this long; rerun to continue [minutes]"
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads of one rank; null: the CPUs it may use / local ranks"
    )
    wandb_project: str | None = Field(
        None, description="also log to this Weights & Biases project; needs `pip install wandb`"
    )
    evaluate_after: bool = Field(
        False, description="evaluate when training ends, as `python -m tcjepa evaluate` would"
    )

    @model_validator(mode="after")
    def _check(self) -> TrainSection:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                "train.epochs, train.steps: give exactly one and set the other to null; got "
                f"epochs={self.epochs}, steps={self.steps}"
            )
        if self.warmup_epochs is not None and self.warmup_steps is not None:
            raise ValueError("train.warmup_epochs, train.warmup_steps: set one of them to null")
        if self.steps is not None and self.warmup_steps is not None:
            _below("train.warmup_steps", self.warmup_steps, "train.steps", self.steps)
        if self.epochs is not None and self.warmup_epochs is not None:
            _below("train.warmup_epochs", self.warmup_epochs, "train.epochs", self.epochs)
        if self.micro_batch is not None and self.micro_batch > self.batch:
            raise ValueError(
                f"train.micro_batch={self.micro_batch} is larger than "
                f"train.batch={self.batch}; lower it or set it to null"
            )
        self._check_objective()
        return self

    def _check_objective(self) -> None:
        if self.objective == "supervised" and not self.labels:
            raise ValueError(
                "train.objective=supervised needs train.labels=[…], the columns to classify"
            )
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"train.labels={self.labels} names a column twice; name each once")
        if self.objective == "contrastive" and self.batch < 2:
            raise ValueError("train.batch=1 has no other image to contrast with; raise it")
        if self.objective == "contrastive" and self.micro_batch is not None:
            raise ValueError(
                f"train.micro_batch={self.micro_batch}: with train.objective=contrastive every "
                "image of the batch is a negative of every other, so gradients of parts do not add "
                "up to the batch's; set train.micro_batch=null, and to save memory "
                "train.activation_checkpointing=true or more ranks"
            )


def _below(small: str, value: float, large: str, limit: float) -> None:
    if value >= limit:
        raise ValueError(f"{small}={value} must be smaller than {large}={limit}")
