"""A small repository: a page, and a result file that it is made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RESULT: dict[str, Any] = {
    "command": ["python", "-m", "x", "bench"],
    "date": "2026-01-02T03:04:05+00:00",
    "hardware": {"cpu": "a CPU", "cores": 2, "memory_gib": 4, "gpu": None},
    "speed": {"rows": [{"name": "ours", "ratio": 3.94, "ratio_range": [2.5, 5.04]}]},
    "benches": [{"name": "speed of x"}, {"name": "of y"}],
    "seconds": 394,
    "zero": 0,
    "table": {"columns": ["what", "share"], "forms": ["s", ".1%"], "rows": [["a | b", 0.526]]},
}
PAGE = """# Page

We are <!-- n: run.json#speed/rows/ours/ratio .1f --><!-- /n --> times as fast.

<!-- table: run.json table -->
<!-- /table -->
"""


@pytest.fixture
def repository(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a page and result files, and returns the folder."""

    def write(page: str = PAGE, **results: Any) -> Path:
        (tmp_path / "docs/results").mkdir(parents=True, exist_ok=True)
        (tmp_path / "README.md").write_text("# Read me\n")
        (tmp_path / "docs/page.md").write_text(page)
        for name, content in ({"run": RESULT} | results).items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / f"docs/results/{name}.json").write_text(text)
        return tmp_path

    return write
