"""The probe's answers on data whose answer is known."""

import pytest
import torch

from tcjepa.evaluate.config import SweepConfig
from tcjepa.evaluate.linear import ProbeResult, edges, probe, split
from tcjepa.evaluate.sweep import Setting

FAST = SweepConfig(learning_rates=[1e-2, 1e-1], weight_decays=[0.0, 0.1], epochs=8)


def blobs(count: int, spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 16, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(4, (count,), generator=generator)
    return centres[labels] + spread * torch.randn(count, 16, generator=generator), labels


def run(train, test, config=FAST, seeds=2, classes=4) -> ProbeResult:
    return probe(*train, *test, classes=classes, config=config, seeds=seeds)


def test_separable_blobs_are_learnt():
    result = run(blobs(400, 0.1, 0), blobs(200, 0.1, 1))
    assert result.accuracy.value == pytest.approx(1.0)
    assert result.accuracy.seed_error == 0
    assert 0 < result.accuracy.error < 0.01  # 200 of 200 is still a sample


def test_shuffled_labels_are_chance():
    features, labels = blobs(800, 0.1, 0)
    shuffled = labels[torch.randperm(800, generator=torch.Generator().manual_seed(5))]
    tested, truth = blobs(800, 0.1, 1)
    truth = truth[torch.randperm(800, generator=torch.Generator().manual_seed(6))]
    result = run((features, shuffled), (tested, truth))
    assert result.accuracy.value == pytest.approx(0.25, abs=0.07)
    assert result.majority == pytest.approx(0.25, abs=0.07)


def test_scale_shift_and_rotation_of_features_do_not_matter():
    (features, labels), (tested, truth) = blobs(400, 1.0, 0), blobs(400, 1.0, 1)
    plain = run((features, labels), (tested, truth))
    scale = torch.logspace(-3, 3, 16)
    moved = run((features * scale + 5, labels), (tested * scale + 5, truth))
    assert moved.accuracy.value == pytest.approx(plain.accuracy.value, abs=0.03)


def test_same_seeds_same_answer():
    data = blobs(200, 1.0, 0), blobs(100, 1.0, 1)
    assert run(*data) == run(*data)


def test_test_set_never_chooses_the_setting():
    train, (tested, truth) = blobs(200, 1.0, 0), blobs(100, 1.0, 1)
    chosen = run(train, (tested, truth)).chosen
    assert run(train, (-tested, (truth + 1) % 4)).chosen == chosen


def test_a_class_unseen_in_training_is_always_wrong():
    tested, truth = blobs(200, 0.1, 1)
    truth[:50] = -1
    assert run(blobs(400, 0.1, 0), (tested, truth)).accuracy.value == pytest.approx(0.75)


def test_constant_features_give_the_majority_class():
    train = torch.ones(100, 16), torch.tensor([0] * 70 + [1] * 30)
    result = run(train, (torch.ones(50, 16), torch.tensor([0] * 30 + [1] * 20)), classes=2)
    assert result.accuracy.value == result.majority == pytest.approx(0.6)


def test_edges_of_the_sweep_are_named():
    assert edges([Setting(1e-1, 0.0)], FAST) == ("highest learning rate",)
    assert edges([Setting(1e-2, 0.1)], FAST) == ("lowest learning rate", "highest weight decay")
    assert edges([Setting(1e-1, 0.0), Setting(1e-2, 0.0)], FAST) == ()
    one = SweepConfig(learning_rates=[1.0], weight_decays=[0.0])
    assert edges([Setting(1.0, 0.0)], one) == ()


@pytest.mark.parametrize("count", [2, 3, 11])
def test_split_parts_are_disjoint_and_not_empty(count):
    fit, held = split(count, 0.2, 0, torch.device("cpu"))
    assert len(fit) and len(held)
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(count))


def test_refusals():
    train, test = blobs(20, 1.0, 0), blobs(20, 1.0, 1)
    with pytest.raises(ValueError, match="two training images"):
        run((train[0][:1], train[1][:1]), test)
    with pytest.raises(ValueError, match="two training images"):
        run(train, (test[0][:0], test[1][:0]))
    with pytest.raises(ValueError, match="must lie in"):
        run(train, test, classes=2)
