import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tcjepa.model.pooling import attend_max, pool

sizes = st.tuples(*[st.integers(1, 4)] * 5)


def _case(size, seed):
    B, N, S, Q, E = size
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(B, N, S, Q, generator=generator, dtype=torch.float64)
    value = torch.randn(B, N, S, E, generator=generator, dtype=torch.float64)
    return weights.requires_grad_(), value.requires_grad_()


@settings(max_examples=30)
@given(sizes, st.integers(0, 999))
def test_attend_max_is_the_maximum_of_products_in_value_and_gradient(size, seed):
    weights, value = _case(size, seed)
    fast = attend_max(weights, value)
    slow = torch.matmul(weights.transpose(2, 3), value).amax(1)
    torch.testing.assert_close(fast, slow)
    upstream = torch.randn(fast.shape, dtype=torch.float64)
    own = torch.autograd.grad((fast * upstream).sum(), [weights, value])
    other = torch.autograd.grad((slow * upstream).sum(), [weights, value])
    torch.testing.assert_close(own, other)


def test_attend_max_passes_gradcheck():
    assert torch.autograd.gradcheck(attend_max, _case((2, 3, 2, 3, 2), 0))


def test_attend_max_keeps_one_byte_per_feature_beside_its_inputs():
    weights, value = _case((2, 8, 3, 5, 4), 0)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        attend_max(weights, value)
    others = [x for x in kept if x.data_ptr() not in (weights.data_ptr(), value.data_ptr())]
    assert [(x.dtype, x.shape) for x in others] == [(torch.uint8, (2, 5, 4))]


def test_attend_max_counts_as_far_as_a_config_may_ask():
    """The winner's number is a byte: 256 captions, and the last one wins."""
    weights, value = _case((1, 256, 1, 1, 1), 0)
    with torch.no_grad():
        weights[0, -1], value[0, -1] = 9, 9
    attend_max(weights, value).sum().backward()
    assert weights.grad.flatten().nonzero().flatten().tolist() == [255]


@pytest.mark.parametrize("fusion", ["max", "mean", "attention"])
def test_absent_captions_never_count(fusion):
    torch.manual_seed(0)
    each, query = torch.randn(2, 3, 4, 5), torch.randn(2, 4, 5)
    present = torch.tensor([[True, True, False], [True, True, True]])
    each[0, 2] = each[0, 0]  # absent captions repeat a present one
    found = pool(each, query, present, fusion)
    alone = pool(each[:1, :2], query[:1], present[:1, :2], fusion)
    torch.testing.assert_close(found[:1], alone)
