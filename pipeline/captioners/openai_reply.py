"""What a chat-completions server says, read without trusting it."""

from __future__ import annotations

import json
from typing import Any, Final

from pipeline.captioners.answers import Answer

_MOST_CHARACTERS: Final = 32_000  # of an answer
_MOST_TOKENS: Final = 10**9
_FILTER_CODES: Final = ("content_filter", "content_policy_violation", "moderation_blocked")


class BadReplyError(Exception):
    """A reply that is no chat completion; the message says what is wrong with it."""


def read_reply(body: bytes) -> Answer:
    """Return the answer of a reply with status 200; raises `BadReplyError`.

    Content may be text, a list of parts, or null (then the answer is empty). A refusal or a
    content filter's stop is the answer's `fault`. An over-long answer is cut and not `finished`.
    """
    data = _json(body)
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BadReplyError(f"no choices: {error_text(body)}")
    message, ended = choices[0].get("message"), choices[0].get("finish_reason")
    if not isinstance(message, dict):
        raise BadReplyError("the choice has no message")
    text = _text(message.get("content"))
    refusal = message.get("refusal")
    fault = None
    if ended == "content_filter":
        fault = "content_filter"
    elif isinstance(refusal, str) and refusal.strip():
        text, fault = text or refusal, "refused"
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        # Half a surrogate pair is valid JSON, and no UTF-8.
        text=text[:_MOST_CHARACTERS].encode(errors="ignore").decode(),
        finished=ended != "length" and len(text) <= _MOST_CHARACTERS,
        fault=fault,
        tokens=_count(usage.get("completion_tokens")),
        prompt_tokens=_count(usage.get("prompt_tokens")),
    )


def without_key(body: bytes, key: str | None) -> bytes:
    """Return a reply without the API key, which a server may echo, however its JSON spells it."""
    if key is None:
        return body
    body = body.replace(key.encode(), b"[key]")
    try:
        plain = json.dumps(_json(body))
    except (BadReplyError, RecursionError):
        return body
    spelled = json.dumps(key)[1:-1]
    return plain.replace(spelled, "[key]").encode() if spelled in plain else body


def error_text(body: bytes) -> str:
    """Return a short line of what an error reply says: its message, or how it begins."""
    try:
        data = _json(body)
    except BadReplyError:
        data = None
    found = data
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    text = found if isinstance(found, str) else body[:1000].decode(errors="replace")
    text = text.encode(errors="replace").decode()
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:200]


def is_filtered(body: bytes) -> bool:
    """Return whether an error reply says that a content filter refused the request."""
    try:
        data = _json(body)
    except BadReplyError:
        return False
    error = data.get("error") if isinstance(data, dict) else None
    return isinstance(error, dict) and error.get("code") in _FILTER_CODES


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        start = body[:60].decode(errors="replace")
        raise BadReplyError(f"no JSON ({type(error).__name__}): {start!r}") from None


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadReplyError(f"the content is of type {type(content).__name__}")
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    return "\n".join(text for text in texts if isinstance(text, str))


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else 0
