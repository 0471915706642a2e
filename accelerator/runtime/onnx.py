"""Tuned ONNX Runtime sessions, and runs bound to fixed buffers.

onnxruntime is imported here only.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SessionError
from ..hardware.forks import Lock, renewed_in_children
from .options import RunOptions
from .providers import CPU, with_settings

__all__ = ["Binding", "Session", "available_providers", "can_bound_spinning", "runtime_version"]

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}


def library() -> Any:
    """The module onnxruntime, without its telemetry unless the environment says otherwise.

    On import, version 1.32 on Linux writes a device identifier and a queue of events below the user's cache directory.
    If something else imported it before, that cannot be undone here.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def runtime_version() -> str:
    """ONNX Runtime's version."""
    return str(library().__version__)


def can_bound_spinning() -> bool:
    """Whether this ONNX Runtime has `session.intra_op.spin_duration_us`; older ones cannot bound their spinning."""
    release = tuple(int(n) for n in re.findall(r"\d+", runtime_version())[:2])
    return release >= (1, 31)


def available_providers() -> list[str]:
    """The execution providers this build of ONNX Runtime has."""
    return list(library().get_available_providers())


class Session:
    """One loaded graph. Safe to run from several threads at once; a `Binding` belongs to one thread at a time.

    In a forked child it is loaded again on first use, since the threads of its pool do not exist there.
    """

    invariant = False  # whether a row's answer is the same whatever other rows run with it

    def __init__(self, model: Path | bytes, options: RunOptions | None = None, *, settings: Any = None) -> None:
        """model: a file, or a file's content. settings: session options to use as they are, instead of `options`.

        Raises SessionError.
        """
        self.path = Path("model.onnx") if isinstance(model, bytes) else Path(model)
        self.options, self._model, self._settings = options or RunOptions(), model, settings
        self._opening = Lock()
        self._ort: Any = self._load()
        self.inputs = {i.name: (_DTYPES.get(i.type), i.shape) for i in self._ort.get_inputs()}
        self.outputs = [o.name for o in self._ort.get_outputs()]
        renewed_in_children(self)

    def _forked(self) -> None:
        if self._ort is not None:
            # Never freed: that would wait for its threads, at the latest when the child exits.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._ort))
            self._ort = None

    def opened(self) -> Any:
        """ONNX Runtime's session in this process. Raises SessionError."""
        if self._ort is None:
            with self._opening:
                self._ort = self._ort or self._load()
        return self._ort

    def _load(self) -> Any:
        ort = library()

        model = self._model if isinstance(self._model, bytes) else str(self._model)
        settings = self._tuned(ort) if self._settings is None else self._settings
        try:
            # In a separate thread: creating a session changes the denormal mode of the creating thread for good.
            with ThreadPoolExecutor(1) as maker:
                providers = with_settings(self.options.providers, self.path, self.options.engines)
                session = maker.submit(ort.InferenceSession, model, settings, providers=providers).result()
        except Exception as error:  # onnxruntime raises its own types and plain RuntimeErrors
            raise SessionError(f"ONNX Runtime cannot load {self.path.name}: {error}") from error
        if (wanted := self.options.providers[0]) != CPU:
            if wanted not in session.get_providers():  # its libraries or its device are missing: the CPU would serve
                raise SessionError(f"ONNX Runtime cannot start {wanted} for {self.path.name}: see its own messages")
            session.disable_fallback()  # to the CPU, unproven and unmeasured, in the middle of a run
        return session

    def _tuned(self, ort: Any) -> Any:
        options = self.options
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = max(1, options.threads)
        settings.inter_op_num_threads = 1
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        settings.enable_cpu_mem_arena = options.arena
        settings.enable_mem_pattern = False  # lengths vary from run to run: a pattern would be planned for each
        settings.log_severity_level = 3
        if not options.optimize:
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        spins = options.spin_us > 0 and can_bound_spinning()
        settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
        settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
        if spins:
            settings.add_session_config_entry("session.intra_op.spin_duration_us", str(options.spin_us))
        settings.add_session_config_entry("session.set_denormal_as_zero", "1")
        settings.add_session_config_entry("session.prepack.enable_parallel", "1")  # where known; halves the loading
        settings.add_session_config_entry("session.disable_prepacking", str(int(not options.prepack)))
        return settings

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> list[np.ndarray]:
        """Run once on arrays; returns the named outputs in order (all by default). Raises SessionError."""
        session = self.opened()
        try:
            return list(session.run(outputs, dict(inputs)))
        except Exception as error:
            raise SessionError(f"ONNX Runtime failed in {self.path.name}: {error}") from error

    def bind(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Binding:
        """A run that reads and writes the given arrays in place, as often as `Binding.run` is called.

        Raises SessionError.
        """
        try:
            return Binding(self, inputs, outputs)
        except Exception as error:
            raise SessionError(f"{self.path.name} cannot be bound: {error}") from error


class Binding:
    """A graph bound to fixed arrays: nothing is allocated or copied per run. The arrays are kept alive."""

    def __init__(self, session: Session, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        self._session, self._inputs, self._outputs = session, dict(inputs), dict(outputs)
        self._bind()

    def _bind(self) -> None:
        OrtValue = library().OrtValue

        self._ort = self._session.opened()
        self._binding = self._ort.io_binding()
        self._values = []
        for name, array in self._inputs.items():
            value = OrtValue.ortvalue_from_numpy(array)
            self._binding.bind_ortvalue_input(name, value)
            self._values.append(value)
        for name, array in self._outputs.items():
            value = OrtValue.ortvalue_from_numpy(array)
            self._binding.bind_ortvalue_output(name, value)
            self._values.append(value)
        self._run = self._ort.run_with_iobinding

    def run(self) -> None:
        """Run once. Raises SessionError."""
        if self._session.opened() is not self._ort:  # in a child
            self._bind()
        try:
            self._run(self._binding)
        except Exception as error:
            raise SessionError(f"ONNX Runtime failed in {self._session.path.name}: {error}") from error
