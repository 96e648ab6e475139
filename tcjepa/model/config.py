"""What the model is: encoder, predictor, text conditioning, loss."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.settings import Settings


class TextConditioning(Settings):
    """How captions enter the predictor (TC-JEPA, arXiv 2605.03245, Eqs. 2-4)."""

    conditioning: Literal["word_attention", "caption_attention", "adaln", "feature", "sequence"] = (
        Field(
            "word_attention",
            description="where text enters the predictor: attention to words (Eq. 2, paper); "
            "attention to one embedding per caption; caption embeddings that modulate the "
            "LayerNorms (DiT), are added to the input features, or words as tokens of the input "
            "sequence (the paper's baselines, details ours)",
        )
    )
    layers: Literal["all"] | tuple[int, ...] = Field(
        "all",
        description="predictor layers with `word_attention`, `caption_attention` or `adaln`, a "
        "list counted from 0; paper: all",
    )
    heads: int = Field(1, ge=1, description="attention heads of Eq. 2; paper: one [heads]")
    fusion: Literal["max", "mean", "attention"] = Field(
        "max", description="how the captions of an image are pooled at each layer; paper: max"
    )
    fuse: Literal["before_mlp", "after_mlp"] = Field(
        "before_mlp",
        description="pool captions before the MLP (it runs once) or after it (once per caption); "
        "open in the paper, whose 'marginal' cost only the former meets",
    )
    sparsity: Literal["rectified", "entropy", "none"] = Field(
        "rectified",
        description="patch-word sparsity: Eq. 3 as published, which dies once all cosines are "
        "negative; the entropy of softmax(cosine / temperature), which does not; or neither "
        "regularizer",
    )
    sparsity_weight: float = Field(0.1, ge=0, description="lambda of Eq. 3; paper: 0.1")
    consistency_weight: float = Field(0.5, ge=0, description="beta of Eq. 3; paper: 0.5")
    entropy_temperature: float = Field(
        0.1, gt=0, description="temperature of `sparsity: entropy`; ours [cosine]"
    )
    regularizer_warmup: int = Field(
        0, ge=0, description="linear warm-up of both regularizers; paper: none [steps]"
    )

    def layer_numbers(self, depth: int) -> tuple[int, ...]:
        """Return the conditioned ones of `depth` predictor layers, counted from 0, ascending."""
        return tuple(range(depth)) if self.layers == "all" else tuple(sorted(self.layers))

    @field_validator("layers")
    @classmethod
    def _distinct(
        cls, layers: Literal["all"] | tuple[int, ...]
    ) -> Literal["all"] | tuple[int, ...]:
        if layers != "all" and (not layers or len(set(layers)) < len(layers) or min(layers) < 0):
            raise ValueError(
                f"got {list(layers)}, expected `all` or different layer numbers from 0"
            )
        return layers

    @model_validator(mode="after")
    def _combinable(self) -> TextConditioning:
        """Refuse keys that the conditioning does not read, rather than ignore them."""
        kind = self.conditioning
        if kind == "word_attention":
            return self
        if self.sparsity != "none":
            raise ValueError(
                f"sparsity={self.sparsity} needs the patch-word cosines of conditioning="
                f"word_attention; with conditioning={kind} set sparsity=none"
            )
        allowed: dict[str, tuple[Any, ...]] = {"fuse": ("before_mlp",)}
        allowed["fusion"] = ("max", "mean") if kind in ("adaln", "feature") else ("max",)
        if kind != "caption_attention":
            allowed["heads"] = (1,)
        if kind in ("feature", "sequence"):
            allowed["layers"] = ("all",)
        for key, values in allowed.items():
            if getattr(self, key) not in values:
                names = " or ".join(str(value) for value in values)
                raise ValueError(
                    f"{key}={getattr(self, key)} is not read with conditioning={kind}; set "
                    f"{key}={names}"
                )
        return self

    def regularizer_scale(self, step: int) -> float:
        """Return the warm-up factor in [0, 1] of both regularizers at a step counted from 0."""
        return min(1.0, (step + 1) / (self.regularizer_warmup + 1))


class PredictorConfig(Settings):
    """The predictor's sizes; defaults are the paper's for ViT-B/16."""

    width: int = Field(384, gt=0, description="paper: 384 [features, a multiple of 4]")
    depth: int = Field(6, ge=1, description="paper: 6 for B, 12 for L and H [layers]")
    heads: int | None = Field(
        None, ge=1, description="attention heads; null = as many as the encoder (paper)"
    )

    share_context: bool = Field(
        False,
        description="context tokens see the context (and text) only and are computed once for all "
        "target blocks; I-JEPA computes them once per block, together with its mask tokens",
    )

    @field_validator("width")
    @classmethod
    def _positions_fit(cls, width: int) -> int:
        if width % 4:
            raise ValueError(f"got {width}; 2-D sine-cosine positions need a multiple of 4")
        return width


class ContrastiveConfig(Settings):
    """The towers' ends and the temperature of `train.objective=contrastive` (CLIP, 2103.00020).

    The text side is smaller than CLIP's: it reads the frozen word embeddings that TC-JEPA gets.
    """

    width: int = Field(
        512,
        gt=0,
        description="of the space that both sides are projected to; CLIP's B/16 [features]",
    )
    text_width: int = Field(
        512, gt=0, description="of the text side before that; CLIP's B/16: 512 [features]"
    )
    text_depth: int = Field(
        0,
        ge=0,
        description="transformer layers over a caption's frozen word embeddings before they are "
        "averaged; ours: 0, then a caption is the mean of its words; CLIP's own text encoder: 12 "
        "[layers]",
    )
    temperature: float = Field(
        0.07, ge=0.01, description="of the softmax at the start, then learned; CLIP [cosine]"
    )

    @property
    def text_heads(self) -> int:
        """Return the attention heads of the text side: one per 64 features, as in CLIP."""
        return max(1, self.text_width // 64)

    @model_validator(mode="after")
    def _divisible(self) -> ContrastiveConfig:
        if self.text_depth and self.text_width % self.text_heads:
            raise ValueError(
                f"text_width={self.text_width} is not divisible by its {self.text_heads} heads "
                "(one per 64 features); take a multiple of 64"
            )
        return self


class ModelConfig(Settings):
    """Encoder, predictor and loss; defaults are the paper's for ViT-B/16."""

    encoder: str = Field(
        "vit_base_patch16_gap_224",
        description="timm VisionTransformer without class and register tokens; paper: B/16, L/16, "
        "H/14",
    )
    encoder_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments to timm.create_model, e.g. {img_size: 64, patch_size: 8, "
        "embed_dim: 128, depth: 4, num_heads: 4}",
    )
    init: str | None = Field(
        None,
        description="published weights that both encoders start from: a file, a folder, a run or "
        "export of ours, a Hugging Face name (facebook/ijepa_vith14_1k) or a timm name with its "
        "tag (vit_huge_patch14_gap_224.in1k_ijepa); null: random weights (paper)",
    )
    init_std: float = Field(
        0.02,
        gt=0,
        le=1,
        description="std of initial weights of encoder and predictor; I-JEPA's code, for widths "
        "from 768. Narrower encoders need more, or fixed positions outweigh the image and features "
        "collapse to them (docs/findings.md)",
    )
    predictor: PredictorConfig = Field(
        default_factory=PredictorConfig, description="the narrow ViT that fills in target blocks"
    )
    prediction_loss: Literal["l2", "smooth_l1"] = Field(
        "l2",
        description="Eq. 1 (mean unsquared L2 norm per patch) or smooth-L1 per element as in "
        "I-JEPA's code; the regularizer weights assume the former's scale",
    )
    variance_weight: float = Field(
        0.0,
        ge=0,
        description="weight of VICReg's variance term on context features, against collapse, as in "
        "C-JEPA; paper: none. Needs train.micro_batch=null",
    )
    covariance_weight: float = Field(
        0.0, ge=0, description="weight of VICReg's covariance term, likewise; paper: none"
    )
    text: TextConditioning | None = Field(
        default_factory=TextConditioning,
        description="text conditioning of the predictor; null gives I-JEPA",
    )
    contrastive: ContrastiveConfig = Field(
        default_factory=ContrastiveConfig,
        description="what train.objective=contrastive adds to the encoder; not read otherwise",
    )

    @property
    def spreads(self) -> bool:
        """Whether the loss has VICReg's terms."""
        return self.variance_weight > 0 or self.covariance_weight > 0

    @model_validator(mode="after")
    def _buildable(self) -> ModelConfig:
        # Imported here: reading another section's config must not pay for torch and timm.
        from tcjepa.model.encoder import encoder_shape

        shape = encoder_shape(self.encoder, self.encoder_kwargs)
        width, heads = self.predictor.width, self.predictor.heads or shape.heads
        if width % heads:
            raise ValueError(
                f"predictor.width {width} is not divisible by {heads} heads; set predictor.heads "
                "to a divisor (null takes the encoder's)"
            )
        if self.text and width % self.text.heads:
            raise ValueError(
                f"predictor.width {width} is not divisible by text.heads {self.text.heads}"
            )
        depth = self.predictor.depth
        if self.text and self.text.layers != "all" and max(self.text.layers) >= depth:
            raise ValueError(
                f"text.layers {list(self.text.layers)} names a layer that the predictor lacks: "
                f"with predictor.depth {depth} the last is {depth - 1}"
            )
        return self


__all__ = ["ContrastiveConfig", "ModelConfig", "PredictorConfig", "TextConditioning"]
