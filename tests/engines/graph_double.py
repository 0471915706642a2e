"""A graph like KittenTTS' and Kokoro's in the small, with random weights: ids, a style and a speed -> audio."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

IDS, STYLE, HIDDEN, HOP = 180, 16, 8, 120


def model(ids: str = "input_ids", audio: str = "waveform", *, duration: bool = True, seed: int = 0) -> bytes:
    """Each id lasts for round(3 / speed) times HOP samples; the outputs are audio [n] and, if wanted, that count."""
    random = np.random.default_rng(seed)
    weights = {
        "embedding": random.standard_normal((IDS, HIDDEN)).astype(np.float32),
        "styling": random.standard_normal((STYLE, HIDDEN)).astype(np.float32),
        "samples": (0.3 * random.standard_normal((HIDDEN, HOP))).astype(np.float32),
        "three": np.array(3.0, np.float32),
        "half": np.array(0.5, np.float32),
        "one": np.array([1], np.int64),
        "two": np.array([2], np.int64),
        "all": np.array([-1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", ids], ["letters"]),  # [1, T, H]
        helper.make_node("MatMul", ["style", "styling"], ["styled"]),  # [1, H]
        helper.make_node("Unsqueeze", ["styled", "one"], ["everywhere"]),
        helper.make_node("Add", ["letters", "everywhere"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["bounded"]),
        helper.make_node("Div", ["three", "speed"], ["lasting"]),
        helper.make_node("Round", ["lasting"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["frames"], to=TensorProto.INT64),  # [1]
        helper.make_node("Unsqueeze", ["bounded", "two"], ["apart"]),  # [1, T, 1, H]
        helper.make_node("Concat", ["one", "one", "frames", "one"], ["repeats"], axis=0),
        helper.make_node("Expand", ["apart", "repeats"], ["repeated"]),
        helper.make_node("MatMul", ["repeated", "samples"], ["raw"]),
        helper.make_node("Tanh", ["raw"], ["loud"]),
        helper.make_node("Mul", ["loud", "half"], ["quieter"]),
        helper.make_node("Reshape", ["quieter", "all"], [audio]),
    ]
    outputs = [helper.make_tensor_value_info(audio, TensorProto.FLOAT, ["n"])]
    if duration:
        nodes += [
            helper.make_node("Shape", [ids], ["shape"]),
            helper.make_node("Slice", ["shape", "one", "two"], ["count"]),
            helper.make_node("Expand", ["frames", "count"], ["duration"]),
        ]
        outputs.append(helper.make_tensor_value_info("duration", TensorProto.INT64, ["T"]))
    inputs = [
        helper.make_tensor_value_info(ids, TensorProto.INT64, [1, "T"]),
        helper.make_tensor_value_info("style", TensorProto.FLOAT, [1, STYLE]),
        helper.make_tensor_value_info("speed", TensorProto.FLOAT, [1]),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "speech", inputs, outputs, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def session(content: bytes) -> Any:
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


class Session:
    """A session that has no model to be taken, and knows what it ran."""

    def __init__(self, own: Any) -> None:
        self._own, self.runs = own, list[dict[str, np.ndarray]]()

    def run(self, outputs: Any, feed: Any, options: Any = None) -> Any:
        self.runs.append(dict(feed))
        return self._own.run(outputs, feed, options)

    def get_providers(self) -> list[str]:
        return list(self._own.get_providers())

    def get_outputs(self) -> Any:
        return self._own.get_outputs()


class Espeak:
    """phonemizer 3.4's backend: letters are phonemes, a digit is five of them, and a line whose full stop at the end
    comes behind a decimal point has two entries. Asked by two threads at once, it garbles.
    """

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self.asked: list[str] = []

    def phonemize(self, text: list[str]) -> list[str]:
        alone = self._busy.acquire(blocking=False)
        try:
            self.asked += text
            threading.Event().wait(0.002)  # as long as another thread needs to come in
            return [said if alone else "garbled" for line in text for said in self._entries(line)]
        finally:
            if alone:
                self._busy.release()

    def _entries(self, line: str) -> list[str]:
        cut = re.search(r"(?<=\d)\.(?=\d)", line) if line.endswith(".") else None
        parts = [line] if cut is None else [line[: cut.end()], line[cut.end() : -1]]
        return [re.sub(r"\d", "digit", re.sub(r"(?<=\d)\.(?=\d)", " point ", each.lower())) for each in parts]
