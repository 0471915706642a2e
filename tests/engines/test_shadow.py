"""A stand-in for an engine: what is replaced is read from it alone, everything else is the original's."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from accelerator.engines.shadow import shadow


class Engine:
    polite = False

    def __init__(self) -> None:
        self.name = "engine"

    def greet(self) -> str:
        return f"{self.word()}, {self.name}{', please' if self.polite else ''}"

    def word(self) -> str:
        return "hello"

    @property
    def loud(self) -> str:
        return self.word().upper()


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def stand_in(engine: Engine) -> Any:
    return shadow(engine, word=lambda: "hi")


def test_methods_run_on_what_is_replaced_and_the_original_stays(engine: Engine, stand_in: Any) -> None:
    assert (stand_in.word(), stand_in.greet(), stand_in.loud) == ("hi", "hi, engine", "HI")
    assert (engine.word(), engine.greet(), engine.loud) == ("hello", "hello, engine", "HELLO")
    assert isinstance(stand_in, Engine)
    assert stand_in.__class__ is Engine


@pytest.mark.parametrize("through", ["the original", "the shadow"])
def test_settings_are_read_from_both(engine: Engine, stand_in: Any, through: str) -> None:
    owner = engine if through == "the original" else stand_in
    owner.name, owner.polite, owner.new = "you", True, 1  # of the object, of its class, of neither
    assert (stand_in.greet(), engine.greet()) == ("hi, you, please", "hello, you, please")
    assert stand_in.new == engine.new == 1  # type: ignore[attr-defined]
    del owner.polite, owner.new
    assert stand_in.greet() == "hi, you"
    assert not hasattr(engine, "new")
    with pytest.raises(AttributeError, match="new"):
        _ = stand_in.new


@pytest.mark.parametrize("through", ["the original", "the shadow"])
def test_what_is_replaced_gives_way_to_what_its_owner_sets(engine: Engine, stand_in: Any, through: str) -> None:
    owner, replaced = engine if through == "the original" else stand_in, stand_in.word
    owner.word = lambda: "good morning"
    assert stand_in.greet() == engine.greet() == "good morning, engine"
    stand_in.word = replaced  # and back: the original gets its own, not the replacement
    assert (stand_in.greet(), engine.greet()) == ("hi, engine", "hello, engine")


def test_copies_are_the_originals(engine: Engine, stand_in: Any) -> None:
    stand_in.name = "a copy"
    for made in (copy.copy(stand_in), copy.deepcopy(stand_in), pickle.loads(pickle.dumps(stand_in))):
        assert type(made) is Engine
        assert made is not engine
        assert made.greet() == "hello, a copy"
