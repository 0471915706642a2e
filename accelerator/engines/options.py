"""What a request may ask of an engine beside text and voice, by name: each engine has its own table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidOption
from ..speech import is_finite

__all__ = ["SAMPLING", "Option", "check_options"]


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
            names = f"it takes {', '.join(('seed', *sorted(known)))}" if known else "it takes seed only"
            raise InvalidOption(f"{name} is no option of {engine}: {names}")
        taken[name] = known[name].check(name, value)
    return taken
