"""A voice as one value: a safetensors file whose metadata has a digest of its arrays and of the key that it is for.

The digest finds what was damaged, cut off or stored under another key. It is no signature: who may write to a store can
put any voice into it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from ..errors import CorruptEntry

__all__ = ["are_numbers", "packed", "unpacked"]

_DIGEST = "sha256"
_LENGTH = 8  # bytes in front of a safetensors file's header, which tell its length


def packed(key: str, voice: Mapping[str, np.ndarray], about: Mapping[str, str]) -> bytes:
    """The value of a voice's arrays. about: further metadata, for people. Raises ValueError for what has no such file.

    Strings of bytes order their header by no rule, so that two values of one voice may differ.
    """
    arrays = {name: np.ascontiguousarray(array, array.dtype.newbyteorder("=")) for name, array in voice.items()}
    arrays = {name: array.reshape(voice[name].shape) for name, array in arrays.items()}  # a number has become [1]
    try:
        return safetensors.numpy.save(arrays, {**about, _DIGEST: _digest(key, arrays)})
    except (KeyError, safetensors.SafetensorError) as error:  # a type of number that the format does not have
        raise ValueError(f"{type(error).__name__}: {error}") from error


def unpacked(key: str, value: object) -> dict[str, np.ndarray]:
    """The arrays of the value that was packed for this key; they may be read-only. Raises CorruptEntry."""
    if not isinstance(value, bytes):
        raise CorruptEntry(f"it is a {type(value).__name__}, not bytes")
    try:
        arrays = safetensors.numpy.load(value)  # checks that header and data fit each other
        length = int.from_bytes(value[:_LENGTH], "little")
        digest = json.loads(value[_LENGTH : _LENGTH + length]).get("__metadata__", {}).get(_DIGEST)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptEntry(f"it is no safetensors file ({type(error).__name__})") from error
    if digest != _digest(key, arrays):
        raise CorruptEntry("its digest is not that of its content and key")
    if not are_numbers(arrays):
        raise CorruptEntry("it has no arrays of numbers")
    return arrays


def are_numbers(voice: Mapping[str, np.ndarray]) -> bool:
    """Whether it is arrays of numbers, at least one, none of them empty."""
    return bool(voice) and all(array.size > 0 and array.dtype.kind in "iuf" for array in voice.values())


def _digest(key: str, arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256(key.encode())
    for name, array in sorted(arrays.items()):
        found.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        found.update(array.tobytes())
    return found.hexdigest()
