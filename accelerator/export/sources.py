"""The files whose text takes part in the key of an export."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["source_of"]


def source_of(thing: Any) -> str:
    """The file a module or a function comes from: what it says takes part in the key of an export."""
    return str(inspect.getsourcefile(getattr(thing, "func", thing)))  # of a partial function, what it calls
