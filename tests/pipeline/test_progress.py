"""Progress: counts that add up, few lines in a log, a bar on a terminal."""

from __future__ import annotations

import io

import pytest

from pipeline.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_one_line_at_the_end() -> None:
    stream = io.StringIO()
    with Progress("images", 5, "parts", every=3600, stream=stream) as progress:
        for number in range(5):
            progress.advance(1, failed=number % 2, note=f"part {number}")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("images: 5/5 parts")
    assert "2 failed" in lines[0]
    assert "part 4" in lines[0]


def test_a_log_gets_a_line_per_interval_with_the_time_left() -> None:
    stream = io.StringIO()
    with Progress("images", 3, "parts", every=0, stream=stream) as progress:
        progress.advance()
        progress.advance()
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "2/3"]
    assert all("s left" in line for line in lines)


def test_what_an_earlier_run_did_counts_as_done_but_not_as_speed() -> None:
    progress = Progress("images", 10, "parts", stream=io.StringIO())
    progress.skip(7)
    assert (progress.done, progress.rate) == (7, 0.0)
    progress.advance(2, failed=1)
    assert (progress.done, progress.failed) == (9, 1)
    assert progress.rate > 0


def test_a_terminal_gets_a_bar_and_it_ends_with_the_context() -> None:
    stream = Terminal()
    with Progress("images", 2, "parts", stream=stream) as progress:
        progress.advance(2, failed=1, note="last")
    assert "2/2" in stream.getvalue()
    assert "1 failed" in stream.getvalue()
    with pytest.raises(RuntimeError, match="inside"), Progress("x", 1, "y", stream=Terminal()):
        raise RuntimeError("inside")
