"""The embedded world's web server, as the pipeline holds it: started, told its config, ended.

The server itself is `python -m pipeline.sources.scenes`, a process of its own, so that the pipeline
downloads from it like from any other host.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pipeline
from pipeline.settings import ConfigError
from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.rows import HOST

#: What the server process says when its port is bound.
READY: Final = "ready"

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 5.0


class SceneServer:
    """Context manager: serves a world on 127.0.0.1 at `config.port` while it is open.

    Entering raises `ConfigError` if the port is taken. A URL's bytes do not depend on the order or
    number of requests; only `flaky` URLs remember, while the server is open, that they failed.
    """

    def __init__(self, config: ScenesConfig) -> None:
        self.config = config
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.sources.scenes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": _import_path()},
        )
        try:
            self._start(self._process)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def _start(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(self.config.model_dump_json() + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died at once; its answer below, an empty line, says so
        answered, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
        answer = process.stdout.readline().strip() if answered else "no answer"
        if answer == str(errno.EADDRINUSE):
            raise ConfigError(
                f"source.port: {self.config.port} is already in use on {HOST}; end the run that "
                f"uses it, or set a free one, such as source.port={_free_port()}"
            )
        if answer == str(errno.EACCES):
            raise ConfigError(
                f"source.port: {self.config.port} may not be used by this account; set a free "
                f"one, such as source.port={_free_port()}"
            )
        if answer != READY:
            raise RuntimeError(f"the scene server did not start (it said {answer!r})")

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # the server's sign to end
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _import_path() -> str:
    """Return a PYTHONPATH on which this very `pipeline` package comes first."""
    here = str(Path(next(iter(pipeline.__path__))).parent)
    inherited = os.environ.get("PYTHONPATH")
    return f"{here}{os.pathsep}{inherited}" if inherited else here


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
