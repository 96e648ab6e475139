"""Makes `urllib.request.urlopen`, and so img2dataset, fetch under the policy in this process."""

from __future__ import annotations

import threading
import urllib.request
from typing import Any

from pipeline.fetch.blocklist import Blocklist
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.opener import PolicyOpener

_lock = threading.Lock()
_installed: tuple[Any, PolicyOpener] | None = None


def govern(
    config: FetchConfig, blocklist: Blocklist | None = None, local_root: str | None = None
) -> PolicyOpener:
    """Put the policy in charge of every `urlopen` of this process, and leave it there.

    Called at the start of each download task, so that workers that join late are governed too.
    The same policy keeps its opener, with what that knows of names and hosts; another one takes
    its place in one step. It is never taken out: a thread that img2dataset left behind must not
    find urllib's own opener.
    """
    global _installed  # noqa: PLW0603 - urllib's opener is a global of the process too
    settings = config.model_dump_json(include=set(FetchConfig.model_fields))
    key = (settings, blocklist or Blocklist(), local_root)
    with _lock:
        if _installed is None or _installed[0] != key:
            _installed = (key, PolicyOpener(config, blocklist, local_root))
        opener = _installed[1]
        # Any object with `open` will do; urllib's type says its own class.
        urllib.request.install_opener(opener)  # type: ignore[arg-type]
    return opener
