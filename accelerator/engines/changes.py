"""Whether a model still is what was exported of it, looked up in a fraction of a millisecond."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection
from typing import Any

__all__ = ["Watched"]


class Watched:
    """The weights and modules of a torch module as they are now; those of its children `without`, which only learn,
    left out."""

    def __init__(self, model: Any, *, without: Collection[str] = ()) -> None:
        self._top = model._modules
        self._children = {name: child for name, child in model._modules.items() if name not in without}
        self._modules = [child for child in self._children.values() if child is not None]
        for module in self._modules:  # it grows meanwhile
            self._modules.extend(child for child in module._modules.values() if child is not None)
        self._tables = [t for m in self._modules for t in (m._modules, m._parameters, m._buffers)]
        self._held = self._contents()
        weights = [t for m in self._modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
        self._weights, self._places = weights, [weight.data_ptr() for weight in weights]
        self._counted = [weight for weight in weights if not weight.is_inference()]  # others count no changes
        self._versions = [weight._version for weight in self._counted]

    def changed(self) -> bool:
        """Whether a module or weight is another one, lies elsewhere or was written to."""
        held = self._contents()
        return (
            any(self._top.get(name) is not child for name, child in self._children.items())
            or len(held) != len(self._held)
            or not all(map(operator.is_, held, self._held))
            or [weight.data_ptr() for weight in self._weights] != self._places
            or [weight._version for weight in self._counted] != self._versions
        )

    def training(self) -> bool:
        """Whether any of it is in training mode."""
        return any(module.training for module in self._modules)

    def _contents(self) -> list[Any]:
        return list(itertools.chain.from_iterable(map(dict.values, self._tables)))
