"""Weights that compiled kernels read, in one file: arrays by name, and what else is to be known of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import SessionError
from ..hardware.forks import Lock

__all__ = ["Opened", "Stored", "Weights", "load", "save", "stored"]

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
    with _reading(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return tensors, json.loads(file.metadata()["config"])


class Stored(Mapping[str, np.ndarray]):
    """Tensors that are read whenever they are asked for, as whoever orders them needs them once. shapes: by name."""

    def __init__(self, path: Path) -> None:
        """Raises SessionError."""
        self._path = path
        with _reading(path) as file:
            self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> np.ndarray:
        """Raises SessionError, and KeyError."""
        if name not in self.shapes:
            raise KeyError(name)
        with _reading(self._path) as file:
            return np.asarray(file.get_tensor(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def stored(path: Path) -> tuple[Stored, Mapping[str, Any]]:
    """As `load`, but what is not asked for is not read."""
    with _reading(path) as file:
        config = json.loads(file.metadata()["config"])
    return Stored(path), config


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="np") as file:
            yield file
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SessionError(f"{path.name} cannot be read: {error}") from error


class Opened(Generic[_Made]):
    """What was made of files, each once for as long as anybody has it: calls on one thread and on several share it."""

    def __init__(self, make: Callable[[Any], _Made], load: Callable[[Path], Any] = load) -> None:
        """make: of what `load` gives."""
        self._make, self._load, self._lock = make, load, Lock()
        self._made: WeakValueDictionary[Path, _Made] = WeakValueDictionary()

    def __call__(self, file: Path) -> _Made:
        """Raises SessionError."""
        with self._lock:
            made = self._made.get(file)
            if made is None:
                made = self._made[file] = self._make(self._load(file))
        return made
