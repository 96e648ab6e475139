import pytest
import torch

from tcjepa.masks import MaskConfig, sample_masks
from tcjepa.model.config import ModelConfig, PredictorConfig, TextConditioning
from tcjepa.text import TextBatch

TINY = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
TEXT_WIDTH = 12


@pytest.fixture
def make_config():
    def make(
        text: TextConditioning | None = None, *, share_context: bool = False, **changes
    ) -> ModelConfig:
        predictor = PredictorConfig(width=16, depth=2, share_context=share_context)
        return ModelConfig(encoder_kwargs=TINY, predictor=predictor, text=text, **changes)

    return make


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def masks():
    return sample_masks(MaskConfig(), (8, 8), 4, 0, 0)


@pytest.fixture
def text():
    """Four images: three captions, one, none, and one whose only caption has no words."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([5, 2, 3, 1, 0])
    caption = torch.tensor([[0, 1, 2], [3, -1, -1], [-1, -1, -1], [4, -1, -1]])
    valid = torch.arange(5) < lengths[:, None]
    words = torch.randn(5, 5, TEXT_WIDTH, generator=generator)
    return TextBatch(words * valid[:, :, None], valid, caption)
