"""The `openai` captioner set up against the loopback chat server, and images to ask about."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from pipeline.captioners.openai import OpenAICaptioner, OpenAIConfig
from pipeline.captioners.request import CaptionRequest, CaptionResult
from pipeline.settings import build

KEY = "sk-Secret/0123456789+abcdefghijklmnop"
ONE = {"short": "Describe the image in short."}
#: what the server's usual answer becomes
GOOD = [("A red dog runs on the grass.", "short"), ("It is a sunny day.", "short")]


def picture(number: int = 0, side: int = 32) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (side, side // 2), (number % 256, number // 256, 99)).save(sink, "PNG")
    return sink.getvalue()


def requests_for(count: int) -> list[CaptionRequest]:
    return [CaptionRequest(f"{n:032x}", picture(n), None) for n in range(count)]


def config(server: Any, **changes: Any) -> OpenAIConfig:
    data = {"base_url": server.base_url, "model": "tiny", "prompts": ONE, "retries": 1}
    return build(OpenAIConfig, data | changes)


def captions(server: Any, count: int = 1, **changes: Any) -> list[CaptionResult]:
    return OpenAICaptioner(config(server, **changes)).caption(requests_for(count))
