"""Models compiled by OpenVINO, which runs ONNX graphs, too; an optional package.

openvino is imported here only, without its telemetry.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SessionError
from ..hardware import detect
from ..hardware.forks import Lock, renewed_in_children
from .options import RunOptions

__all__ = ["NAME", "Compiled", "library", "version"]

NAME = "openvino"  # as `RunOptions.backend`, metrics and tunings name it
_TELEMETRY = "openvino_telemetry"
_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
_MOST_STREAMS = 8  # each is another copy of the graph, if not of its weights


def version() -> str | None:
    """OpenVINO's version, without importing it; None where it is not installed."""
    try:
        return importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:
        return None


def library() -> Any:
    """The module openvino, without its telemetry. Raises ImportError.

    When version 2026.4 is imported, openvino_telemetry, which it depends on, writes an identifier below ~/intel and
    sends an event to Google Analytics, unless the user has opted out. Where that package cannot be imported, openvino
    does without. If something else imported either before, that cannot be undone here.
    """
    if _TELEMETRY in sys.modules:
        return importlib.import_module(NAME)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(NAME)
    finally:
        sys.modules.pop(_TELEMETRY, None)


class _Process:
    """Whether OpenVINO was loaded before this process was forked.

    It keeps the threads of models that were freed and gives them to later ones, which then wait for ever: in a child
    these threads are not there.
    """

    def __init__(self) -> None:
        self.inherits = False
        renewed_in_children(self)

    def _forked(self) -> None:
        self.inherits = self.inherits or NAME in sys.modules


_PROCESS = _Process()


class Compiled:
    """One graph compiled by OpenVINO, behind the interface of `onnx.Session`. Safe to run from several threads at once.

    Of one thread, several callers are served at once, each by a stream; of more, one after the other. In a forked child
    it is compiled again on first use, and has no threads but its callers', who wait for each other.
    """

    def __init__(self, model: Path, options: RunOptions) -> None:
        """Raises SessionError."""
        self.path, self.options = Path(model), options
        self._opening, self._idle = Lock(), list[Any]()
        self._model: Any = self._load()
        self.inputs = [each.any_name for each in self._model.inputs]
        self.outputs = [each.any_name for each in self._model.outputs]
        renewed_in_children(self)

    def _forked(self) -> None:
        if self._model is not None:
            # Never freed: that would wait for its threads, at the latest when the child exits.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object((self._model, self._idle)))
        self._model, self._idle = None, []

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run once on arrays; returns all outputs in order. Raises SessionError."""
        try:
            request = self._request()
            # Not `infer`, which takes the caller's thread: whose stream that thread has may be taken by another caller.
            request.start_async(dict(inputs))
            request.wait()
            answers = [np.array(request.get_output_tensor(i).data) for i in range(len(self.outputs))]
        except SessionError:
            raise
        except Exception as error:  # RuntimeErrors, and whatever the bindings raise for inputs
            raise SessionError(f"OpenVINO failed in {self.path.name}: {_reason(error)}") from error
        self._idle.append(request)
        return answers

    def _request(self) -> Any:
        """One that nobody uses: it has room for one run."""
        try:
            return self._idle.pop()
        except IndexError:
            with self._opening:
                self._model = self._model or self._load()
            return self._model.create_infer_request()

    def _load(self) -> Any:
        try:
            return library().Core().compile_model(str(self.path), "CPU", self._settings())
        except Exception as error:
            raise SessionError(f"OpenVINO cannot load {self.path.name}: {_reason(error)}") from error

    def _settings(self) -> dict[str, Any]:
        threads = max(1, self.options.threads)
        streams = 1 if threads > 1 else min(_MOST_STREAMS, detect().usable_cores)
        if _PROCESS.inherits:
            threads, streams = 1, 0  # none but the callers' own
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads * max(1, streams),
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self.options.dtype],  # by itself bf16, where that is fast
            "ENABLE_CPU_PINNING": False,  # the threads of two models would be bound to the same cores
            "CACHE_DIR": "",
        }


def _reason(error: Exception) -> str:
    """What went wrong, without the places in OpenVINO's source that it begins and ends with."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from")]
    return said[0] if said else type(error).__name__
