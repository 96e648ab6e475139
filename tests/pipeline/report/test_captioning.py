"""Captioner figures, as the stage `recaption` reports them."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.report.activity import read_activity
from pipeline.report.captioning import captioner_facts, captioner_rows
from pipeline.report.fates import Fates
from pipeline.report.picks import Picks
from pipeline.report.survey import Survey
from pipeline.storage import Directory


def test_figures_of_all_parts_are_added_up(tmp_path: Path) -> None:
    figures = {
        "blip_seconds": 8.0, "blip_generating_seconds": 6.0, "blip_captions": 40.0,
        "blip_answers": 20.0, "blip_reused": 5.0, "blip_retries": 1.0,
        "tokens": 300.0, "prompt_tokens": 100.0, "gpu_seconds": 6.0,
    }  # fmt: skip
    lines = [
        {"time": end, "stage": "recaption", "part": f"{n:05d}", "seconds": 10.0, "bytes": 0,
         "counts": {"images": 25, "captions": 40}, "figures": figures, "error": None}
        for n, end in enumerate((110.0, 115.0))
    ]  # fmt: skip
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, lines)))
    activity = read_activity(Directory(tmp_path))
    survey = Survey(Fates(Picks(0, 0)))
    survey.captioned = 50
    survey.caption_errors.update({"refusal": 5, "empty": 2})
    facts = dict(captioner_facts(activity, survey))
    assert facts["captions/s"] == "5.33"  # 80 in the 15 s in which any of it ran
    assert facts["tokens (40/s)"] == "600"
    assert facts["GPU idle, of task time"] == "40.0%"  # 12 of 20 s busy
    assert facts["failed: refusal"] == "5 (10.0%)"
    (row,) = captioner_rows(activity)
    assert (row.name, row.captions, row.rate, row.generating) == ("blip", "80", "5", "75.0%")
    assert (row.answers, row.reused, row.retries) == ("40", "10", "2")


def test_a_run_without_captioners_says_nothing(tmp_path: Path) -> None:
    activity = read_activity(Directory(tmp_path))
    assert captioner_facts(activity, Survey(Fates(Picks(0, 0)))) == []
    assert captioner_rows(activity) == []
