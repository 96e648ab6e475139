"""TC-JEPA written out slowly from its equations: patch by patch, word by word, caption by caption.

Nothing here is batched and nothing comes from the package but the weights, by their names, and the
encoders' features, which are not this project's invention. Float64 in, float64 out, and autograd
gives the gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

EPS = 1e-6


@dataclass
class Sample:
    """One image: features of its context patches, targets, and its captions without padding."""

    context: list[tuple[int, Tensor]]  # (patch number, (D,))
    targets: list[list[tuple[int, Tensor]]]  # per block (patch number, (D,))
    captions: list[Tensor]  # (words, F) each; none without words


@dataclass
class Setting:
    """What is computed; names and values as in the config."""

    depth: int
    heads: int
    share_context: bool = False
    prediction_loss: str = "l2"
    conditioning: str | None = "word_attention"
    layers: tuple[int, ...] = ()
    word_heads: int = 1
    fusion: str = "max"
    fuse: str = "before_mlp"
    sparsity: str = "rectified"
    temperature: float = 0.1


@dataclass
class Outcome:
    """Loss terms, averaged as the equations say."""

    predict: Tensor
    sparse: Tensor | None = None
    consistency: Tensor | None = None


@dataclass
class Token:
    """A token of the predictor, which other tokens it sees, and what it is."""

    x: Tensor
    sees: list[int] = field(default_factory=list)
    target: int | None = None  # its number among the targets; None: context
    is_word: bool = False


class Reference:
    """The predictor and the losses, given weights `p` by name and position vectors (P, E)."""

    def __init__(self, p: dict[str, Tensor], positions: Tensor, setting: Setting) -> None:
        self.p, self.positions, self.s = p, positions, setting

    def outcome(self, samples: list[Sample]) -> Outcome:
        errors: list[Tensor] = []
        sparse: list[Tensor] = []
        consistency: list[Tensor] = []
        for sample in samples:
            predictions, cosines = self.predict(sample)
            flat = [target for block in sample.targets for _, target in block]
            for prediction, target in zip(predictions, flat, strict=True):
                errors.append(self.error(prediction, target))
            if sample.captions and self.s.conditioning == "word_attention":
                per_caption = [self.regularizers(own) for own in cosines]
                sparse.append(sum(a for a, _ in per_caption) / len(per_caption))  # Eq. 4
                consistency.append(sum(b for _, b in per_caption) / len(per_caption))
        outcome = Outcome(sum(errors) / len(errors))
        if self.s.conditioning == "word_attention" and self.s.sparsity != "none":
            zero = torch.zeros((), dtype=torch.float64)
            outcome.sparse = sum(sparse) / len(sparse) if sparse else zero
            outcome.consistency = sum(consistency) / len(consistency) if sparse else zero
        return outcome

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Eq. 1's unsquared norm; or the mean smooth-L1 of I-JEPA's code."""
        difference = prediction - target
        if self.s.prediction_loss == "l2":
            return sum(d * d for d in difference).sqrt()
        each = [0.5 * d * d if abs(d) < 1 else abs(d) - 0.5 for d in difference]
        return sum(each) / len(each)

    def regularizers(self, cosines: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
        """Eq. 3 of one caption: `cosines[layer][patch]` has one cosine per word."""
        layers, patches = len(cosines), len(cosines[0])
        sparse, consistency = [], []
        for i in range(patches):
            similar = [[max(c, 0 * c) for c in cosines[layer][i]] for layer in range(layers)]
            words = len(similar[0])
            mean = [
                sum(similar[layer][s] for layer in range(layers)) / layers for s in range(words)
            ]
            for layer in range(layers):
                own = similar[layer]
                consistency.append(sum(abs(own[s] - mean[s]) for s in range(words)))
                if self.s.sparsity == "entropy":
                    sparse.append(self.entropy(cosines[layer][i]))
                else:
                    sparse.append(sum(own))
        return sum(sparse) / len(sparse), sum(consistency) / len(consistency)

    def entropy(self, cosines: list[Tensor]) -> Tensor:
        if len(cosines) == 1:
            return 0 * cosines[0]
        shares = softmax([c / self.s.temperature for c in cosines])
        return -sum(share * share.log() for share in shares) / math.log(len(shares))

    def predict(self, sample: Sample) -> tuple[list[Tensor], list[list[list[Tensor]]]]:
        """Return the prediction of each target patch, and cosines[caption][layer][patch][word]."""
        captions = sample.captions
        if not captions and self.s.conditioning is not None:
            captions = [self.p["null_caption"].unsqueeze(0)]
        tokens = self.tokens(sample, captions)
        cosines: list[list[list[Tensor]]] = [[] for _ in captions]
        for layer in range(self.s.depth):
            place = self.s.layers.index(layer) if layer in self.s.layers else None
            modulation = None
            if place is not None and self.s.conditioning == "adaln":
                modulation = self.modulation(place, captions)
            self.block(layer, tokens, modulation)
            if place is None or self.s.conditioning not in ("word_attention", "caption_attention"):
                continue
            texts = captions
            if self.s.conditioning == "caption_attention":
                texts = [torch.stack([embedding(caption) for caption in captions])]
            for own in cosines:
                own.append([])
            for token in tokens:
                token.x, found = self.condition(place, token.x, texts)
                for own, cosine in zip(cosines, found, strict=False):
                    own[-1].append(cosine)
        ordered = sorted((t for t in tokens if t.target is not None), key=lambda t: t.target)
        return [self.linear("project", self.norm("norm", t.x)) for t in ordered], cosines

    def tokens(self, sample: Sample, captions: list[Tensor]) -> list[Token]:
        """Return the tokens of all blocks with what each of them sees."""
        added: Tensor | float = 0.0
        if self.s.conditioning == "feature":
            each = [self.linear("embed_text", embedding(caption)) for caption in captions]
            added = pooled(each, self.s.fusion, None)

        def prefix() -> list[Token]:
            made = [
                Token(self.linear("embed", x) + self.positions[place] + added)
                for place, x in sample.context
            ]
            if self.s.conditioning == "sequence":
                made += [
                    Token(self.linear("embed_text", word), is_word=True)
                    for caption in captions
                    for word in caption
                ]
            return made

        tokens: list[Token] = []
        number = 0
        for block in sample.targets:
            if not self.s.share_context or not tokens:
                first = len(tokens)
                tokens += prefix()
                seen_by_all = list(range(first, len(tokens)))
                for i in seen_by_all:
                    tokens[i].sees = list(seen_by_all)
            own = list(range(len(tokens), len(tokens) + len(block)))
            for place, _ in block:
                x = self.p["mask_token"] + self.positions[place] + added
                tokens.append(Token(x, seen_by_all + own, number))
                number += 1
            if not self.s.share_context:
                for i in seen_by_all:  # the published predictor: context sees the mask tokens too
                    tokens[i].sees = seen_by_all + own
        return tokens

    def block(self, layer: int, tokens: list[Token], modulation: Tensor | None) -> None:
        """A ViT block, in place, each token attending to those it sees."""
        name = f"blocks.{layer}."
        shift, scale, gate, shift2, scale2, gate2 = (
            modulation.chunk(6) if modulation is not None else [0.0] * 6
        )
        width = len(tokens[0].x)
        d = width // self.s.heads
        qkv = [
            self.linear(name + "attn.qkv", self.norm(name + "norm1", t.x) * (1 + scale) + shift)
            for t in tokens
        ]
        for token, own in zip(tokens, qkv, strict=True):
            heads = []
            for h in range(self.s.heads):
                part = slice(h * d, (h + 1) * d)
                q = own[:width][part]
                keys = [qkv[j][width : 2 * width][part] for j in token.sees]
                values = [qkv[j][2 * width :][part] for j in token.sees]
                shares = softmax([(q @ k) / math.sqrt(d) for k in keys])
                heads.append(sum(a * v for a, v in zip(shares, values, strict=True)))
            token.x = token.x + (1 + gate) * self.linear(name + "attn.proj", torch.cat(heads))
        for token in tokens:
            inner = self.norm(name + "norm2", token.x) * (1 + scale2) + shift2
            inner = self.linear(name + "mlp.fc2", gelu(self.linear(name + "mlp.fc1", inner)))
            token.x = token.x + (1 + gate2) * inner

    def condition(
        self, place: int, q: Tensor, captions: list[Tensor]
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Eq. 2 for one patch: the conditioned feature, and its cosines to each caption's words."""
        name = f"conditioners.{place}."
        d = len(q) // self.s.word_heads
        query = self.p[name + "query.weight"] @ q
        added, cosines = [], []
        for caption in captions:
            keys = [self.p[name + "key.weight"] @ word for word in caption]
            values = [self.p[name + "value.weight"] @ word for word in caption]
            parts: list[Tensor] = []
            by_head: list[list[Tensor]] = []
            for h in range(self.s.word_heads):
                part = slice(h * d, (h + 1) * d)
                shares = softmax([(query[part] @ key[part]) / math.sqrt(d) for key in keys])
                parts.append(sum(a * v[part] for a, v in zip(shares, values, strict=True)))
                by_head.append(
                    [
                        (query[part] @ key[part]) / (length(query[part]) * length(key[part]))
                        for key in keys
                    ]
                )
            added.append(torch.cat(parts))
            cosines.append(
                [sum(head[s] for head in by_head) / len(by_head) for s in range(len(keys))]
            )
        if self.s.fuse == "before_mlp":
            return self.finish(name, q + pooled(added, self.s.fusion, query)), cosines
        each = [self.finish(name, q + a) for a in added]
        return pooled(each, self.s.fusion, query), cosines

    def finish(self, name: str, z: Tensor) -> Tensor:
        inner = self.linear(name + "mlp.2", gelu(self.linear(name + "mlp.0", z)))
        return self.norm(name + "norm", z + inner)

    def modulation(self, place: int, captions: list[Tensor]) -> Tensor:
        name = f"conditioners.{place}.layers."
        each = []
        for caption in captions:
            inner = self.linear(name + "0", embedding(caption))
            each.append(self.linear(name + "2", inner / (1 + (-inner).exp())))
        return pooled(each, self.s.fusion, None)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return self.p[name + ".weight"] @ x + self.p[name + ".bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean = sum(x) / len(x)
        variance = sum((value - mean) ** 2 for value in x) / len(x)
        return (x - mean) / (variance + EPS).sqrt() * self.p[name + ".weight"] + self.p[
            name + ".bias"
        ]


def pooled(each: list[Tensor], fusion: str, query: Tensor | None) -> Tensor:
    """Pool one vector per caption feature by feature, or by attention of the query."""
    if fusion == "max":
        return torch.stack([max(column) for column in zip(*each, strict=True)])
    if fusion == "mean":
        return sum(each) / len(each)
    shares = softmax([(query @ vector) / math.sqrt(len(query)) for vector in each])
    return sum(share * vector for share, vector in zip(shares, each, strict=True))


def softmax(scores: list[Tensor]) -> list[Tensor]:
    exponentials = [score.exp() for score in scores]
    return [e / sum(exponentials) for e in exponentials]


def embedding(caption: Tensor) -> Tensor:
    return sum(caption) / len(caption)


def length(x: Tensor) -> Tensor:
    return (x @ x).sqrt()


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
