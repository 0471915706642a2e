"""JSON that means the same to every reader: canonical when written, bounded and unambiguous when read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from . import digest

__all__ = ["MAX_BYTES", "MAX_DEPTH", "canonical", "parse", "plain", "read"]

MAX_BYTES = 1 << 20
MAX_DEPTH = 32

_STRUCTURE = re.compile(rb'["\\\[\]{}]')


def plain(value: Any, where: str = "value", depth: int = 0) -> Any:
    """A copy of `value` made of dict, list, str, int, float, bool and None only.

    Raises TypeError for anything else (bytes, sets, paths, keys that are no strings), ValueError for NaN, infinity and
    nesting deeper than `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"{where} is nested deeper than {MAX_DEPTH} levels")
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}; only finite numbers are allowed")
        return float(value)
    if isinstance(value, Mapping):
        # json.dumps would turn the keys 1 and True into strings, and two different mappings into one text.
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; only strings are allowed as keys")
        return {str(key): plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise TypeError(
        f"{where} is a {type(value).__name__}; pass str, int, float, bool, None, lists and mappings of them"
    )


def canonical(value: Any) -> bytes:
    """The canonical UTF-8 form of `value`: sorted keys, no spaces, ASCII escapes. Raises what `plain` raises."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.encode("ascii")


def parse(data: bytes) -> Any:
    """Reads JSON at most `MAX_BYTES` long and `MAX_DEPTH` deep, without duplicate keys, NaN or infinity.

    Raises ValueError, and nothing else, for whatever is not that.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    _bound_depth(data)
    return json.loads(
        data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
    )


def read(path: Path) -> dict[str, Any] | None:
    """The JSON object in a small file, or None for whatever else is there."""
    try:
        with open(digest.open_regular(path), "rb", buffering=0) as file:
            data = parse(file.read(MAX_BYTES + 1) or b"")
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _bound_depth(data: bytes) -> None:
    # Counted before parsing: with a raised recursion limit, deep nesting overflows the C stack of the json module.
    depth = 0
    in_string = False
    escaped = -1
    for match in _STRUCTURE.finditer(data):
        char = match.group()
        if match.start() == escaped:
            continue
        if char == b'"':
            in_string = not in_string
        elif in_string:
            if char == b"\\":
                escaped = match.end()
        elif char in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        else:
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number
