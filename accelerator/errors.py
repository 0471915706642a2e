"""The exception tree. Everything the package raises on purpose is below `AcceleratorError`.

    AcceleratorError
    ├── InvalidInput (ValueError)      the caller's request cannot be served; never falls back
    │   ├── InvalidText                empty, only punctuation, too long, not encodable
    │   ├── InvalidReference           reference audio or text unusable
    │   └── InvalidOption (TypeError)  unknown or out-of-range option
    ├── EngineError                    an engine cannot be loaded, recognised or driven
    │   └── UnsupportedEngine          this engine, layout or version is not supported
    ├── ExportError                    a component could not be exported to ONNX
    │   └── ProofFailed                the export answers differently from PyTorch; carries `report`
    ├── CacheError                     the artifact cache is unusable (never fails synthesis)
    │   └── CorruptEntry               an entry's files do not match its manifest
    ├── SessionError                   ONNX Runtime refused to load or run a graph
    │   └── BatchFailed                a run that served several sequences failed; each of them gets this one error
    ├── BadOutput                      a part answered with empty, non-finite, silent or clipped data
    ├── GenerationError                the engine itself failed: PyTorch could not serve the request either
    ├── Overloaded                     too many requests are waiting already
    └── Closed                         used after close()

Each message says what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

__all__ = [
    "AcceleratorError",
    "BadOutput",
    "BatchFailed",
    "CacheError",
    "Closed",
    "CorruptEntry",
    "EngineError",
    "ExportError",
    "GenerationError",
    "InvalidInput",
    "InvalidOption",
    "InvalidReference",
    "InvalidText",
    "Overloaded",
    "ProofFailed",
    "SessionError",
    "UnsupportedEngine",
]


class AcceleratorError(Exception):
    """Base of every error this package raises on purpose."""


class InvalidInput(AcceleratorError, ValueError):
    """The request itself is wrong; retrying or falling back would not help."""


class InvalidText(InvalidInput):
    """The text cannot be spoken."""


class InvalidReference(InvalidInput):
    """The reference audio or its transcript cannot be used."""


class InvalidOption(InvalidInput, TypeError):
    """An option is unknown or out of range."""


class EngineError(AcceleratorError):
    """An engine cannot be loaded, recognised or driven."""


class UnsupportedEngine(EngineError):
    """This engine, layout or version is not supported."""


class ExportError(AcceleratorError):
    """A component could not be exported to ONNX."""


class ProofFailed(ExportError):
    """The export answers differently from PyTorch. `report` holds the figures and the bar they missed."""

    def __init__(self, message: str, report: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report: dict[str, Any] = dict(report or {})


class CacheError(AcceleratorError):
    """The artifact cache is unusable. Synthesis goes on without it."""


class CorruptEntry(CacheError):
    """An entry's files do not match its manifest."""


class SessionError(AcceleratorError):
    """ONNX Runtime refused to load or run a graph."""


class BatchFailed(SessionError):
    """A run that served several sequences failed. All of them raise this same error; `counted`: it counts once."""

    counted = False


class BadOutput(AcceleratorError):
    """A part answered with empty, non-finite, silent or clipped data."""

    def __init__(self, message: str, *, check: Literal["silent", "clipped"] | None = None) -> None:
        """check: which one, where audio of the right shape only sounds wrong, which an engine may mean."""
        super().__init__(message)
        self.check = check


class GenerationError(AcceleratorError):
    """The engine itself failed: PyTorch could not serve the request either."""


class Overloaded(AcceleratorError):
    """Too many requests are waiting already; later there will be room."""


class Closed(AcceleratorError):
    """The object was used after `close()`."""
