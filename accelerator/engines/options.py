"""What a request may ask of an engine beside text and voice, by name: each engine has its own table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidOption
from ..speech import is_finite

__all__ = ["SAMPLING", "Option", "check_options", "parse_options"]


@dataclass(frozen=True)
class Option:
    """A keyword argument of a request.

    kind: float, int, str or bool. low, high: of a number. choices: of a text. default: the engine's own, for people to
    read; None where it depends.
    """

    kind: type
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    default: Any = None

    @property
    def values(self) -> str:
        """What it may be, in words: "0.5 to 2", "a text"."""
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return " or ".join(self.choices) or "a text"
        kind = "a whole number" if self.kind is int else "a number"
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return kind + (f" from {self.low:g}" if self.low is not None else "")

    def parse(self, name: str, text: str) -> Any:
        """The value that somebody wrote. Raises InvalidOption."""
        try:
            value = {"true": True, "false": False}[text.lower()] if self.kind is bool else self.kind(text)
        except (ValueError, KeyError) as error:
            raise InvalidOption(f"{name} must be {self.values}, not {text!r}") from error
        return self.check(name, value)

    def check(self, name: str, value: Any) -> Any:
        """The value, as the engine takes it. Raises InvalidOption."""
        if self.kind is bool or self.kind is str:
            if not isinstance(value, self.kind):
                raise InvalidOption(f"{name} must be a {self.kind.__name__}, not {type(value).__name__}")
            if self.choices and value not in self.choices:
                raise InvalidOption(f"{name} must be one of {', '.join(self.choices)}, not {value!r}")
            return value
        numbers = (int, np.integer) if self.kind is int else (int, float, np.integer, np.floating)
        if isinstance(value, bool) or not isinstance(value, numbers):
            kind = "an integer" if self.kind is int else "a number"
            raise InvalidOption(f"{name} must be {kind}, not {type(value).__name__}")
        low, high = (-math.inf if self.low is None else self.low), (math.inf if self.high is None else self.high)
        if not (is_finite(value) and low <= value <= high):
            raise InvalidOption(f"{name} must be from {low:g} to {high:g}, not {value!r}")
        return self.kind(value)


SAMPLING: Mapping[str, Option] = {
    "temperature": Option(float, "softmax temperature, 0 is greedy", 0.0, 2.0),
    "top_p": Option(float, "nucleus mass", 0.0, 1.0),
    "top_k": Option(int, "candidates kept", 1),
    "repetition_penalty": Option(float, "divisor of the logits of recent tokens", 1.0, 10.0),
    "max_new_tokens": Option(int, "frames of each segment at most", 1),
}
"""What engines that draw tokens understand: the fields of `speech.SamplingParams`, which checks them."""


def check_options(engine: str, known: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, checked; None means not given. Raises InvalidOption, which lists what the engine knows."""
    taken = {}
    for name, value in given.items():
        if value is None:
            continue
        if name not in known:
            raise _unknown(engine, name, ["seed", *_listed(known)] if known else ["seed only"])
        taken[name] = known[name].check(name, value)
    return taken


def parse_options(engine: str, known: Mapping[str, Option], given: Mapping[str, str]) -> dict[str, Any]:
    """What was written, as `check_options` takes it. Raises InvalidOption."""
    for name in given:
        if name not in known:
            raise _unknown(engine, name, _listed(known) or ["none"])
    return {name: known[name].parse(name, text) for name, text in given.items()}


def _unknown(engine: str, name: str, taken: Sequence[str]) -> InvalidOption:
    return InvalidOption(f"{name} is no option of {engine}: it takes {', '.join(taken)}")


def _listed(known: Mapping[str, Option]) -> list[str]:
    return [f"{name} ({known[name].values})" for name in sorted(known)]
