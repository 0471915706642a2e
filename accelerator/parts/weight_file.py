"""Weights that compiled kernels read, in one file: arrays by name, and what else is to be known of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import SessionError
from ..hardware.forks import Lock

__all__ = ["Opened", "Weights", "load", "save"]

Weights = tuple[Mapping[str, np.ndarray], Mapping[str, Any]]
"""Tensors, and the rest."""

_Made = TypeVar("_Made")


def save(weights: Weights, path: Path) -> None:
    """Write the weights to one file, in float32, which `load` reads."""
    tensors, config = weights
    plain = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    save_file(plain, str(path), metadata={"config": json.dumps(config)})


def load(path: Path) -> Weights:
    """Tensors and the configuration. Raises SessionError."""
    try:
        with safe_open(str(path), framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return tensors, json.loads(file.metadata()["config"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SessionError(f"{path.name} cannot be read: {error}") from error


class Opened(Generic[_Made]):
    """What was made of files, each once for as long as anybody has it: calls on one thread and on several share it."""

    def __init__(self, make: Callable[[Weights], _Made]) -> None:
        self._make, self._lock = make, Lock()
        self._made: WeakValueDictionary[Path, _Made] = WeakValueDictionary()

    def __call__(self, file: Path) -> _Made:
        """Raises SessionError."""
        with self._lock:
            made = self._made.get(file)
            if made is None:
                made = self._made[file] = self._make(load(file))
        return made
