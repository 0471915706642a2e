"""Sessions of ONNX Runtime that an engine made for itself: what they were made of, and others made as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import SessionError

__all__ = ["model_for_cpu", "model_of", "runs_on_cpu", "settings_of"]


def model_of(session: Any) -> bytes:
    """The content of the model file that a session was made of.

    Raises SessionError where that cannot be told: the file is gone, or this only looks like a session.
    """
    content = getattr(session, "_model_bytes", None)
    if isinstance(content, (bytes, bytearray, memoryview)) and len(content):
        return bytes(content)
    path = getattr(session, "_model_path", None)
    if not path:
        raise SessionError(f"it cannot be told which model {type(session).__name__} runs")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SessionError(f"the model that the engine runs cannot be read: {error}") from error


def runs_on_cpu(session: Any) -> bool:
    """Whether nothing but the processor computes: an engine that was given another device keeps it."""
    return list(session.get_providers()) == ["CPUExecutionProvider"]


def model_for_cpu(session: Any) -> bytes:
    """`model_of` a session that nothing but the processor computes. Raises SessionError for any other."""
    if not runs_on_cpu(session):
        raise SessionError("it does not run on the processor alone")
    return model_of(session)


def settings_of(session: Any) -> Any:
    """The session options that the engine chose, for a session that is to behave as its own."""
    return session.get_session_options()
