"""A language model's step, a frame's draws, and the team that shares them; `opcodes` says which."""

from __future__ import annotations

from typing import Any

from ..compiler import Unit

__all__ = ["STEP"]


def _entry() -> Any:
    from ..llm.step import call

    return call


STEP = Unit("step", __name__, _entry, arguments=3)
