"""The whole forward pass is one graph, whatever the words of a batch."""

from __future__ import annotations

import pytest
import torch

from tcjepa.model.config import TextConditioning
from tcjepa.model.jepa import TCJEPA
from tcjepa.text import TextBatch

TEXT_WIDTH = 12
PLAIN = {"sparsity": "none"}


def _text(distinct: int, words: int) -> TextBatch:
    generator = torch.Generator().manual_seed(distinct)
    lengths = torch.randint(0, words + 1, (distinct,), generator=generator)
    caption = torch.randint(-1, distinct, (4, 3), generator=generator)
    vectors = torch.randn(distinct, words, TEXT_WIDTH, generator=generator)
    return TextBatch(vectors, torch.arange(words) < lengths.unsqueeze(1), caption)


@pytest.mark.parametrize(
    ("keys", "share"),
    [
        ({}, False),
        ({"heads": 2, "sparsity": "entropy", "fusion": "attention"}, True),
        ({"conditioning": "caption_attention", **PLAIN}, False),
        ({"conditioning": "adaln", **PLAIN}, True),
        ({"conditioning": "sequence", **PLAIN}, True),
    ],
    ids=str,
)
def test_one_graph_for_all_texts(make_config, images, masks, keys, share):
    """Two batches make the shapes dynamic; after them nothing compiles again.

    The default is traced backwards too, which takes most of the time.
    """
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = TCJEPA(make_config(TextConditioning(**keys), share_context=share), TEXT_WIDTH)
    backend = "eager" if keys else "aot_eager"
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    scale = torch.tensor(0.5)
    texts = [_text(*shape) for shape in [(6, 5), (9, 7), (4, 9), (11, 3), (12, 12)]]
    for text in texts[:2]:
        compiled(images, masks, text, scale).loss.backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for text in texts[2:]:
            model.zero_grad()
            out = compiled(images, masks, text, scale)
            out.loss.backward()
            fast = [p.grad for p in model.parameters() if p.requires_grad]
            model.zero_grad()
            plain = model(images, masks, text, scale)
            torch.testing.assert_close(out.loss, plain.loss)
            plain.loss.backward()
            slow = [p.grad for p in model.parameters() if p.requires_grad]
            torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)


def test_ijepa_is_one_graph(make_config, images, masks):
    torch._dynamo.reset()
    explained = torch._dynamo.explain(TCJEPA(make_config(None)))(images, masks)
    assert explained.graph_break_count == 0 and explained.graph_count == 1
