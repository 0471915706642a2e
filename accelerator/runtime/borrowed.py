"""Sessions of ONNX Runtime that an engine made for itself: what they were made of, and others made as they were."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import SessionError
from ..hardware.forks import Lock
from .onnx import library

__all__ = ["Deferred", "describe", "for_cpu", "model_file", "model_of", "runs_on_cpu", "settings_of"]

_SPINNING = "session.intra_op.allow_spinning"


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


def model_file(session: Any) -> Path | None:
    """The file that a session was made of, if it is one and not only its content."""
    path = None if getattr(session, "_model_bytes", None) else getattr(session, "_model_path", None)
    return Path(path).absolute() if path else None


def runs_on_cpu(session: Any) -> bool:
    """Whether nothing but the processor computes: an engine that was given another device keeps it."""
    return list(session.get_providers()) == ["CPUExecutionProvider"]


def for_cpu(session: Any) -> None:
    """Raises SessionError for a session that something else than the processor computes."""
    if not runs_on_cpu(session):
        raise SessionError("it does not run on the processor alone")


def settings_of(session: Any) -> Any:
    """The session options that the engine chose, for a session that is to behave as its own.

    But threads do not spin, unless the engine said so: in a pool they would take the cores from those who compute.
    """
    settings = session.get_session_options()
    try:
        settings.get_session_config_entry(_SPINNING)
    except RuntimeError:  # it has not been said
        settings.add_session_config_entry(_SPINNING, "0")
    return settings


def describe(content: bytes) -> dict[str, Any]:
    """What a model's inputs and outputs are, and its metadata; JSON-able. Raises what ONNX Runtime raises."""
    session = library().InferenceSession(content, providers=["CPUExecutionProvider"])
    values = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
    told = {
        which: [{"name": each.name, "type": each.type, "shape": list(each.shape)} for each in found]
        for which, found in values.items()
    }
    return {**told, "metadata": dict(session.get_modelmeta().custom_metadata_map)}


class Deferred:
    """What an engine calls its session, on the processor with default settings; opened when it is first needed.

    Where the parts answer for it, it never is: its weights are not in memory, and the engine is there sooner.
    """

    def __init__(self, path: Path, described: Mapping[str, Any] | None = None) -> None:
        """described: what `describe` says of the file, if that is known: then it is not opened to be asked for it."""
        self._model_path, self._model_bytes, self._lock, self._own = str(path), None, Lock(), None
        self._described = described

    def open(self) -> Any:
        """Raises what ONNX Runtime raises."""
        with self._lock:
            if self._own is None:
                self._own = library().InferenceSession(self._model_path, providers=self.get_providers())
        return self._own

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def get_session_options(self) -> Any:
        return library().SessionOptions()

    def get_inputs(self) -> list[Any]:
        return self._values("inputs") or list(self.open().get_inputs())

    def get_outputs(self) -> list[Any]:
        return self._values("outputs") or list(self.open().get_outputs())

    def get_modelmeta(self) -> Any:
        if self._described is None:
            return self.open().get_modelmeta()
        return SimpleNamespace(custom_metadata_map=dict(self._described["metadata"]))

    def _values(self, which: str) -> list[Any]:
        return [] if self._described is None else [SimpleNamespace(**each) for each in self._described[which]]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.open(), name)
