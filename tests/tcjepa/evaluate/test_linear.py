"""The probe's answers on data whose answer is known."""

import pytest
import torch
from sklearn import linear_model, model_selection, preprocessing

from tcjepa.evaluate.config import SweepConfig
from tcjepa.evaluate.linear import (
    ProbeResult,
    edges,
    few_shot_probe,
    few_shot_rows,
    probe,
    split,
)
from tcjepa.evaluate.sweep import Setting

FAST = SweepConfig(learning_rates=[1e-2, 1e-1], weight_decays=[0.0, 0.1], epochs=8)


def blobs(count: int, spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 16, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(4, (count,), generator=generator)
    return centres[labels] + spread * torch.randn(count, 16, generator=generator), labels


def run(train, test, config=FAST, seeds=2, classes=4) -> ProbeResult:
    return probe(*train, *test, classes=classes, config=config, seeds=seeds)[0]


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


def test_of_settings_that_do_equally_well_the_middle_one_is_taken():
    """Of few images most settings get all right; the first of the grid is the least trained."""
    config = FAST.model_copy(
        update={"learning_rates": [0.03, 0.1, 0.3], "weight_decays": [0.0], "epochs": 20}
    )
    result = run(blobs(40, 0.01, 0), blobs(100, 0.01, 1), config)
    assert result.accuracy.value == 1
    assert [setting.learning_rate for setting in result.chosen] == [0.1, 0.1]


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


def test_one_class_is_all_right_and_chooses_nothing():
    (train, _), (tested, truth) = blobs(40, 1.0, 0), blobs(20, 1.0, 1)
    truth = torch.where(truth == 3, -1, 0)
    result = run((train, torch.zeros(40, dtype=torch.long)), (tested, truth), classes=1)
    assert result.accuracy.value == result.majority == float((truth == 0).double().mean())
    assert result.edges == ()


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


def correlated(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features like an untrained ViT's: a few loud directions, the classes in faint ones."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(1)
    centres = torch.randn(6, 32, generator=fixed)
    mix = torch.randn(32, 32, generator=fixed) * torch.logspace(0, -2, 32)
    labels = torch.randint(6, (count,), generator=generator)
    return (centres[labels] + 2.0 * torch.randn(count, 32, generator=generator)) @ mix + 3, labels


def test_the_default_protocol_scores_as_scikit_learns_logistic_regression():
    """Within half a point, with C chosen on the same validation share by scikit-learn."""
    (rows, labels), (tested, truth) = correlated(3000, 0), correlated(4000, 1)
    ours, _ = probe(rows, labels, tested, truth, classes=6, config=SweepConfig(), seeds=3)
    scale = preprocessing.StandardScaler().fit(rows.numpy())
    search = model_selection.GridSearchCV(
        linear_model.LogisticRegression(max_iter=2000),
        {"C": [1e-3, 1e-2, 1e-1, 1.0, 10.0]},
        cv=model_selection.ShuffleSplit(1, test_size=0.2, random_state=0),
    ).fit(scale.transform(rows.numpy()), labels.numpy())
    theirs = search.score(scale.transform(tested.numpy()), truth.numpy())
    assert 0.3 < theirs < 0.95  # neither chance nor saturated
    assert abs(ours.accuracy.value - theirs) < 0.005


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_few_shot_rows_are_a_share_of_each_class(share):
    labels = torch.tensor([0] * 400 + [1] * 100 + [2])
    rows = few_shot_rows(labels, share, seed=3)
    assert rows.tolist() == sorted(set(rows.tolist()))
    counts = labels[rows].bincount().tolist()
    assert counts == [max(2, round(share * 400)), max(2, round(share * 100)), 1]
    assert rows.tolist() == few_shot_rows(labels, share, seed=3).tolist()
    assert rows.tolist() != few_shot_rows(labels, share, seed=4).tolist()


def test_few_labels_know_less_than_all_and_more_than_none():
    (rows, labels), (tested, truth) = blobs(1000, 2.0, 0), blobs(500, 2.0, 1)
    settings = {"classes": 4, "config": FAST, "seeds": 3}
    few, _ = few_shot_probe(rows, labels, tested, truth, share=0.02, **settings)
    whole, _ = probe(rows, labels, tested, truth, **settings)
    assert 0.3 < few.accuracy.value < whole.accuracy.value
    assert len(set(few.accuracy.per_seed)) > 1  # each seed has other images
    every, _ = few_shot_probe(rows, labels, tested, truth, share=0.999999, **settings)
    assert every.accuracy.value == pytest.approx(whole.accuracy.value, abs=0.01)
