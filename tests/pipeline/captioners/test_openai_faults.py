"""The `openai` captioner against a server that fails: what is tried again, recorded or an error."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from pipeline.captioners.answers import Answers
from pipeline.captioners.openai import OpenAICaptioner
from pipeline.captioners.openai_client import wait_seconds
from pipeline.captioners.request import CaptionResult
from pipeline.settings import ConfigError
from tests.pipeline.captioners import chat_server as chat
from tests.pipeline.captioners.openai_setup import GOOD, captions, config, picture, requests_for


@pytest.mark.parametrize(
    ("first", "captions_expected"),
    [
        (chat.reply({"error": {"message": "slow down"}}, 429), GOOD),
        (chat.reply({"error": "oops"}, 500), GOOD),
        (chat.Reply(b"<html>bad gateway</html>", 502, {"Content-Type": "text/html"}), GOOD),
        (chat.Reply(fault="close"), GOOD),
        (chat.Reply(chat.completion().body, fault="cut"), GOOD),
        (chat.Reply(b"<html>welcome</html>", 200, {"Content-Type": "text/html"}), GOOD),
        (chat.Reply(b'{"choices": [', 200), GOOD),
        (chat.Reply(b"[" * 100_000, 200), GOOD),
        (chat.Reply(b"x" * (5 << 20), 200), GOOD),
        (chat.Reply(b"\x1f\x8b", 200, {"Content-Encoding": "gzip"}), GOOD),
        (chat.reply({}), GOOD),
        (chat.reply([]), GOOD),
        (chat.reply(None), GOOD),
        (chat.reply({"choices": []}), GOOD),
        (chat.reply({"choices": {"0": 1}}), GOOD),
        (chat.reply({"choices": [None]}), GOOD),
        (chat.reply({"choices": [{"message": "text"}]}), GOOD),
        (chat.completion(7), GOOD),
        (chat.completion({"text": "A dog."}), GOOD),
    ],
)
def test_passing_faults_are_tried_again(
    server: Any, first: Any, captions_expected: list[tuple[str, str]]
) -> None:
    server.answer = lambda asked, number: first if number == 1 else chat.completion()
    assert captions(server) == [CaptionResult(captions_expected, None)]
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (chat.reply({}, 429), "rate_limited"),
        (chat.reply({}, 500), "server_error"),
        (chat.reply({}, 503), "connection_failed"),
        (chat.Reply(fault="close"), "connection_failed"),
        (chat.Reply(b"no JSON"), "bad_response"),
        (chat.Reply(fault="silent"), "timeout"),
        (chat.Reply(chat.completion().body, fault="drip"), "timeout"),
        (chat.Reply(fault="drip_headers"), "timeout"),
    ],
)
def test_lasting_faults_are_that_images_failure_and_are_not_kept(
    server: Any, answer: Any, reason: str
) -> None:
    bad = picture(1)
    server.answer = lambda asked, number: answer if asked.image == bad else chat.completion()
    started = time.monotonic()
    answers = Answers()
    captioner = OpenAICaptioner(config(server, timeout_s=0.3, concurrency=1))
    results = captioner.caption(requests_for(3), answers)
    assert [result.error for result in results] == [None, reason, None]
    assert sum(asked.image == bad for asked in server.asked) == 2
    assert time.monotonic() - started < 20  # a drip would take 25 s and more, silence 30
    # Asked again by a later call, and only that one.
    server.asked.clear()
    server.answer = lambda asked, number: chat.completion()
    assert [r.error for r in captioner.caption(requests_for(3), answers)] == [None] * 3
    assert [asked.image for asked in server.asked] == [bad]


def test_retry_after_is_honoured(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []

    def answer(asked: Any, number: int) -> Any:
        times.append(time.monotonic())
        return chat.reply({}, 429, Retry_After="0.5") if number == 1 else chat.completion()

    server.answer = answer
    assert captions(server)[0].error is None
    assert times[1] - times[0] >= 0.5
    # Longer than the image may take: given up at once.
    server.asked.clear()
    server.answer = lambda asked, number: chat.reply({}, 429, Retry_After="3600")
    started = time.monotonic()
    assert captions(server, image_timeout_s=30)[0].error == "rate_limited"
    assert time.monotonic() - started < 20 and len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_at_its_limit_loses_no_image(server: Any, status: int) -> None:
    """Of 60 images at once it takes twelve a second; each is turned away often."""
    lock, taken, began = threading.Lock(), 0, time.monotonic()

    def answer(asked: Any, number: int) -> Any:
        nonlocal taken
        with lock:
            if taken >= 2 + 12 * (time.monotonic() - began):
                return chat.reply({"error": "slow down"}, status)
            taken += 1
        return chat.completion()

    server.answer = answer
    results = captions(server, 60, concurrency=60, retries=5)
    assert [result.error for result in results] == [None] * 60
    assert len(server.asked) > 2 * 60


def test_a_used_up_account_is_not_waited_for(server: Any) -> None:
    used_up = {"error": {"code": "insufficient_quota", "message": "You exceeded your quota"}}
    server.answer = lambda asked, number: chat.reply(used_up, 429)
    assert captions(server, retries=20)[0].error == "rate_limited"
    assert len(server.asked) == 1


def test_retry_after_is_a_number_or_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60))
    assert 50 < (wait_seconds(later) or 0) <= 60
    assert wait_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert wait_seconds("7") == 7
    assert [wait_seconds(text) for text in (None, "", "soon", "-1", "nan", "inf")] == [None] * 6


def test_the_time_for_an_image_bounds_all_its_tries(server: Any) -> None:
    server.answer = lambda asked, number: chat.Reply(fault="silent")
    started = time.monotonic()
    (result,) = captions(server, image_timeout_s=0.5, timeout_s=10, retries=20)
    assert result.error == "timeout"
    assert time.monotonic() - started < 8


@pytest.mark.parametrize(
    ("status", "key"),
    [(401, "api_key_env"), (403, "api_key_env"), (404, "model"), (302, "base_url")],
)
def test_a_broken_set_up_is_a_config_error(server: Any, status: int, key: str) -> None:
    server.answer = lambda asked, number: chat.reply({"error": {"message": "no"}}, status)
    with pytest.raises(ConfigError, match=rf"captioner\.{key}"):
        captions(server, 50, concurrency=2)
    assert len(server.asked) <= 4


@pytest.mark.parametrize("status", [400, 429, 500])
def test_a_server_that_never_answers_is_an_error_soon(server: Any, status: int) -> None:
    server.answer = lambda asked, number: chat.reply({"error": "not multimodal"}, status)
    with pytest.raises(RuntimeError, match=r"gives no captions.*not multimodal"):
        captions(server, 100, concurrency=4)
    assert len(server.asked) < 60
    with pytest.raises(RuntimeError, match="gives no captions"):
        captions(server, 2)


def test_an_absent_server_is_an_error_and_keeps_what_was_paid_for(server: Any) -> None:
    paid: list[bytes] = []

    def answer(asked: Any, number: int) -> Any:
        if number > 5:
            return chat.Reply(fault="close")
        paid.append(asked.image)
        return chat.completion()

    server.answer = answer
    answers = Answers()
    captioner = OpenAICaptioner(config(server, concurrency=2, retries=0))
    with pytest.raises(RuntimeError, match="connection_failed"):
        captioner.caption(requests_for(100), answers)
    assert len(server.asked) < 60  # an answer that comes late begins the count anew
    later: list[bytes] = []

    def answer_later(asked: Any, number: int) -> Any:
        later.append(asked.image)
        return chat.completion()

    server.answer = answer_later
    assert all(result.captions for result in captioner.caption(requests_for(100), answers))
    assert set(paid).isdisjoint(later) and len(set(paid)) == 5
    assert {*paid, *later} == {picture(n) for n in range(100)}


def test_images_that_a_server_never_likes_do_not_stop_later_runs(server: Any) -> None:
    bad = {picture(n) for n in range(2, 40)}
    server.answer = lambda asked, number: (
        chat.reply({}, 500) if asked.image in bad else chat.completion()
    )
    answers, captioner = Answers(), OpenAICaptioner(config(server, retries=0, concurrency=1))
    for _ in range(2):
        results = captioner.caption(requests_for(40), answers)
        assert sum(result.error == "server_error" for result in results) == 38
