"""OpenVINO, as far as it is used, by ONNX Runtime; its bfloat16 keeps eight bits of what comes out."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest

from accelerator.runtime import openvino


class Port:
    def __init__(self, name: str) -> None:
        self.any_name = name


class Tensor:
    def __init__(self, data: np.ndarray) -> None:
        self.data = data


class Request:
    """Room for one run: what is run at the same time is found out."""

    def __init__(self, model: Model) -> None:
        self._model, self._busy, self._answers = model, False, list[np.ndarray]()

    def start_async(self, feed: dict[str, np.ndarray]) -> None:
        assert not self._busy, "infer request is busy"
        self._busy, self._feed = True, feed

    def wait(self) -> None:
        self._answers = [self._model.rounded(each) for each in self._model.session.run(None, self._feed)]
        self._busy = False

    def get_output_tensor(self, index: int) -> Tensor:
        return Tensor(self._answers[index])


class Model:
    def __init__(self, path: str, low: bool) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs = [Port(each.name) for each in self.session.get_inputs()]
        self.outputs = [Port(each.name) for each in self.session.get_outputs()]
        self._low = low

    def rounded(self, answer: np.ndarray) -> np.ndarray:
        if not self._low or answer.dtype != np.float32:
            return answer
        return (answer.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    def create_infer_request(self) -> Request:
        return Request(self)


def install(
    monkeypatch: pytest.MonkeyPatch,
    *,
    version: str | None = "2026.4.1",
    refuses: Callable[[str], bool] = lambda _: False,
) -> list[dict[str, Any]]:
    """Makes it importable, in this version; None: takes it away. Answers with the settings of what was compiled.

    refuses: whether it cannot compile in a precision, as OpenVINO calls it.
    """
    compiled = list[dict[str, Any]]()

    class Core:
        def compile_model(self, path: str, device: str, settings: dict[str, Any]) -> Model:
            assert device == "CPU"
            if refuses(settings["INFERENCE_PRECISION_HINT"]):
                raise RuntimeError("Exception from src/inference/src/cpp/core.cpp:132:\n'/Range' is not finite\n\n")
            compiled.append(settings)
            return Model(path, settings["INFERENCE_PRECISION_HINT"] == "bf16")

    module: Any = types.ModuleType("openvino")
    module.Core = Core
    monkeypatch.setitem(sys.modules, "openvino", None if version is None else module)
    monkeypatch.setattr(openvino, "version", lambda: version)
    return compiled
