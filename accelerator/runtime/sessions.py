"""A stored graph, opened by the library that is to run it."""

from __future__ import annotations

from pathlib import Path

from . import openvino
from .onnx import Session
from .options import RunOptions

__all__ = ["opened"]


def opened(model: Path, options: RunOptions) -> Session | openvino.Compiled:
    """By OpenVINO if `options` say so, else by ONNX Runtime. Raises SessionError."""
    return openvino.Compiled(model, options) if options.backend == openvino.NAME else Session(model, options)
