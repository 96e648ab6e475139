import math

import pytest
import torch

from tcjepa.model.conditioner import Conditioner
from tcjepa.model.config import TextConditioning
from tcjepa.model.words import Words
from tcjepa.text import TextBatch


def _reference(conditioner, x, words):
    """Eq. 2 by loops over images, tokens, captions, heads and words."""
    B, Q, E = x.shape
    d = E // conditioner.heads
    table = [*words.words, None]
    out = torch.empty_like(x)
    for b in range(B):
        for i in range(Q):
            q = conditioner.query(x[b, i])
            each = []
            for n in range(words.index.shape[1]):
                if not words.present[b, n]:
                    continue
                t = table[int(words.index[b, n])]
                t = words.null[None] if t is None else t[words.valid[b, n]]
                K, V = conditioner.key(t), conditioner.value(t)
                heads = []
                for h in range(conditioner.heads):
                    part = slice(h * d, (h + 1) * d)
                    scores = [(q[part] * K[s, part]).sum() / math.sqrt(d) for s in range(len(t))]
                    share = torch.stack(scores).softmax(0)
                    heads.append(sum(share[s] * V[s, part] for s in range(len(t))))
                each.append(torch.cat(heads))
            if conditioner.fuse == "before_mlp":
                z = x[b, i] + _pool(conditioner.fusion, torch.stack(each), q)
                out[b, i] = conditioner.norm(z + conditioner.mlp(z))
            else:
                zs = [x[b, i] + a for a in each]
                done = torch.stack([conditioner.norm(z + conditioner.mlp(z)) for z in zs])
                out[b, i] = _pool(conditioner.fusion, done, q)
    return out


def _pool(fusion, each, q):
    if fusion == "max":
        return each.max(0).values
    if fusion == "mean":
        return each.mean(0)
    return ((each @ q) / math.sqrt(len(q))).softmax(0) @ each


@pytest.fixture
def words(text):
    torch.manual_seed(0)
    return Words.of(text, torch.randn(text.words.shape[2], requires_grad=True), 4)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("fusion", ["max", "mean", "attention"])
@pytest.mark.parametrize("fuse", ["before_mlp", "after_mlp"])
def test_conditioner_equals_loops_in_value_and_gradient(words, heads, fusion, fuse):
    torch.manual_seed(3)
    config = TextConditioning(heads=heads, fusion=fusion, fuse=fuse)
    conditioner = Conditioner(16, words.null.shape[0], config)
    x = torch.randn(4, 5, 16, requires_grad=True)
    weight = torch.randn(4, 5, 16)
    inputs = [x, words.null, *conditioner.parameters()]
    fast, _ = conditioner(x, words)
    slow = _reference(conditioner, x, words)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)
    fast_gradients = torch.autograd.grad((fast * weight).sum(), inputs)
    slow_gradients = torch.autograd.grad((slow * weight).sum(), inputs)
    for own, expected in zip(fast_gradients, slow_gradients, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-3)


def test_attention_reports_cosines_and_weights(words):
    torch.manual_seed(3)
    conditioner = Conditioner(16, words.null.shape[0], TextConditioning())
    x = torch.randn(4, 5, 16)
    _, attention = conditioner(x, words)
    q, K = conditioner.query(x[0, 2]), conditioner.key(words.words[1, :2])
    expected = torch.cosine_similarity(q[None], K)
    torch.testing.assert_close(attention.cosine[0, 1, :2, 2], expected, atol=1e-5, rtol=1e-4)
    sums = attention.weights.sum(2)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    assert not attention.weights.masked_fill(words.valid.unsqueeze(-1), 0).any()
    assert not attention.weights.requires_grad


def test_max_before_the_mlp_is_the_max_of_the_sums(words):
    torch.manual_seed(3)
    x, each = torch.randn(4, 5, 16), torch.randn(4, 3, 5, 16)
    torch.testing.assert_close((x.unsqueeze(1) + each).amax(1), x + each.amax(1))


def test_captions_without_words_count_as_none(words):
    assert words.real.tolist() == [[True] * 3, [True, False, False], [False] * 3, [False] * 3]
    assert words.present[2:].tolist() == [[True, False, False]] * 2
    assert words.index[1].tolist() == [3, 3, 3] and (words.index[2:] == 5).all()


def test_padding_never_matters(text, words):
    torch.manual_seed(0)
    conditioner = Conditioner(16, text.words.shape[2], TextConditioning())
    x = torch.randn(4, 5, 16)
    noisy = TextBatch(text.words + 9.0 * ~text.valid[:, :, None], text.valid, text.caption)
    plain, attention = conditioner(x, words)
    other, noisy_attention = conditioner(x, Words.of(noisy, words.null, 4))
    torch.testing.assert_close(plain, other)
    torch.testing.assert_close(attention.cosine, noisy_attention.cosine)
    assert not attention.cosine.masked_fill(words.valid.unsqueeze(-1), 0).any()
