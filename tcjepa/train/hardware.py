"""What the hardware at hand is told: threads, precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.timing import cpu_name
from tcjepa.cores import usable_cores
from tcjepa.train.config import TrainSection
from tcjepa.train.distributed import World


def described(device: torch.device) -> str:
    """Return what a process on `device` runs on, such as "NVIDIA H100 80GB HBM3, 16 cores"."""
    cores = usable_cores()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return f"{name}, {cores} core{'s' * (cores != 1)}"


def uses_bf16(config: TrainSection, device: torch.device) -> bool:
    """Return whether forward passes run under bf16 autocast; `auto` asks the hardware."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public question for it; without an answer, fp32 is always right.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in asked)


@contextmanager
def autocast(device: torch.device, is_bf16: bool) -> Iterator[None]:
    """Enter the context of a forward pass in bf16, or in the weights' own precision."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=is_bf16))
        if device.type == "cpu" and is_bf16:
            # The fused CPU attention's bf16 backward took 34% of a step, plain matmuls 9%.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def keep_fp32(device: torch.device) -> None:
    """Have float32 be computed in float32: cuDNN's default is TF32, and images may set cuBLAS's."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")


def set_threads(config: TrainSection, world: World) -> None:
    """Give this rank its share of the CPUs, or as many threads as `train.threads` says."""
    torch.set_num_threads(config.threads or max(1, usable_cores() // world.local_size))


__all__ = ["autocast", "described", "keep_fp32", "set_threads", "uses_bf16"]
