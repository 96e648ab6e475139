"""The run's list of forgotten uids, which later fetches obey."""

from __future__ import annotations

import datetime
from collections.abc import Collection

from pipeline.storage import Directory

FORGOTTEN = "forgotten.json"


def forgotten_uids(run: Directory) -> dict[str, str]:
    """Return the uids that were forgotten, with the day (UTC) on which each was asked for."""
    return dict(run.read_json(FORGOTTEN)) if run.exists(FORGOTTEN) else {}


def record(run: Directory, uids: Collection[str]) -> None:
    """Add uids to the list; the day of those already on it stays."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    known = forgotten_uids(run)
    run.write_json(FORGOTTEN, {**dict.fromkeys(sorted(uids), today), **known})
