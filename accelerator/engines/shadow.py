"""A stand-in for an engine some of whose attributes are replaced, while everything else is the engine's own."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["shadow"]


def shadow(original: Any, **replaced: Any) -> Any:
    """An object of the original's class that has the attributes `replaced`, and for all others is the original.

    Whatever its owner sets, on the one or on the other, is read from both: there is one place for it, the original.
    So each replacement stands for what the original had when the shadow was made: once its owner sets something else
    there, that is read, until what was there before is set again. Methods run on the shadow; copies of it, and what is
    pickled, are the original's.
    """
    kind: Any = type(original)
    stood_for = {name: getattr(original, name) for name in replaced}

    def read(self: Any, name: str) -> Any:
        if name in replaced and _is_same(getattr(original, name), stood_for[name]):
            return replaced[name]
        own = getattr(original, "__dict__", {})
        return own[name] if name in own else kind.__getattribute__(self, name)

    def read_otherwise(self: Any, name: str) -> Any:  # what neither has, but the class may compute for the original
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(original, name)

    def write(self: Any, name: str, value: Any) -> None:
        back = name in replaced and value is replaced[name]
        setattr(original, name, stood_for[name] if back else value)

    names = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__class__": property(lambda self: kind),
        "__getattribute__": read,
        "__getattr__": read_otherwise,
        "__setattr__": write,
        "__delattr__": lambda self, name: delattr(original, name),
        "__reduce_ex__": lambda self, protocol: original.__reduce_ex__(protocol),
    }
    return object.__new__(type(kind.__name__, (kind,), names))


def _is_same(one: Any, other: Any) -> bool:
    """Bound methods are made anew each time they are read."""
    return one is other or (inspect.ismethod(one) and bool(one == other))
