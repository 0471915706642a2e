"""Sizes, durations and numbers as people write and read them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

__all__ = ["figures", "iso_time", "parse_size", "plain", "ratio", "seconds", "size"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of "2G", "1.5 GiB" (both binary, as `ls -h` has it), "500MB" (decimal) or "1024". Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no size: write it as 2G, 500M, 1.5GiB, 800MB or a number of bytes")
    number, prefix, suffix = match[1], match[2].lower(), (match[3] or "").lower()
    if suffix == "ib" and not prefix:
        raise ValueError(f"{text!r} is no size: 'iB' needs a K, M, G or T before it")
    base = 1000 if prefix and suffix == "b" else 1024
    return int(float(number) * base ** ("kmgt".index(prefix) + 1)) if prefix else int(float(number))


def size(count: float) -> str:
    """Bytes for people: 1536 -> "1.5 KiB"."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def seconds(value: float | None) -> str:
    """A duration for people: 0.0123 -> "12.3 ms"."""
    if value is None or not math.isfinite(value):
        return "-"
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.{1 if value < 0.1 else 0}f} ms"
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def ratio(value: float | None) -> str:
    """Three significant digits, "-" for what is no number."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.3g}"


def figures(proof: Mapping[str, Any]) -> str:
    """The figures that a proof's bar asks for, or all of its numbers: "kl 0.011, relative_error 0.076"."""
    names = [name for name in proof.get("bar", {}) if name in proof] or [
        name for name, value in proof.items() if isinstance(value, float)
    ]
    return ", ".join(f"{name} {ratio(float(proof[name]))}" for name in names)


def iso_time(timestamp: float) -> str:
    """Seconds since the epoch as ISO 8601, UTC."""
    return datetime.fromtimestamp(timestamp, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """A value that JSON can say: paths become strings, and what is not finite null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    item = getattr(value, "item", None)  # a numpy scalar
    return plain(item()) if callable(item) else str(value)
