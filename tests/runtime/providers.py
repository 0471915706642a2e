"""An ONNX Runtime with execution providers that there are none of here: the CPU runs what they are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

from accelerator.runtime import onnx

__all__ = ["CPU", "CUDA", "TENSORRT", "Providers"]

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))


class Providers:
    """In place of the module onnxruntime.

    wrong: what the answers of the others are multiplied by. started: whether their libraries can be loaded: where not,
    ONNX Runtime says so and gives a session of the CPU.
    """

    def __init__(self, *installed: str, wrong: float = 1.0, started: bool = True) -> None:
        self.installed, self.wrong, self.started = (*installed, CPU), wrong, started
        self.asked: list[list[Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return list(self.installed)

    def InferenceSession(self, model: Any, settings: Any = None, providers: Any = ()) -> Any:  # its name there
        self.asked.append(list(providers))
        names = [each if isinstance(each, str) else each[0] for each in providers]
        return _Session(self, onnxruntime.InferenceSession(model, settings, providers=[CPU]), names)

    @property
    def elsewhere(self) -> list[str]:
        """The providers that were asked for, but the CPU, in order."""
        first = [each[0] for each in self.asked]
        return [each if isinstance(each, str) else each[0] for each in first if each != CPU]

    def use(self, patch: Any) -> Providers:
        patch.setattr(onnx, "library", lambda: self)
        return self


class _Session:
    def __init__(self, runtime: Providers, own: Any, names: list[str]) -> None:
        self._runtime, self._own, self._names, self.may_fall_back = runtime, own, names, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def get_providers(self) -> list[str]:
        return self._names if self._runtime.started else [CPU]

    def disable_fallback(self) -> None:
        self.may_fall_back = False

    def run(self, outputs: Any, feed: Any) -> list[np.ndarray]:
        answers = self._own.run(outputs, feed)
        wrong = self._runtime.wrong if self._names[0] != CPU else 1.0
        return [np.asarray(answer * wrong, answer.dtype) for answer in answers]
