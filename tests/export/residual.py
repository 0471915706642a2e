"""A graph with Kokoro's residual blocks in the small, spelled out as they are exported.

x and a style -> one block of x, two of the sum of x and its answer, and of these audio; and how long x is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from accelerator.runtime.quantization import Quantizer

CHANNELS, STYLE, DILATIONS = 32, 8, (1, 3)
TAPS = {"noise": 3, "short": 3, "long": 7}


class Writing:
    """Nodes and constants, with a name for each of them."""

    def __init__(self) -> None:
        self.nodes, self.tensors = list[onnx.NodeProto](), dict[str, np.ndarray]()
        self._random = np.random.default_rng(3)

    def node(self, kind: str, inputs: list[str], out: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [out], name=out, **attributes))
        return out

    def constant(self, name: str, array: np.ndarray) -> str:
        self.tensors[name] = array
        return name

    def noise(self, name: str, *shape: int, scale: float = 1.0) -> str:
        return self.constant(name, (scale * self._random.standard_normal(shape)).astype(np.float32))

    def norm(self, x: str, name: str) -> str:
        fc = self.noise(f"{name}/fc", STYLE, 2 * CHANNELS, scale=0.2)
        both = self.node("Unsqueeze", [self.node("MatMul", ["style", fc], f"{name}/styled"), "last"], f"{name}/apart")
        gamma, beta = (
            self.node("Slice", [both, *ends, "one"], f"{name}/{part}")
            for part, ends in (("gamma", ("zero", "half")), ("beta", ("half", "whole")))
        )
        sub = self.node("Sub", [x, self.node("ReduceMean", [x, "last"], f"{name}/mean")], f"{name}/sub")
        square = self.node("Mul", [sub, sub], f"{name}/square")
        more = self.node("Add", [self.node("ReduceMean", [square, "last"], f"{name}/var"), "eps"], f"{name}/more")
        div = self.node("Div", [sub, self.node("Sqrt", [more], f"{name}/root")], f"{name}/div")
        scaled = self.node("Mul", [self.node("Add", [gamma, "unit"], f"{name}/scale"), div], f"{name}/scaled")
        return self.node("Add", [scaled, beta], f"{name}/out")

    def snake(self, x: str, name: str) -> str:
        alpha = np.random.default_rng(len(self.tensors)).uniform(0.5, 2.0, (1, CHANNELS, 1)).astype(np.float32)
        z = self.node("Mul", [self.constant(f"{name}/alpha", alpha), x], f"{name}/z")
        power = self.node("Pow", [self.node("Sin", [z], f"{name}/sin"), "two"], f"{name}/power")
        return self.node("Add", [x, self.node("Div", [power, f"{name}/alpha"], f"{name}/divided")], f"{name}/sum")

    def conv(self, x: str, name: str, out: int, taps: int, dilation: int = 1) -> str:
        weight = self.noise(f"{name}.w", out, CHANNELS, taps, scale=(CHANNELS * taps) ** -0.5)
        bias, reach = self.noise(f"{name}.b", out, scale=0.3), (taps - 1) * dilation // 2
        return self.node("Conv", [x, weight, bias], name, pads=[reach, reach], dilations=[dilation])

    def block(self, x: str, name: str, taps: int) -> str:
        for i, dilation in enumerate(DILATIONS):
            value = x
            for j, own in enumerate((dilation, 1)):
                place = f"{name}/{i}/{j}"
                value = self.snake(self.norm(value, f"{place}/norm"), f"{place}/snake")
                value = self.conv(value, f"{place}/conv", CHANNELS, taps, own)
            x = self.node("Add", [value, x], f"{name}/{i}/residual")
        return x


def graph(among: str = "/decoder") -> onnx.ModelProto:
    w = Writing()
    for name, value in {"zero": 0, "one": 1, "half": CHANNELS, "whole": 2 * CHANNELS, "last": 2}.items():
        w.constant(name, np.array([value], np.int64))
    for name, scalar in {"eps": 1e-5, "unit": 1.0, "two": 2.0, "mean": 0.5}.items():
        w.constant(name, np.array(scalar, np.float32))
    w.node("Shape", ["x"], "length")
    noise = w.block("x", f"{among}/noise", TAPS["noise"])
    x = w.node("Add", ["x", noise], f"{among}/both")
    short, long = (w.block(x, f"{among}/{name}", TAPS[name]) for name in ("short", "long"))
    both = w.node("Mul", [w.node("Add", [short, long], f"{among}/total"), "mean"], f"{among}/mean")
    w.node("Tanh", [w.conv(both, f"{among}/post", 1, 3)], "audio")
    return helper.make_model(
        helper.make_graph(
            w.nodes,
            "generator",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size, *end])
                for name, size, end in (("x", CHANNELS, ["n"]), ("style", STYLE, []))
            ],
            [
                helper.make_tensor_value_info("audio", TensorProto.FLOAT, [1, 1, "n"]),
                helper.make_tensor_value_info("length", TensorProto.INT64, [3]),
            ],
            [numpy_helper.from_array(array, name) for name, array in w.tensors.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )


def saved(path: Path) -> Path:
    path.write_bytes(graph().SerializeToString())
    return path


def quantized(path: Path) -> bytes:
    """Its convolutions, dynamically."""
    names = [node.name for node in graph().graph.node if node.op_type == "Conv"]
    return Quantizer(saved(path), [], "dynamic").quantized(names)


def feed(length: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(length)
    return {
        "x": (0.5 + 2 * random.standard_normal((1, CHANNELS, length))).astype(np.float32),
        "style": random.standard_normal((1, STYLE)).astype(np.float32),
    }
