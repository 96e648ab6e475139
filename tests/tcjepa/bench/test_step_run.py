"""`python -m tcjepa bench step`: every row is there, and its numbers fit together."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.settings import ConfigError
from tcjepa.bench import step_run
from tcjepa.bench.captions import GivenWords, captions_of, is_imitated, open_or_imitate
from tcjepa.bench.stepping import CPU_BATCH, _lengths, bench_config
from tcjepa.cli import config_path
from tcjepa.data.batch import Batch
from tcjepa.text import TextConfig
from tests.tcjepa.tiny_text import save_byt5
from tests.tcjepa.train.runs import write_config

ROWS = [
    "encoder", "I-JEPA", "AdamW and EMA alone", "TC-JEPA", "TC-JEPA + text encoder",
    "text encoder alone",
]  # fmt: skip


def _run(*arguments: str | Path) -> None:
    parser = argparse.ArgumentParser()
    step_run.add_arguments(parser)
    step_run.run(parser.parse_args([str(argument) for argument in arguments]))


def _consistent(step: dict[str, Any]) -> None:
    for row in step["rows"]:
        for base in ("I-JEPA", "encoder"):
            ratio = row[f"time_to_{base}"]
            assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
        assert row["rate"] > 0
        assert row["mfu"] is None and row["memory_gib"] is None, "there is no GPU"
    rows = {row["name"]: row for row in step["rows"]}
    assert rows["I-JEPA"]["time_to_I-JEPA"] == {"median": 1, "low": 1, "high": 1}


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    target, trace = tmp_path / "step.json", tmp_path / "trace.json"
    _run(config, "--json", target, "--profile", trace, "--rounds", "2", "--batch", "4")
    table = capsys.readouterr().out
    found = json.loads(target.read_text())
    step = found["step"]
    assert [row["name"] for row in step["rows"]] == ROWS
    assert all(f"  {name} " in table for name in ROWS)
    _consistent(step)
    rows = {row["name"]: row for row in step["rows"]}
    given, bare = rows["TC-JEPA"], rows["I-JEPA"]
    assert bare["flops_per_image"] == pytest.approx(sum(step["flops"]["I-JEPA"].values()))
    assert given["flops_per_image"] > bare["flops_per_image"] > rows["encoder"]["flops_per_image"]
    (rates,) = ([row["rates"] for row in bench["rows"]] for bench in found["benches"])
    assert [row["rate"] for row in step["rows"]] == [statistics.median(own) for own in rates]
    assert step["batch"] == 4 and step["compiled"]["graphs"] == 0
    events = json.loads(trace.read_text())["traceEvents"]
    assert any("aten::addmm" in str(event.get("name")) for event in events)


def test_without_text_there_is_no_row_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(write_config(tmp_path), "model.text=null", "--rounds", "1", "--batch", "4")
    table = capsys.readouterr().out
    assert "I-JEPA" in table and "TC-JEPA " not in table


def test_what_cannot_work_is_refused_before_any_work(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with pytest.raises(ConfigError, match="--profile"):
        _run(config, "--profile", tmp_path / "none" / "trace.json")
    with pytest.raises(ConfigError, match="--rounds"):
        _run(config, "--rounds", "0")
    with pytest.raises(ConfigError, match=r"train\.bach"):
        _run(config, "train.bach=4")


def test_a_step_is_one_forward_pass() -> None:
    published = config_path("vit_b16")
    assert bench_config(published, ["train.device=cpu"]).train.batch == CPU_BATCH
    train = bench_config(published, ["train.batch=64"]).train
    assert (train.batch, train.micro_batch) == (64, None)


def test_captions_are_equal_on_every_machine_and_as_long_as_asked() -> None:
    captions = captions_of(0, 50, 8, 14.0)
    assert captions == captions_of(0, 50, 8, 14.0) != captions_of(1, 50, 8, 14.0)
    lengths = [len(caption.split()) for own in captions for caption in own]
    assert len(lengths) == 400 and len({caption for own in captions for caption in own}) == 400
    assert statistics.mean(lengths) == pytest.approx(14, abs=0.7)
    assert statistics.stdev(lengths) == pytest.approx(0.28 * 14, rel=0.2)


def test_given_words_are_the_encoders_and_encoded_once() -> None:
    calls: list[int] = []
    encoder = open_or_imitate(TextConfig(width=8))
    whole = encoder.encode

    class Counting:
        width = encoder.width
        spans_of = encoder.spans_of

        def encode(self, captions, device):
            calls.append(len(captions))
            return whole(captions, device)

    given = GivenWords(Counting())
    device = torch.device("cpu")
    batches = [captions_of(number, 3, 2, 5.0) for number in range(2)]
    for captions in [*batches, *batches]:
        assert torch.equal(given.encode(captions, device).words, whole(captions, device).words)
    assert calls == [3, 3]


@pytest.mark.parametrize(("name", "imitated"), [("hashed", False), ("t5-base", True)])
def test_only_weights_that_are_at_hand_are_used(name: str, imitated: bool) -> None:
    assert is_imitated(TextConfig(encoder=name)) == imitated


def test_the_imitation_is_a_t5_of_one_token_per_word() -> None:
    encoder = open_or_imitate(TextConfig(encoder="t5-base", max_words=6))
    text = encoder.encode(
        [["w1 w2 w31999", "w7"], ["w1 w2 w3 w4 w5 w6 w7 w8"]], torch.device("cpu")
    )
    assert encoder.width == 768
    assert text.valid.sum(1).tolist() == [3, 1, 6]
    assert text.words[text.valid].std() > 0


@pytest.mark.parametrize("name", ["hashed", "bytes"])
def test_lengths_are_those_that_the_model_sees(name: str, tmp_path: Path) -> None:
    """Counted by the tokenizer: encoding them on a CPU would take as long as the bench."""
    name = str(save_byt5(tmp_path)) if name == "bytes" else name
    encoder = open_or_imitate(TextConfig(encoder=name, max_words=6))
    captions = [
        ["a red star", "a dog", ""],
        ["a red star"],
        [],
        ["one two three four five six seven"],
    ]
    batch = Batch(torch.zeros(4, 3, 8, 8), captions, torch.arange(4), 0, [])
    text = encoder.encode(captions, torch.device("cpu"))
    present = text.caption[text.caption >= 0]
    found = _lengths(encoder, [batch])
    assert found.count == len(present) / 4
    assert found.words == pytest.approx(float(text.valid.sum(1)[present].float().mean()))
    assert found.distinct == pytest.approx(len(set(present.tolist())) / len(present))
