"""Hugging Face transformers' VITS: see `adapter`."""

from __future__ import annotations

from .adapter import VitsAdapter, adapter

__all__ = ["VitsAdapter", "adapter"]
