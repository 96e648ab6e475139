"""One request to a chat-completions server, tried again as long as that makes sense."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pipeline.captioners.answers import Answer, Costs
from pipeline.captioners.openai_reply import (
    BadReplyError,
    error_text,
    is_filtered,
    read_reply,
    without_key,
)
from pipeline.settings import ConfigError

if TYPE_CHECKING:
    import aiohttp

    from pipeline.captioners.openai import OpenAIConfig

#: Why an image has no caption. Of the first line the reason is the image's or the model's, and
#: of the second it may pass: those are worth asking again (`recaption.retry`).
Failure = Literal[
    "decode_failed", "empty_output", "refused", "degenerate", "content_filter", "bad_request",
    "timeout", "rate_limited", "server_error", "connection_failed", "bad_response",
]  # fmt: skip

_CONNECT_S: Final = 10.0
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_MOST_BYTES: Final = 4 << 20  # of a reply
_CHUNK: Final = 1 << 16
#: Worth another try, beside 5xx: request timeout, conflict, too early.
_PASSING: Final = (408, 409, 425)


@dataclass(frozen=True)
class Failed:
    """Why there is no answer.

    `wait_s` is what the server's Retry-After says, if it says it; `busy` that the server turned the
    request away for what else it has to do.
    """

    reason: Failure
    detail: str
    again: bool = False
    wait_s: float | None = None
    busy: bool = False


class ChatClient:
    """A connection pool to a server, used as an async context manager.

    The key goes into the header of each request and nowhere else: whatever the server says is
    cleared of it before it becomes an answer, an error or a log line.
    """

    def __init__(self, config: OpenAIConfig, key: str | None) -> None:
        self._config = config
        self._key = key
        self._answered = 0
        self._url = config.base_url.rstrip("/") + "/chat/completions"
        # Not aiohttp's `trust_env`, which would also put a password of ~/.netrc in the key's place.
        parts = urlsplit(self._url)
        bypass = bool(proxy_bypass(parts.netloc))
        self._proxy = None if bypass else getproxies().get(parts.scheme)
        self._fields = {
            name: value
            for name in ("max_tokens", "temperature", "top_p", "seed")
            if (value := getattr(config, name)) is not None
        }

    async def __aenter__(self) -> ChatClient:
        import aiohttp

        # Not compressed: what a few bytes unfold to is then no question.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=self._config.concurrency),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, image: str, prompt: str, deadline: float, costs: Costs) -> Answer | Failed:
        """Return the answer to a prompt about an image (a data: URL), or why there is none.

        `deadline` is the event loop's time [s] at which to give up. Raises `ConfigError` for a
        refused key, an unknown model or a redirect.
        """
        content = [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": prompt},
        ]
        body = json.dumps(
            {
                "model": self._config.model,
                "messages": [{"role": "user", "content": content}],
                **self._fields,
                **self._config.extra_body,
            }
        ).encode()
        clock = asyncio.get_running_loop().time
        failed = Failed("timeout", "no time left for this image")
        tried, waits, answered = 0, 0, self._answered
        while (left := deadline - clock()) > 0:
            outcome = await self._once(body, min(left, self._config.timeout_s))
            if isinstance(outcome, Answer):
                self._answered += 1
                return outcome
            if not outcome.again:
                return outcome
            failed = outcome
            # A server that turns this request away and answers others is at its limit and not
            # broken: it is asked again for as long as the image has time.
            tried += not (outcome.busy and self._answered > answered)
            answered = self._answered
            wait = _pause(waits, outcome.wait_s)
            if tried > self._config.retries or clock() + wait >= deadline:
                break
            waits += 1
            costs.retries += 1
            await asyncio.sleep(wait)
        return failed

    async def _once(self, body: bytes, timeout_s: float) -> Answer | Failed:
        import aiohttp

        limit = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S)
        try:
            async with self._session.post(
                self._url,
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=limit,
                proxy=self._proxy,
                allow_redirects=False,
            ) as response:
                status, retry_after = response.status, response.headers.get("Retry-After")
                reply = without_key(await _read(response), self._key)
        except aiohttp.ServerTimeoutError as error:  # while connecting
            return Failed("connection_failed", self._clear(error), again=True)
        except TimeoutError:
            return Failed("timeout", f"no whole reply in {timeout_s:.3g} s", again=True)
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            return Failed("connection_failed", self._clear(error), again=True)
        except (aiohttp.ClientError, BadReplyError, ValueError) as error:
            return Failed("bad_response", self._clear(error), again=True)
        if status != 200:
            return self._refused(status, reply, retry_after)
        try:
            return read_reply(reply)
        except BadReplyError as error:
            return Failed("bad_response", str(error), again=True)

    def _refused(self, status: int, reply: bytes, retry_after: str | None) -> Failed:
        """Return what a status other than 200 means; raises `ConfigError` if it is the set-up."""
        detail = f"{status}: {error_text(reply)}"
        config = self._config
        if status in (401, 403):
            variable = config.api_key_env
            fix = f"check the key in {variable}" if variable else "name the key's variable"
            raise ConfigError(f"captioner.api_key_env: the server refused us, {detail}; {fix}")
        if status == 404:
            raise ConfigError(
                f"captioner.model: {self._url} does not know {config.model}, or is no "
                f"chat-completions endpoint, {detail}; see GET {config.base_url.rstrip('/')}/models"
            )
        if 300 <= status < 400:
            raise ConfigError(
                f"captioner.base_url: {self._url} redirects ({status}), which is not followed, as "
                "the key would go along; give the address it leads to"
            )
        if status == 429:
            again = b"insufficient_quota" not in reply  # OpenAI's, of an account that is used up
            return Failed("rate_limited", detail, again, wait_seconds(retry_after), busy=True)
        if status in (502, 503, 504):
            wait_s = wait_seconds(retry_after)
            return Failed("connection_failed", detail, True, wait_s, busy=status == 503)
        if status >= 500 or status in _PASSING:
            return Failed("server_error", detail, True, wait_seconds(retry_after))
        return Failed("content_filter" if is_filtered(reply) else "bad_request", detail)

    def _clear(self, error: Exception) -> str:
        text = str(error) or type(error).__name__
        return text.replace(self._key, "[key]") if self._key else text


async def _read(response: aiohttp.ClientResponse) -> bytes:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise BadReplyError("the reply is compressed, which was not asked for")
    parts: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_chunked(_CHUNK):
        size += len(chunk)
        if size > _MOST_BYTES:
            raise BadReplyError(f"the reply has more than {_MOST_BYTES} bytes")
        parts.append(chunk)
    return b"".join(parts)


def _pause(waits: int, asked_s: float | None) -> float:
    """Return the seconds to wait after `waits` waits; what the server asked for, and some more.

    All that it turned away in one moment would come back in one.
    """
    if asked_s is not None:
        return asked_s * random.uniform(1.0, 1.25) + random.uniform(0.0, _FIRST_WAIT_S)
    return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(waits, 30)) * random.uniform(0.5, 1.0)


def wait_seconds(retry_after: str | None) -> float | None:
    """Return the seconds a Retry-After header asks for, as a number or a date; else None."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            date = parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
        return max(seconds, 0.0)
    return seconds if 0 <= seconds < float("inf") else None
