"""The `openai` captioner against a real server: what it asks, and what it makes of the answers."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from pipeline.captioners.answers import Answers
from pipeline.captioners.openai import OpenAICaptioner, OpenAIConfig, check
from pipeline.captioners.request import CaptionRequest, CaptionResult
from pipeline.settings import ConfigError
from tests.pipeline.captioners import chat_server as chat
from tests.pipeline.captioners.openai_setup import (
    GOOD,
    KEY,
    captions,
    config,
    picture,
    requests_for,
)


def test_the_request_is_what_the_protocol_says(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTION_KEY", f" {KEY}\n")
    (result,) = captions(
        server,
        prompts={"short": "In short.", "detail": "In detail."},
        api_key_env="CAPTION_KEY",
        max_tokens=64,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        extra_body={"top_k": 20},
    )
    assert server.paths == ["/v1/chat/completions"] * 2
    assert [asked.prompt for asked in server.asked] == ["In short.", "In detail."]
    for asked in server.asked:
        assert asked.image == picture()
        assert asked.headers["Authorization"] == f"Bearer {KEY}"
        fields = {k: v for k, v in asked.body.items() if k != "messages"}
        assert fields == {
            "model": "tiny", "max_tokens": 64, "temperature": 0.5, "top_p": 0.9, "seed": 3,
            "top_k": 20,
        }  # fmt: skip
        url = asked.body["messages"][0]["content"][0]["image_url"]["url"]
        assert url.startswith("data:image/png;base64,")
    # The second prompt's answer says the same.
    assert result.captions == [
        ("A red dog runs on the grass.", "short"), ("It is a sunny day.", "short")
    ]  # fmt: skip


def test_what_is_null_is_not_sent(server: Any) -> None:
    captions(server, max_tokens=None, temperature=None)
    assert set(server.asked[0].body) == {"model", "messages"}
    assert "Authorization" not in server.asked[0].headers


def test_large_images_are_shrunk(server: Any) -> None:
    OpenAICaptioner(config(server, max_side=50)).caption(
        [
            CaptionRequest("a", picture(side=200), None),
            CaptionRequest("b", picture(side=48), None),
            CaptionRequest("c", b"\x89PNG no image", None),
        ]
    )
    by_size = sorted(server.asked, key=lambda asked: len(asked.image))
    opened = [Image.open(io.BytesIO(asked.image)) for asked in by_size]
    assert {image.size for image in opened} == {(50, 25), (48, 24)}
    assert by_size[0].image == picture(side=48)


def test_unreadable_images_cost_nothing(server: Any) -> None:
    (result,) = OpenAICaptioner(config(server)).caption([CaptionRequest("a", b"<html>", None)])
    assert result == CaptionResult([], "decode_failed")
    assert server.asked == []


@pytest.mark.parametrize(
    ("answer", "texts", "error"),
    [
        (chat.completion(""), [], "empty_output"),
        (chat.completion(None), [], "empty_output"),
        (chat.completion([]), [], "empty_output"),
        (chat.completion(" \n "), [], "empty_output"),
        (chat.completion([{"type": "text", "text": "A dog."}, 3, {}]), ["A dog."], None),
        (chat.completion("A dog runs. It is on the", "length"), ["A dog runs."], None),
        (chat.completion("A dog runs. It is on the", None), ["A dog runs.", "It is on the"], None),
        (chat.completion("A dog", "content_filter"), [], "content_filter"),
        (chat.completion(None, refusal="No."), [], "refused"),
        (chat.completion("I’m sorry, but I can’t help with that."), [], "refused"),
        (chat.completion("dog " * 400), [], "degenerate"),
        (chat.completion("half a \ud800 pair."), ["half a pair."], None),
        (chat.completion("A\x00 dog\u202e runs."), ["A dog runs."], None),
        (chat.completion(usage={"completion_tokens": 1}), [t for t, _ in GOOD], None),
        (chat.reply({"error": {"code": "content_policy_violation"}}, 400), [], "content_filter"),
        (chat.reply({"error": {"message": "image too large"}}, 400), [], "bad_request"),
        (chat.Reply(b"too large", 413), [], "bad_request"),
    ],
)
def test_answers_become_captions_or_a_reason_at_the_first_try(
    server: Any, answer: Any, texts: list[str], error: str | None
) -> None:
    server.answer = lambda asked, number: answer
    (result,) = captions(server)
    assert ([text for text, _ in result.captions], result.error) == (texts, error)
    assert len(server.asked) == 1


def test_over_long_answers_are_cut(server: Any) -> None:
    words = " ".join(f"A {n} is here." for n in range(200_000))
    server.answer = lambda asked, number: chat.completion(words)
    answers = Answers()
    captioner = OpenAICaptioner(config(server, max_captions=64))
    (result,) = captioner.caption(requests_for(1), answers)
    kept = answers.get(f"{0:032x}", captioner.questions["short"])
    assert kept is not None and len(kept.text) == 32_000 and not kept.finished
    assert result.captions and all(text.endswith("is here.") for text, _ in result.captions)


def test_no_more_in_flight_than_configured(server: Any) -> None:
    server.answer = chat.slow(0.05)
    results = captions(server, 24, concurrency=4)
    assert all(result.error is None for result in results)
    assert server.most_in_flight == 4
    assert len(server.asked) == 24


def test_one_connection_serves_many_requests_and_tokens_are_counted(server: Any) -> None:
    answers = Answers()
    OpenAICaptioner(config(server, concurrency=1)).caption(requests_for(3), answers)
    costs = answers.bill()
    assert (costs.asked, costs.tokens, costs.prompt_tokens) == (3, 21, 300)
    assert answers.bill().asked == 0


ECHOES: dict[str, Callable[[], Any]] = {
    "error": lambda: chat.reply({"error": {"message": f"bad key {KEY}!"}}, 401),
    "error cut at the key": lambda: chat.reply({"error": {"message": "x" * 185 + KEY}}, 401),
    "bad request": lambda: chat.reply({"error": {"message": KEY}}, 400),
    "html": lambda: chat.Reply(f"<html>{KEY}</html>".encode(), 500),
    "content": lambda: chat.completion(f"A sign says {KEY} on the wall."),
    "escaped": lambda: chat.Reply(
        chat.completion("A sign says KEY.").body.replace(
            b"KEY", "".join(f"\\u{ord(c):04x}" for c in KEY).encode()
        )
    ),
    "no JSON": lambda: chat.Reply(KEY.encode()),
    "header": lambda: chat.reply({}, 302, Location=f"http://elsewhere/{KEY}"),
}


@pytest.mark.parametrize("echo", sorted(ECHOES))
def test_a_key_that_the_server_echoes_goes_nowhere(
    server: Any,
    echo: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CAPTION_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    server.answer = lambda asked, number: ECHOES[echo]()
    said = ""
    try:
        said = repr(captions(server, 3, api_key_env="CAPTION_KEY", retries=0))
    except (ConfigError, RuntimeError) as error:
        said = repr(error) + repr(error.__cause__) + repr(error.__context__)
    everything = said + caplog.text + "".join(capfd.readouterr())
    assert server.asked[0].headers["Authorization"].endswith(KEY)
    assert len(said) > 20
    assert not [part for part in (KEY, KEY[:12], KEY[-12:]) if part in everything]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_url": "gpu-box:8000/v1"}, r"base_url: no http\(s\) URL"),
        ({"base_url": "http:///v1"}, "base_url: it has no host"),
        ({"base_url": "http://me:pw@box/v1"}, "base_url: no user or password"),
        ({"base_url": "http://box/v1?key=1"}, r"base_url: no \? or #"),
        ({"base_url": "http://box:99999/v1"}, "base_url: no URL"),
        ({"base_url": "http://box/v1/chat/completions"}, "leave /chat/completions away"),
        ({"api_key_env": KEY}, "api_key_env: must be the name"),
        ({"api_key_env": "hf_abcdefgh"}, "api_key_env: must be the name"),
        ({"extra_body": {"model": "x", "n": 2}}, "extra_body: model, n cannot"),
        ({"prompts": {"In Short": "x"}}, "lower-case"),
        ({"model": " "}, "model: empty"),
    ],
)
def test_config_errors_come_before_any_work_and_repeat_no_secret(
    server: Any, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config(server, **change)
    assert not any(secret in str(caught.value) for secret in (KEY, "hf_abcdefgh", ":pw@"))


@pytest.mark.parametrize("value", [None, "", "two words", "né"])
def test_a_missing_or_impossible_key_is_refused_before_work(
    server: Any, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CAPTION_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("CAPTION_KEY", value)
    with pytest.raises(ConfigError, match=r"captioner\.api_key_env: .*CAPTION_KEY"):
        check(config(server, api_key_env="CAPTION_KEY"))


def test_what_is_asked_has_the_same_name_until_something_shapes_it(server: Any) -> None:
    def name(**changes: Any) -> str:
        return config(server, **changes).question("Describe.")

    same = {
        "base_url": "https://other/v1", "concurrency": 2, "retries": 9, "timeout_s": 1.0,
        "image_timeout_s": 2.0, "api_key_env": "OTHER", "max_captions": 2, "name": "b",
        "prompts": {"x": "y"},
    }  # fmt: skip
    other = {
        "model": "b", "temperature": 0.1, "top_p": 0.5, "seed": 1, "max_tokens": 9,
        "max_side": 64, "extra_body": {"top_k": 1},
    }  # fmt: skip
    assert {name(**{key: value}) for key, value in same.items()} == {name()}
    names = {name(**{key: value}) for key, value in other.items()}
    assert len(names) == len(other) and name() not in names
    assert config(server).question("Another.") != name()
    # A key that nobody thought of here is neither lost nor forgotten.
    assert same.keys() | other.keys() | {"kind"} == set(OpenAIConfig.model_fields)
