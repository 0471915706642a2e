"""A checkpoint of KittenTTS with random weights, at about the nano model's size: for a machine without a trained one.

What is computed is of the kind that StyleTTS 2 computes: convolutions over the phonemes, each phoneme held for some
frames, a recurrent layer over the frames, and convolutions over ever more positions up to 24 kHz. It says nothing, and
a second of it need not take as long as of the trained one. Inputs, outputs and files are those of a download.

Source: StyleTTS 2 (Li et al. 2023, arXiv:2306.07691).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..export.graph.graph import Graph

__all__ = ["write"]

_IDS, _STYLE, _ROWS = 178, 256, 400
_WIDTH = 512  # channels of phonemes and frames
_HELD = 3  # frames of a phoneme, of 25 ms each
_SCALES = ((10, 128), (6, 64))  # how many times more positions, and their channels
_KERNELS, _DILATIONS = (3, 7, 11), (1, 3, 5)
_SAMPLES = 10  # of a position at the end: 40 frames * 10 * 6 * 10 = 24,000 a second
_NAMES = [f"expr-voice-{number}-{kind}" for number in (2, 3, 4, 5) for kind in "mf"]


def write(folder: Path) -> None:
    """config.json, model.onnx and voices.npz in `folder`."""
    with Graph(folder, "model") as graph:
        _Network(graph).build()
    random = np.random.default_rng(1)
    styles: dict[str, Any] = {name: random.standard_normal((_ROWS, _STYLE), np.float32) for name in _NAMES}
    np.savez(folder / "voices.npz", **styles)
    told = {"type": "ONNX2", "name": "random weights", "model_file": "model.onnx", "voices": "voices.npz"}
    (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")


class _Network:
    def __init__(self, graph: Graph) -> None:
        self._graph, self._random = graph, np.random.default_rng(0)

    def build(self) -> None:
        graph = self._graph
        ids = graph.input("input_ids", np.int64, [1, "T"])
        style = graph.input("style", np.float32, [1, _STYLE])
        speed = graph.input("speed", np.float32, [1])
        letters = graph.op("Gather", self._weight(_IDS, _WIDTH, fan_in=1), ids)  # [1, T, C]
        styled = graph.op("MatMul", style, self._weight(_STYLE, _WIDTH, fan_in=_STYLE))  # [1, C]
        x = graph.op("Add", letters, graph.op("Unsqueeze", styled, graph.constant([1])))
        x = graph.op("Transpose", x, perm=[0, 2, 1])  # [1, C, T]
        for _ in range(3):
            x = self._rectified(self._convolved(x, _WIDTH, _WIDTH, 5))
        held = graph.op("Round", graph.op("Div", graph.constant(float(_HELD), np.float32), speed))
        frames = graph.op("Cast", held, to=7)  # int64 [1]
        x = self._held(x, frames)  # [1, C, F]
        x = self._recurrent(x)
        for _ in range(2):
            x = self._rectified(self._convolved(x, _WIDTH, _WIDTH, 5))
        channels = _WIDTH
        for times, narrower in _SCALES:
            x = self._raised(x, channels, narrower, times)
            channels = narrower
            x = self._residual(x, channels)
        x = graph.op("Tanh", self._convolved(x, channels, _SAMPLES, 7))  # [1, samples, positions]
        x = graph.op("Mul", graph.op("Transpose", x, perm=[0, 2, 1]), graph.constant(0.5, np.float32))
        graph.output(graph.op("Reshape", x, graph.constant([-1])), "waveform", np.float32, ["n"])
        count = graph.op("Slice", graph.op("Shape", ids), graph.constant([1]), graph.constant([2]))
        graph.output(graph.op("Expand", frames, count), "duration", np.int64, ["T"])

    def _weight(self, *shape: int, fan_in: int) -> str:
        """Within the model's file, as in a download."""
        drawn = self._random.standard_normal(shape, np.float32) / np.float32(np.sqrt(fan_in))
        return self._graph.constant(drawn, np.float32)

    def _convolved(self, x: str, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> str:
        reach = dilation * (kernel - 1) // 2
        weight = self._weight(outputs, inputs, kernel, fan_in=inputs * kernel)
        return self._graph.op("Conv", x, weight, pads=[reach, reach], dilations=[dilation], kernel_shape=[kernel])

    def _rectified(self, x: str) -> str:
        return self._graph.op("LeakyRelu", x, alpha=0.1)

    def _held(self, x: str, frames: str) -> str:
        """Each of T positions `frames` times: [1, C, T] -> [1, C, T * frames]."""
        graph = self._graph
        one = graph.constant([1])
        times = graph.op("Concat", one, one, one, frames, axis=0)
        apart = graph.op("Expand", graph.op("Unsqueeze", x, graph.constant([3])), times)
        return graph.op("Reshape", apart, graph.constant([1, _WIDTH, -1]))

    def _recurrent(self, x: str) -> str:
        """Both ways over the frames, half of the channels each."""
        graph, hidden = self._graph, _WIDTH // 2
        sequence = graph.op("Transpose", x, perm=[2, 0, 1])  # [F, 1, C]
        weights = [self._weight(2, 4 * hidden, width, fan_in=width) for width in (_WIDTH, hidden)]
        given = {"direction": "bidirectional", "hidden_size": hidden}
        (both,) = graph.node("LSTM", [sequence, *weights], 1, "", given)  # [F, 2, 1, C / 2]
        flat = graph.op("Reshape", both, graph.constant([-1, 1, _WIDTH]))
        return graph.op("Transpose", flat, perm=[1, 2, 0])

    def _raised(self, x: str, inputs: int, outputs: int, times: int) -> str:
        """`times` as many positions."""
        weight = self._weight(inputs, outputs, 2 * times, fan_in=2 * inputs)
        cut = times - times // 2, times // 2
        return self._graph.op("ConvTranspose", x, weight, strides=[times], pads=list(cut), kernel_shape=[2 * times])

    def _residual(self, x: str, channels: int) -> str:
        """HiFi-GAN's block: the mean of what filters of several lengths add."""
        graph, ends = self._graph, list[str]()
        for kernel in _KERNELS:
            end = x
            for dilation in _DILATIONS:
                inner = self._convolved(self._rectified(end), channels, channels, kernel, dilation)
                end = graph.op("Add", end, self._convolved(self._rectified(inner), channels, channels, kernel))
            ends.append(end)
        total = graph.op("Sum", *ends)
        return graph.op("Mul", total, graph.constant(1 / len(ends), np.float32))
