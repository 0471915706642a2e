"""Small graphs of convolutions, as float32 ONNX models."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, TAPS = 16, 3


def weights(seed: int, out: int, inner: int) -> np.ndarray:
    scale = 1 / np.sqrt(inner * TAPS)
    return (scale * np.random.default_rng(seed).standard_normal((out, inner, TAPS))).astype(np.float32)


def chain(count: int, *, spiky: int | None = None, channels: int = CHANNELS) -> bytes:
    """x [1, 1, n] -> y [1, 1, n]: a first convolution, `count` inner ones with tanh between them, and a last one.

    spiky: the inner one that is given a value a thousand times larger than all others, and takes it away again: no
    scale of 8 bits has room for both.
    """
    widths = [1, *[channels] * (count + 1), 1]
    nodes, tensors, value = list[onnx.NodeProto](), list[onnx.TensorProto](), "x"
    for index, (inner, out) in enumerate(pairwise(widths)):
        name = f"conv_{index}"
        weight, bias = weights(index, out, inner), np.full(out, 0.01, np.float32)
        if index - 1 == spiky:  # tanh of it is at most 1: one channel of 1000, which weighs a thousandth
            tensors.append(numpy_helper.from_array(scaled(inner, 1000.0), "spike"))
            nodes.append(helper.make_node("Mul", [value, "spike"], ["spiked"], name="spiked"))
            weight[:, 0], value = weight[:, 0] / 1000.0, "spiked"
        tensors += [numpy_helper.from_array(weight, f"{name}.w"), numpy_helper.from_array(bias, f"{name}.b")]
        inputs, pads = [value, f"{name}.w", f"{name}.b"], [TAPS // 2] * 2
        nodes.append(helper.make_node("Conv", inputs, [f"{name}.y"], name=name, kernel_shape=[TAPS], pads=pads))
        value = f"{name}.y"
        if index < count + 1:
            nodes.append(helper.make_node("Tanh", [value], [f"{name}.t"], name=f"{name}.tanh"))
            value = f"{name}.t"
    nodes[-1].output[0] = "y"
    return model(nodes, tensors, {"x": [1, 1, "n"]}, {"y": [1, 1, "n"]})


def scaled(channels: int, first: float) -> np.ndarray:
    """Factors of channels: the first one's, and ones."""
    factors = np.ones((1, channels, 1), np.float32)
    factors[0, 0] = first
    return factors


def model(
    nodes: Sequence[onnx.NodeProto],
    tensors: Sequence[onnx.TensorProto],
    inputs: dict[str, list],
    outputs: dict[str, list],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        tensors,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def feed(seed: int, length: int = 200) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((1, 1, length)).astype(np.float32)}


def with_small_channels(*small: int, channels: int = 10) -> tuple[bytes, bytes]:
    """A pair of convolutions with some channels at zero between them, and the same without these."""
    content = onnx.load_from_string(chain(0, channels=channels))
    arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in content.graph.initializer}
    for name in ("conv_0.w", "conv_0.b"):
        arrays[name][list(small)] = 0
    kept = [n for n in range(channels) if n not in small]
    less = {name: arrays[name][kept] for name in ("conv_0.w", "conv_0.b")} | {"conv_1.w": arrays["conv_1.w"][:, kept]}
    made = []
    for given in (arrays, arrays | less):
        for tensor in content.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(given[tensor.name], tensor.name))
        made.append(bytes(content.SerializeToString()))
    return made[0], made[1]


def residual(channels: int = 1) -> bytes:
    """y = conv_1(tanh(conv_0(x))) + conv_0(x), x [1, 1, n], y [1, channels, n]."""
    tensors = [numpy_helper.from_array(weights(n, channels, inner), f"w{n}") for n, inner in enumerate((1, channels))]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], kernel_shape=[3], pads=[1, 1]),
        helper.make_node("Tanh", ["a"], ["t"]),
        helper.make_node("Conv", ["t", "w1"], ["b"], kernel_shape=[3], pads=[1, 1]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    return model(nodes, tensors, {"x": [1, 1, "n"]}, {"y": [1, channels, "n"]})
