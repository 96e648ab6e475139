"""What the opener hands to img2dataset: it looks like urllib's response and is all in memory."""

from __future__ import annotations

import io
from http.client import HTTPMessage


class Answer(io.BytesIO):
    """A whole body with its headers; `read()` returns it without copying."""

    def __init__(self, body: bytes, headers: HTTPMessage, url: str, status: int) -> None:
        super().__init__(body)
        self.headers = headers
        self.url = url
        self.status = self.code = status

    def info(self) -> HTTPMessage:
        """Return the headers, as urllib's responses do."""
        return self.headers

    def geturl(self) -> str:
        """Return the URL that was read in the end, after redirects."""
        return self.url
