"""Files of a source's own folder, the only ones that a `file:` URL may name."""

from __future__ import annotations

import os
import stat
from http.client import HTTPMessage
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.fetch.answer import Answer
from pipeline.fetch.errors import FetchError


def read_local(url: str, root: str | None, max_bytes: int) -> Answer:
    """Return a regular file under `root`, symbolic links resolved on both sides.

    Raises `FetchError`: `bad_scheme` if the source has no folder, `outside_folder`,
    `missing_file`, `not_an_image` for what is no regular file, `too_large`.
    """
    if root is None:
        raise FetchError("bad_scheme", "file is not http or https")
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or "\0" in unquote(parts.path):
        raise FetchError("bad_url", "no path of this machine")
    path = Path(os.path.realpath(unquote(parts.path)))
    if not path.is_relative_to(os.path.realpath(root)):
        raise FetchError("outside_folder", "the file lies outside the source's folder")
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise FetchError("not_an_image", "no regular file")
        # O_NONBLOCK: should it have become a named pipe since, opening would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise FetchError("missing_file", str(error.strerror)) from error
    with os.fdopen(descriptor, "rb") as file:
        body = file.read(max_bytes + 1)
    if len(body) > max_bytes:
        raise FetchError("too_large", "the file is larger than max_bytes")
    return Answer(body, HTTPMessage(), url, 200)
