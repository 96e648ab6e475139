"""Tiny I-JEPA weights in every layout that they are published in, and a server to fetch them from.

The original release's module is written out here as facebookresearch/ijepa has it
(src/models/vision_transformer.py), not taken from timm or from our encoder. Also the shapes that
parity is tested over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import IJepaConfig, IJepaForImageClassification, IJepaModel

from tcjepa.model.encoder import sincos_positions

WIDTH, DEPTH, HEADS, PATCH, GRID = 32, 2, 4, 8, 4
SIDE = PATCH * GRID
KWARGS = {
    "img_size": SIDE,
    "patch_size": PATCH,
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
}
ENCODER = "vit_base_patch16_gap_224"
_QKV = ("query", "key", "value")
_norm = partial(nn.LayerNorm, eps=1e-6)


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Return arguments of `timm.create_model`: patch sizes, depths, heads, sizes other than 224."""
    patch = draw(st.sampled_from([4, 7, 14, 16]))
    heads = draw(st.integers(1, 4))
    return {
        "img_size": patch * draw(st.integers(1, 7)),
        "patch_size": patch,
        "embed_dim": heads * draw(st.sampled_from([8, 12, 32])),
        "depth": draw(st.integers(1, 5)),
        "num_heads": heads,
        "mlp_ratio": draw(st.sampled_from([1.0, 4.0, 48 / 11])),
        "qkv_bias": draw(st.booleans()),
    }


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        B, P, D = x.shape
        q, k, v = self.qkv(x).reshape(B, P, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * (D // HEADS) ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(B, P, D))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = _norm(WIDTH), Attention(), _norm(WIDTH), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)


class OriginalEncoder(nn.Module):
    """`VisionTransformer` of the original release."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.patch_embed = PatchEmbed()
        self.pos_embed = nn.Parameter(
            sincos_positions((GRID, GRID), WIDTH)[None], requires_grad=False
        )
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = _norm(WIDTH)
        for parameter in self.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def write_original(path: Path, encoder: OriginalEncoder, target: OriginalEncoder) -> Path:
    """Write a checkpoint as the original training code does, optimizer and all."""
    optimizer = torch.optim.AdamW(encoder.parameters())
    wrapped = [{f"module.{k}": v for k, v in e.state_dict().items()} for e in (encoder, target)]
    torch.save(
        {
            "encoder": wrapped[0],
            "predictor": {"module.mask_token": torch.zeros(1, 1, 16)},
            "target_encoder": wrapped[1],
            "opt": optimizer.state_dict(),
            "scaler": None,
            "epoch": 300,
            "loss": 0.1,
            "batch_size": 128,
            "world_size": 16,
            "lr": 0.001,
        },
        path,
    )
    return path


def write_timm_file(path: Path, encoder: OriginalEncoder) -> Path:
    if path.suffix == ".safetensors":
        save_file(encoder.state_dict(), path)
    else:
        torch.save({"state_dict": encoder.state_dict()}, path)
    return path


def write_timm_folder(folder: Path, encoder: OriginalEncoder, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    write_timm_file(folder / "model.safetensors", encoder)
    arguments = {**KWARGS, "fc_norm": False, **changes}
    config = {"architecture": ENCODER, "num_classes": 0, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {}}))
    return folder


def write_huggingface(
    folder: Path, encoder: OriginalEncoder, *, shard: str = "5GB", classifier: bool = False,
    **changes: Any,
) -> Path:  # fmt: skip
    """Write a folder with transformers' own `save_pretrained`.

    Names are mapped as transformers' conversion script of the original release does
    (models/ijepa/convert_ijepa_to_hf.py).
    """
    config = IJepaConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=SIDE,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
        **changes,
    )
    names = [
        (r"^pos_embed", "embeddings.position_embeddings"),
        (r"^patch_embed.proj", "embeddings.patch_embeddings.projection"),
        (r"^norm\.", "layernorm."),
        (r"^blocks", "encoder.layer"),
        (r"norm1", "layernorm_before"),
        (r"norm2", "layernorm_after"),
        (r"attn.proj", "attention.output.dense"),
        (r"mlp.fc1", "intermediate.dense"),
        (r"mlp.fc2", "output.dense"),
    ]
    tensors: dict[str, Tensor] = {}
    for name, tensor in encoder.state_dict().items():
        for pattern, theirs in names:
            name = re.sub(pattern, theirs, name)  # noqa: PLW2901
        pieces = {name: tensor}
        if "attn.qkv" in name:
            parts = [name.replace("attn.qkv", f"attention.attention.{p}") for p in _QKV]
            pieces = dict(zip(parts, tensor.split(WIDTH), strict=True))
        prefix = "ijepa." if classifier else ""
        tensors |= {prefix + n: piece.contiguous() for n, piece in pieces.items()}
    kind = IJepaForImageClassification if classifier else IJepaModel
    with TemporaryDirectory() as converted:
        config.save_pretrained(converted)
        save_file(tensors, Path(converted, "model.safetensors"), {"format": "pt"})
        kind.from_pretrained(converted).save_pretrained(folder, max_shard_size=shard)
    return folder


class _Hub(SimpleHTTPRequestHandler):
    """Answers as Hugging Face's hub does for files of `owner/name`, and serves plain files."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if len(parts) > 4 and parts[2] == "resolve":
            parts = [*parts[:2], *parts[4:]]
        path = Path(self.directory, *parts)
        if path.is_file():
            self._answer(200, path.read_bytes())
        else:
            self._answer(404, b"")

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{len(body)}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback as a hub of models; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Hub, directory=str(folder)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
