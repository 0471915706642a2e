"""The one error this engine raises on purpose."""

from __future__ import annotations

__all__ = ["ReferenceEngineError"]


class ReferenceEngineError(ValueError):
    """The configuration, the weights or the request cannot be used; the message says what to change."""
