"""A stand-in for an engine some of whose methods are replaced, while everything else is the engine's own."""

from __future__ import annotations

from typing import Any

__all__ = ["shadow"]


def shadow(original: Any, **replaced: Any) -> Any:
    """An object of the original's class that has the attributes `replaced`, and for all others is the original.

    Whatever its owner sets, on the one or on the other, is read from both: there is one place for it, the original.
    What is replaced can be set again on the shadow alone.
    """
    kind: Any = type(original)

    def read(self: Any, name: str) -> Any:  # of what is found neither in the shadow nor in its class
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(original, name)

    def write(self: Any, name: str, value: Any) -> None:
        if name in self.__dict__:
            object.__setattr__(self, name, value)
        else:
            setattr(original, name, value)

    def remove(self: Any, name: str) -> None:
        delattr(original, name)

    own = {"__getattr__": read, "__setattr__": write, "__delattr__": remove}
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    made: Any = object.__new__(type(kind.__name__, (kind,), {**names, **own}))
    made.__dict__.update(replaced)
    return made
