"""Readers for the kernel's small text formats. Text that makes no sense reads as nothing."""

from __future__ import annotations

from collections.abc import Mapping

from accelerator.hardware.machine import Machine

__all__ = ["blocks", "cpu_list", "integer", "meminfo", "read_cpu_list", "read_integer", "size"]

_MOST_CPUS = 1 << 16  # a damaged range must not fill the memory
_LARGEST = 1 << 63


def integer(text: object) -> int | None:
    """A decimal integer within 63 bits, or None."""
    if isinstance(text, bool) or not isinstance(text, int | str):
        return None
    try:
        value = int(text)
    except ValueError:
        return None
    return value if -_LARGEST <= value < _LARGEST else None


def read_integer(machine: Machine, path: str) -> int | None:
    return integer(machine.read_text(path))


def cpu_list(text: str | None) -> frozenset[int]:
    """`"0-3,8"` -> {0, 1, 2, 3, 8} (Documentation/admin-guide/cputopology.rst, "cpulist")."""
    cpus: set[int] = set()
    for part in (text or "").strip().split(","):
        first, _, last = part.partition("-")
        low, high = integer(first), integer(last or first)
        if low is not None and high is not None and 0 <= low <= high < _MOST_CPUS:
            cpus.update(range(low, high + 1))
    return frozenset(cpus)


def read_cpu_list(machine: Machine, path: str) -> frozenset[int]:
    return cpu_list(machine.read_text(path))


def size(text: str | None) -> int | None:
    """`"1280K"`, `"32 MB"` or `"4096"` -> bytes."""
    digits = (text or "").strip().upper().removesuffix("B").rstrip()
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(digits[-1:], 1)
    value = integer(digits if factor == 1 else digits[:-1])
    return value * factor if value is not None and value > 0 else None


def blocks(text: str | None) -> list[dict[str, str]]:
    """`/proc/cpuinfo` as one mapping per paragraph; keys keep their case ("model" and "Model" differ)."""
    paragraphs: list[dict[str, str]] = [{}]
    for line in (text or "").splitlines():
        key, colon, value = line.partition(":")
        if not line.strip():
            paragraphs.append({})
        elif colon:
            paragraphs[-1][key.strip()] = value.strip()
    return [paragraph for paragraph in paragraphs if paragraph]


def meminfo(text: str | None) -> Mapping[str, int]:
    """`/proc/meminfo` in bytes."""
    pairs = ((line.partition(":")[0], size(line.partition(":")[2])) for line in (text or "").splitlines())
    return {name: value for name, value in pairs if value is not None}
