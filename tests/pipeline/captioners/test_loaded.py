"""Which models stay in a process, and when they go."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.captioners import loaded
from pipeline.captioners.loaded import drop_other_models, hold_models, load_model


class Weights:
    """A model of a machine that has room for `fit` of them."""

    fit = 10

    def __init__(self, name: str, *_: Any) -> None:
        self.name = name
        there = resident()
        LOADS.append((name, there))
        if len(there) >= Weights.fit:
            raise torch.OutOfMemoryError("as a GPU says it")
        ALIVE.append(weakref.ref(self))


LOADS: list[tuple[str, set[str]]] = []
ALIVE: list[weakref.ref[Weights]] = []


def resident() -> set[str]:
    return {model.name for reference in ALIVE if (model := reference()) is not None}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """`load_model` of a fresh process; LOADS says what was there as each model came."""
    LOADS.clear()
    ALIVE.clear()
    monkeypatch.setattr(Weights, "fit", 10)
    monkeypatch.setattr(loaded, "_HELD", loaded._Held())
    monkeypatch.setattr(loaded, "VisionLanguageModel", Weights)
    return lambda name: load_model(name, "auto", "cpu")


def test_one_model_goes_before_the_next_one_comes(load: Callable[[str], Any]) -> None:
    for name in ("a", "a", "b", "a"):
        assert load(name).name == name
    assert [("a", set()), ("b", set()), ("a", set())] == LOADS


def test_captioners_that_take_turns_load_once_each(load: Callable[[str], Any]) -> None:
    hold_models(2)
    for name in "ababab":
        load(name)
    assert [("a", set()), ("b", {"a"})] == LOADS
    load("c")
    assert LOADS[-1] == ("c", {"b"})  # a was used longest ago
    hold_models(1)
    assert resident() == {"c"}


def test_models_that_do_not_fit_together_are_loaded_alone(load: Callable[[str], Any]) -> None:
    hold_models(2)
    Weights.fit = 1
    load("a")
    load("b")
    assert [("a", set()), ("b", {"a"}), ("b", set())] == LOADS
    Weights.fit = 0
    with pytest.raises(torch.OutOfMemoryError):
        load("c")


def test_a_model_that_works_can_have_the_memory_of_the_others(load: Callable[[str], Any]) -> None:
    hold_models(2)
    load("a")
    at_work = load("b")
    assert drop_other_models(at_work) is True
    assert drop_other_models(at_work) is False
    assert resident() == {"b"}
