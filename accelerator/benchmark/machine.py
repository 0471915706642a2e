"""What a benchmark ran on: hardware, versions, settings, and how idle the machine was."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from ..hardware import choose_tier, describe, detect
from ..hardware.busy import BusyClock
from ..metrics import peak_rss_bytes
from ..runtime.options import RunOptions

__all__ = ["BusyClock", "available_memory", "busy_warning", "describe_machine", "memory", "others_warning"]

_PACKAGES = ("torch", "onnxruntime", "onnx", "onnxscript", "numpy", "safetensors")
_BUSY = 0.25  # a one-minute load above this share of the usable CPUs disturbs figures
_OTHERS = 0.1  # as much of a CPU busy with something else, over the whole run, does too


def describe_machine() -> dict[str, Any]:
    """JSON-able facts."""
    from .. import __version__

    profile = detect()
    tier = choose_tier(profile)
    versions = {"python": platform.python_version(), "accelerator": __version__}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "hardware": profile.to_dict(),
        "fingerprint": profile.fingerprint,
        "tier": vars(tier).copy(),
        "rows": [list(row) for row in describe(profile, tier)],
        "versions": versions,
        "environment": {k: v for k, v in os.environ.items() if k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")},
        "session_defaults": RunOptions().to_dict(),
        "load_average": _load_average(),
    }


def _load_average() -> list[float] | None:
    """Over 1, 5 and 15 minutes; None on Windows."""
    try:
        return [round(v, 2) for v in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def busy_warning(machine: dict[str, Any]) -> str | None:
    """What to tell when something else is running; None for an idle machine."""
    load, cpus = machine["load_average"], machine["hardware"]["usable_cpus"]
    if load is None or load[0] <= _BUSY * cpus:
        return None
    return f"the machine was not idle at the start: load {load[0]:g} on {cpus:g} CPUs; figures may be too high"


def others_warning(machine: dict[str, Any]) -> str | None:
    """What to tell when other processes, or other guests of the host, were busy during the run."""
    others = machine["others_cpus"]
    if others is None or others <= _OTHERS:
        return None
    return f"something else kept {others:g} CPUs busy during the run: figures may be too high"


def memory() -> dict[str, int]:
    """This process's memory in bytes: its peak and, on Linux, what of its memory now is private or mapped from files.

    Pages mapped from files (weights that were loaded by mmap) are shared between processes and can be dropped by the
    system; private ones cannot.
    """
    status = _kilobytes("/proc/self/status")
    # Not ru_maxrss on Linux: there it includes the parent process, up to the moment of exec.
    figures = {"peak_memory": status.get("VmHWM") or peak_rss_bytes()}
    if "RssAnon" in status:
        figures["memory_private"] = status["RssAnon"]
        figures["memory_file"] = status.get("RssFile", 0)
    return figures


def available_memory() -> int | None:
    """Bytes that could be had now."""
    return detect().memory_available


def _kilobytes(path: str) -> dict[str, int]:
    """The "Name:  n kB" lines of a file below /proc, in bytes; nothing where it does not exist."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return {}
    fields = (line.split() for line in text.splitlines())
    return {f[0].rstrip(":"): int(f[1]) * 1024 for f in fields if len(f) == 3 and f[2] == "kB"}
