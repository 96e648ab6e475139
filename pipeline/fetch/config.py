"""How fetching is governed; `DownloadConfig` derives from this, so the keys are `download.*`."""

from __future__ import annotations

import re
from typing import Final

from pydantic import Field, field_validator, model_validator

from pipeline.settings import PACE, Settings

_LISTED: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(\d{1,5}|\*)")
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class FetchConfig(Settings):
    """What may be fetched, how much of it, how long, how often. Defaults ours where not noted."""

    threads: int = Field(
        32,
        ge=1,
        description="concurrent fetches per worker process",
        json_schema_extra=PACE,
    )
    timeout: float = Field(
        10,
        gt=0,
        description="longest wait for one socket operation (img2dataset: 10) [s]",
        json_schema_extra=PACE,
    )
    deadline_s: float = Field(
        30,
        gt=0,
        description="longest try of one URL: DNS, connecting, redirects and body together [s]",
        json_schema_extra=PACE,
    )
    retries: int = Field(
        2,
        ge=0,
        description="further tries after a timeout, a reset, 429 or 5xx; nothing else is tried "
        "again (img2dataset: 0, and any failure)",
        json_schema_extra=PACE,
    )
    backoff_s: float = Field(
        1,
        ge=0,
        description="bound of the first wait between tries; the bound doubles from try to try up "
        "to 30 s, and the wait is drawn evenly below it (AWS 'full jitter') [s]",
        json_schema_extra=PACE,
    )
    retry_budget_s: float = Field(
        60,
        ge=0,
        description="all waits between the tries of a URL; Retry-After counts too [s]",
        json_schema_extra=PACE,
    )
    max_bytes: int = Field(
        20_971_520, ge=1024, description="largest body, as sent and as decompressed [bytes]"
    )
    max_pixels: int = Field(
        50_000_000,
        ge=1,
        description="largest width x height that a header may claim; read before decoding [px]",
    )
    max_redirects: int = Field(5, ge=0, description="redirects followed per try (urllib: 10)")
    allow_private_hosts: list[str] = Field(
        [],
        description="`host:port` (port `*`: any) that may be fetched although its address is "
        "loopback, private or otherwise not public",
    )
    host_concurrency: int = Field(
        32,
        ge=1,
        description="concurrent requests to one host and port, per worker process",
        json_schema_extra=PACE,
    )
    host_rate: float | None = Field(
        None,
        gt=0,
        description="requests to one host and port, per worker process [1/s]",
        json_schema_extra=PACE,
    )
    host_wait_s: float = Field(
        60,
        gt=0,
        description="longest wait for hosts' turns in one try, redirects included; then the row "
        "fails, host_busy [s]",
        json_schema_extra=PACE,
    )
    host_failures: int = Field(
        64,
        ge=0,
        description="URLs of a host without an answer, all begun since its last one, after which "
        "the host is skipped (host_down); never fewer than threads + 1; 0: no host is skipped",
        json_schema_extra=PACE,
    )
    host_down_s: float = Field(
        120,
        gt=0,
        description="how long a host is skipped before one URL of it is tried again [s]",
        json_schema_extra=PACE,
    )
    dns_cache_s: float = Field(
        300,
        ge=0,
        description="how long a resolved host name is kept; a tenth for failures [s]",
        json_schema_extra=PACE,
    )
    respect_robots_txt: bool = Field(
        False, description="ask each host's robots.txt first, RFC 9309 (img2dataset: never asks)"
    )
    user_agent_token: str | None = Field(
        "tcjepa",
        description="named in the User-Agent header, and matched in X-Robots-Tag and robots.txt",
    )
    contact_url: str | None = Field(
        None,
        description="page about this crawl and how to reach you, named in the User-Agent header; "
        "null: img2dataset's page, as it does",
        json_schema_extra=PACE,
    )
    respect_opt_out: list[str] = Field(
        ["noai", "noimageai", "noindex", "noimageindex"],
        description="X-Robots-Tag directives that forbid use (img2dataset's)",
    )

    @field_validator("allow_private_hosts")
    @classmethod
    def _host_and_port(cls, entries: list[str]) -> list[str]:
        for entry in entries:
            if not _LISTED.fullmatch(entry):
                raise ValueError(f"{entry!r} is no `host:port`, such as 127.0.0.1:8765 or [::1]:80")
        return entries

    @field_validator("user_agent_token")
    @classmethod
    def _one_word(cls, token: str | None) -> str | None:
        if token is not None and not _TOKEN.fullmatch(token):
            raise ValueError(f"{token!r} must be one word of ASCII letters, digits and - . _")
        return token

    @field_validator("contact_url")
    @classmethod
    def _plain_url(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"(https?://|mailto:)[!-'*-:<-~]+", url):
            raise ValueError(f"{url!r} must be an http(s) or mailto URL without spaces, ; ( and )")
        return url

    @model_validator(mode="after")
    def _turns_come(self) -> FetchConfig:
        if self.host_rate is not None and self.host_rate * self.host_wait_s < 1:
            raise ValueError(
                f"host_rate {self.host_rate} per second leaves more than host_wait_s "
                f"{self.host_wait_s} between two requests; raise host_wait_s"
            )
        return self
