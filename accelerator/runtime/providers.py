"""ONNX Runtime's execution providers beside the CPU's: which ones are asked for, are there, and with which settings."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidOption

__all__ = ["AUTO", "CPU", "chains", "checked", "short", "with_settings"]

logger = logging.getLogger(__name__)

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
AUTO = "auto"


def checked(asked: Any) -> tuple[str, ...]:
    """The providers that `providers=` names, without the CPU's, which is always there. Raises InvalidOption."""
    if asked is None:
        return ()
    if asked == AUTO:
        return CUDA, TENSORRT
    if isinstance(asked, str) or not isinstance(asked, Sequence) or not all(isinstance(name, str) for name in asked):
        raise InvalidOption(f"providers must be 'auto' or a list of names such as {CUDA!r}, not {asked!r}")
    if wrong := [name for name in asked if not name.endswith("ExecutionProvider")]:
        raise InvalidOption(f"{wrong[0]!r} is no execution provider: their names are like {CUDA!r}")
    return tuple(dict.fromkeys(name for name in asked if name != CPU))


def chains(asked: Sequence[str], available: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """For each provider that is installed, what runs a graph: it, and what takes the operators that it lacks."""
    if missing := [name for name in asked if name not in available]:
        logger.info("not in this build of ONNX Runtime, so not tried: %s", ", ".join(missing))
    beside = {TENSORRT: [CUDA]}
    return tuple(
        (name, *(other for other in beside.get(name, []) if other in available), CPU)
        for name in asked
        if name in available
    )


def short(providers: Sequence[str]) -> str:
    """A chain as tunings name it: "" for the CPU alone, "cuda", "tensorrt"."""
    return "" if tuple(providers) == (CPU,) else providers[0].removesuffix("ExecutionProvider").lower()


def with_settings(providers: Sequence[str], model: Path, engines: str) -> list[Any]:
    """The chain as ONNX Runtime takes it. engines: where TensorRT keeps what it makes of a graph; "" for nowhere."""
    if not engines:
        return list(providers)
    place = Path(engines) / model.parent.name  # of an entry of the cache: its key
    if TENSORRT in providers:
        with contextlib.suppress(OSError):  # then they are made anew in each process
            place.mkdir(parents=True, exist_ok=True)
    kept = {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(place),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(place),
    }
    return [(name, kept) if name == TENSORRT else name for name in providers]
