"""Linear segmentation of patches whose classes are known."""

import pytest
import torch

from tcjepa.evaluate.config import SweepConfig
from tcjepa.evaluate.segmentation import NoSegmentationError, SegmentationResult, segment
from tcjepa.evaluate.tally import Tally

FAST = SweepConfig(learning_rates=[1e-2, 1e-1], weight_decays=[0.0], epochs=10, batch=8)
NAMES = ["background", "cube", "star"]


def dataset(count: int, seed: int, spread: float = 0.05):
    """Half-planes of two classes on a 4×4 grid of 8-pixel patches; features say the shares."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(3, 12, generator=torch.Generator().manual_seed(9))
    masks = torch.zeros(count, 32, 32, dtype=torch.uint8)
    for mask in masks:
        cut = int(torch.randint(1, 4, (1,), generator=generator)) * 8
        mask[:cut] = int(torch.randint(1, 3, (1,), generator=generator))
    cells = masks.view(count, 4, 8, 4, 8)[:, :, 0, :, 0].reshape(count, 16).long()
    noise = spread * torch.randn(count, 16, 12, generator=generator)
    return (codes[cells] + noise).half(), masks


def run(train, test, seeds=2) -> SegmentationResult:
    return segment(*train, *test, classes=NAMES, config=FAST, seeds=seeds)[0]


def test_patches_that_tell_their_class_are_segmented():
    result = run(dataset(60, 0), dataset(40, 1))
    # The straight border lies on patch borders, where bilinear logits cross zero.
    assert result.miou.value > 0.97
    assert result.pixel_accuracy > 0.97
    assert list(result.per_class) == NAMES
    assert result.miou.sampling_error < 0.02


def test_patches_that_tell_nothing_give_little():
    (features, masks), test = dataset(60, 0), dataset(40, 1)
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(2)).half()
    result = run((noise, masks), test)
    assert result.miou.value < 0.7


def test_absent_class_has_no_iou_and_ignored_pixels_do_not_count():
    train, (features, masks) = dataset(60, 0), dataset(40, 1)
    keep = ~(masks == 2).any(dim=2).any(dim=1)
    assert run(train, (features[keep], masks[keep])).per_class["star"] is None
    ignored = masks.clone()
    ignored[masks == 2] = 255
    result = run(train, (features, ignored))
    assert result.per_class["star"] is None
    assert result.pixel_accuracy > 0.97


def test_miou_is_the_mean_that_its_tally_draws_again():
    """A class of no test mask counts in the probe seeds that answer with it, in those alone."""
    train = dataset(60, 0, spread=0.5)
    cubes, stars = (train[0][train[1][:, 0, 0] == c][:2].float() for c in (1, 2))
    masks = torch.ones(2, 32, 32, dtype=torch.uint8)
    brief, differ = FAST.model_copy(update={"learning_rates": [1e-2]}), 0
    for share in torch.linspace(0.4, 0.6, 11).tolist():
        mixed = torch.lerp(cubes[:, :1], stars[:, :1], share).expand(-1, 16, -1).half()
        result, pixels = segment(*train, mixed, masks, classes=NAMES, config=brief, seeds=4)
        intersections, unions = pixels.unbind(dim=-1)
        tally = Tally.of_ratios(("one", "other"), intersections.numpy(), unions.numpy())
        assert result.miou.value == pytest.approx(tally.value)
        assert len(result.miou.per_seed) == 4
        differ += len(set((unions.sum(dim=0).view(4, 3)[:, 2] > 0).tolist())) == 2
    assert differ


def test_ignored_pixels_teach_nothing():
    """Two thirds of the images with stars have them marked as not to be counted."""
    (features, masks), test = dataset(60, 0), dataset(40, 1)
    masks[::3][masks[::3] == 2] = 255
    masks[1::3][masks[1::3] == 2] = 255
    result = run((features, masks), test)
    assert result.per_class["star"] > 0.9 and result.pixel_accuracy > 0.97


def test_order_of_test_images_and_shift_of_features_do_not_matter():
    train, test = dataset(40, 0), dataset(20, 1)
    plain = run(train, test)
    turned = run(train, (test[0].flip(0), test[1].flip(0)))
    assert turned.miou.value == pytest.approx(plain.miou.value, abs=1e-6)
    moved = run((train[0] * 2 + 1, train[1]), (test[0] * 2 + 1, test[1]))
    assert moved.miou.value == pytest.approx(plain.miou.value, abs=0.01)


def test_refusals():
    features, masks = dataset(4, 0)
    with pytest.raises(NoSegmentationError, match=r"two training images .* got 1 and 4"):
        run((features[:1], masks[:1]), (features, masks))
    # Drawn again and again, one image is always itself: no standard error.
    with pytest.raises(NoSegmentationError, match=r"two test images .* got 4 and 1"):
        run((features, masks), (features[:1], masks[:1]))
    bare = torch.zeros_like(masks)
    with pytest.raises(NoSegmentationError, match="the 4 training images show no object"):
        run((features, bare), (features, masks))
    bare[0] = 255
    with pytest.raises(NoSegmentationError, match="the 4 test images show no object"):
        run((features, masks), (features, bare))
    with pytest.raises(ValueError, match="square grid"):
        run((features[:, :15], masks), (features[:, :15], masks))
