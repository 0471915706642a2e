"""Second instances of an engine's modules, whose functions see other globals than the first one's."""

from __future__ import annotations

import types
from typing import Any

__all__ = ["instance"]


def instance(module: Any, **replaced: Any) -> types.ModuleType:
    """A module whose globals are those of `module`, with `replaced` in their place; its functions run on them.

    What is set on either one afterwards, a model that is loaded say, is not seen by the other.
    """
    made = types.ModuleType(module.__name__, module.__doc__)
    own = vars(module)
    vars(made).update(own)
    for name, each in own.items():
        if isinstance(each, types.FunctionType) and each.__globals__ is own:
            again = types.FunctionType(each.__code__, vars(made), name, each.__defaults__, each.__closure__)
            again.__kwdefaults__, again.__doc__ = each.__kwdefaults__, each.__doc__
            again.__dict__.update(each.__dict__)
            setattr(made, name, again)
    vars(made).update(replaced)
    return made
