"""The modules of `traceable`, made when they are asked for: PyTorch is imported then, and not before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Made"]


class Made:
    """Makes one from the engine's own. Its code is that of `traceable`, for `export.sources`."""

    def __init__(self, kind: str, *owners: Callable[[], Any]) -> None:
        self._kind, self._owners = kind, owners
        self.__module__ = f"{__package__}.traceable"

    def __call__(self) -> Any:
        from . import traceable

        return traceable.made(getattr(traceable, self._kind), *self._owners)
