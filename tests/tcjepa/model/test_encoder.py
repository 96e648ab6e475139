import math

import pytest
import torch

from pipeline.settings import ConfigError, build
from tcjepa.model.config import ModelConfig, TextConditioning
from tcjepa.model.encoder import Encoder, encoder_shape, sincos_positions


def test_shapes_of_the_papers_encoders():
    base = encoder_shape("vit_base_patch16_gap_224", {})
    assert base.grid == (14, 14) and base.patches == 196 and base.width == 768
    huge = encoder_shape("vit_huge_patch14_gap_224", {})
    assert huge.grid == (16, 16) and huge.width == 1280 and huge.depth == 32


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"encoder": "vit_base_patch16_gap_24"}, "did you mean vit_base_patch16_gap_224"),
        ({"encoder": "resnet18"}, "not a plain timm VisionTransformer"),
        ({"encoder": "vit_base_patch16_224"}, "class token"),
        ({"encoder": "vit_medium_patch16_reg4_gap_256"}, "register tokens"),
        ({"encoder_kwargs": {"embed_dims": 3}}, "encoder_kwargs.*embed_dims"),
        ({"encoder_kwargs": {"drop_path_rate": 0.1}}, "encoder_kwargs.drop_path_rate"),
        ({"encoder_kwargs": {"dynamic_img_size": True}}, "encoder_kwargs.dynamic_img_size"),
        ({"encoder_kwargs": {"global_pool": "map"}}, "global_pool=map.*global_pool=avg"),
        ({"encoder_kwargs": {"global_pool": "max"}}, "global_pool=max.*global_pool=avg"),
        ({"encoder_kwargs": {"pretrained": True}}, r"encoder_kwargs\.pretrained.*model\.init"),
        ({"encoder_kwargs": {"depth": 0}}, r"encoder_kwargs\.depth"),
        (
            {
                "encoder": "vit_small_patch16_18x2_224",
                "encoder_kwargs": {"class_token": False, "global_pool": "avg"},
            },
            "blocks of ParallelThingsBlock",
        ),
        (
            {"encoder_kwargs": {"img_size": 36, "patch_size": 8}},
            r"img_size=36 is not a multiple of patch_size=8",
        ),
        ({"predictor": {"width": 30}}, r"predictor\.width.*multiple of 4"),
        ({"predictor": {"heads": 5}}, r"predictor\.width 384 is not divisible by 5"),
        ({"text": {"heads": 5}}, "text.heads"),
        ({"predictor": {"widht": 30}}, r"did you mean predictor\.width"),
    ],
)
def test_unusable_models_are_refused_by_name(data, message):
    with pytest.raises(ConfigError, match=message):
        build(ModelConfig, data)


def test_a_class_token_model_can_be_had_without_it():
    kwargs = {"class_token": False, "global_pool": "avg", "img_size": 32}
    vit = Encoder("vit_tiny_patch16_224", kwargs)
    assert isinstance(vit.vit.norm, torch.nn.LayerNorm), "the norm stays on the tokens"
    assert vit(torch.randn(1, 3, 32, 32)).shape == (1, 4, 192)


def test_positions_are_fixed_and_as_in_ijepa():
    table = sincos_positions((2, 3), 8)
    row, column = 1, 2
    omega = [1.0, 1 / math.sqrt(10000)]
    expected = [f(axis * w) for axis in (column, row) for f in (math.sin, math.cos) for w in omega]
    assert table[row * 3 + column].tolist() == pytest.approx(expected, abs=1e-6)
    kwargs = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    vit = Encoder("vit_base_patch16_gap_224", kwargs).vit
    assert not vit.pos_embed.requires_grad
    assert torch.equal(vit.pos_embed[0], sincos_positions((2, 2), 16))


def test_weights_start_as_in_ijepa():
    torch.manual_seed(0)
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2}
    vit = Encoder("vit_base_patch16_gap_224", kwargs).vit
    for layer, block in enumerate(vit.blocks, start=1):
        assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
        for last in (block.attn.proj, block.mlp.fc2):
            expected = 0.02 / math.sqrt(2 * layer)
            assert last.weight.std().item() == pytest.approx(expected, rel=0.1)
            assert not last.bias.any()


@pytest.mark.parametrize("kept", [None, 3])
def test_compiles_into_one_graph_of_fused_attention(kept):
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    encoder = Encoder("vit_base_patch16_gap_224", kwargs).train()
    graphs = []

    def record(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(encoder, backend=record, fullgraph=True, dynamic=False)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(2, 3, 32, 32, generator=generator)
        keep = None
        if kept is not None:
            keep = torch.stack([torch.randperm(16, generator=generator)[:kept] for _ in range(2)])
        assert torch.allclose(compiled(images, keep), encoder(images, keep), atol=1e-6)
    assert len(graphs) == 1, "no recompilation for other patches of the same number"
    assert sum("scaled_dot_product_attention" in target for target in graphs[0]) == 2


def test_warm_up_of_the_regularizers():
    text = TextConditioning(regularizer_warmup=3)
    assert [text.regularizer_scale(s) for s in (0, 1, 2, 3, 9)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert TextConditioning().regularizer_scale(0) == 1.0
