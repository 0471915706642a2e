"""Piper's voices, each an ONNX file: see `adapter`."""

from __future__ import annotations

from .adapter import PiperAdapter, adapter

__all__ = ["PiperAdapter", "adapter"]
