"""Which accelerators this machine has: whatever was proven or measured on one of them holds for it alone."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["accelerators"]

_GPUS, _DRIVER = "proc/driver/nvidia/gpus", "proc/driver/nvidia/version"


def accelerators(root: Path | str = "/") -> tuple[str, ...]:
    """NVIDIA's GPUs by model, their driver, and which of them this process may see; () where none is found.

    root: put before every path that is read. As Linux tells it, without loading a driver. Never raises.
    """
    try:
        files = sorted(Path(root, _GPUS).glob("*/information"))
        models = sorted(line.strip() for file in files for line in _lines(file) if line.startswith("Model:"))
        driver = _lines(Path(root, _DRIVER))[:1]
    except OSError:
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (*models, *driver, *([] if visible is None else [f"CUDA_VISIBLE_DEVICES={visible}"])) if models else ()


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines()
