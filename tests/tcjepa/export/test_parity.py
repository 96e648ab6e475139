"""The same weights in our encoder, in timm and in Hugging Face's `IJepaModel`."""

from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import IJepaConfig, IJepaModel

from tcjepa.model.encoder import Encoder, timm_arguments
from tcjepa.model.tensor_names import from_huggingface, to_huggingface
from tests.tcjepa.export.releases import shapes

NAME = "vit_base_patch16_gap_224"


def random_encoder(kwargs: dict[str, Any], seed: int) -> Encoder:
    """Return an encoder whose every tensor, norms and biases too, differs from its start."""
    torch.manual_seed(seed)
    encoder = Encoder(NAME, kwargs).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def huggingface(encoder: Encoder, folder) -> IJepaModel:
    """Return `IJepaModel` of an encoder's weights, read back from a folder as users do."""
    shape = encoder.shape
    config = IJepaConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=encoder.vit.blocks[0].mlp.fc1.out_features,
        image_size=shape.grid[0] * shape.patch[0],
        patch_size=shape.patch[0],
        layer_norm_eps=1e-6,
        qkv_bias=encoder.vit.blocks[0].attn.qkv.bias is not None,
    )
    config.save_pretrained(folder)
    tensors = to_huggingface(encoder.vit.state_dict())
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    model, info = IJepaModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@settings(max_examples=15)
@given(shapes(), st.integers(0, 2**31 - 1))
def test_timm_and_hugging_face_agree_with_our_encoder(tmp_path_factory, kwargs, seed):
    encoder = random_encoder(kwargs, seed)
    side = kwargs["img_size"]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        ours = encoder(images)

        vit = timm.create_model(NAME, **timm_arguments(kwargs)).eval()
        vit.load_state_dict(encoder.vit.state_dict())
        tokens = vit.forward_features(images)
        pooled = vit.forward_head(tokens, pre_logits=True)
        assert torch.allclose(tokens, ours, rtol=0, atol=1e-5)
        assert torch.allclose(pooled, ours.mean(1), rtol=0, atol=1e-5)
        assert torch.allclose(vit(images), ours.mean(1), rtol=0, atol=1e-5)

        model = huggingface(encoder, tmp_path_factory.mktemp("huggingface"))
        tokens = model(images).last_hidden_state
        assert torch.allclose(tokens, ours, rtol=0, atol=1e-5)
        assert torch.allclose(tokens.mean(1), ours.mean(1), rtol=0, atol=1e-5)

        written = from_huggingface(to_huggingface(encoder.vit.state_dict()))
        in_module = from_huggingface(model.state_dict())
        for name, tensor in encoder.vit.state_dict().items():
            assert torch.equal(written[name], tensor), name
            assert torch.equal(in_module[name], tensor), name
        assert written.keys() == in_module.keys() == encoder.vit.state_dict().keys()


@settings(max_examples=15)
@given(shapes(), st.integers(0, 2**31 - 1), st.data())
def test_kept_patches_are_encoded_as_if_the_others_were_not_there(kwargs, seed, data):
    encoder = random_encoder(kwargs, seed)
    side, patches = kwargs["img_size"], encoder.shape.patches
    count = data.draw(st.integers(1, patches))
    generator = torch.Generator().manual_seed(seed)
    keep = torch.stack([torch.randperm(patches, generator=generator)[:count] for _ in range(2)])
    images = torch.randn(2, 3, side, side, generator=generator)
    with torch.no_grad():
        features = encoder(images, keep)
        for row, kept in enumerate(keep):
            tokens = encoder.vit.patch_embed(images[row : row + 1]) + encoder.vit.pos_embed
            expected = encoder.vit.norm(encoder.vit.blocks(tokens[:, kept]))
            assert torch.allclose(features[row : row + 1], expected, rtol=0, atol=1e-5)


def test_a_tensor_without_a_place_is_refused():
    with pytest.raises(ValueError, match=r"blocks\.0\.ls1\.gamma"):
        to_huggingface({"blocks.0.ls1.gamma": torch.ones(4)})
