"""Residual blocks whose norms follow a style, as they stand in a graph behind `norms` and `rewrite`.

    x + conv(snake(norm(conv(snake(norm(x)))))), several times one after the other

norm is an instance norm with a scale and a bias that the graph computes (AdaIN, Huang and Belongie 2017,
arXiv:1703.06868), conv a convolution of the same length. Source: StyleTTS 2 (Li et al. 2023, arXiv:2306.07691).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from .pieces import Stretch
from .saved import SavedModel, attribute

__all__ = ["Block", "Layer", "residual_blocks"]

_READERS = 2  # of what lies between two steps: the norm, and what adds to it

@dataclass(frozen=True)
class Layer:
    """out = conv(z + sin(z)^2) for z = norm(x): names of values, and of constants.

    factor: what the convolution's input channels are multiplied by.
    """

    x: str
    scale: str
    bias: str
    epsilon: float
    factor: str
    kernel: str
    shift: str | None
    dilation: int
    out: str


@dataclass(frozen=True)
class Block:
    """steps: pairs of layers, each adding to what it was given."""

    x: str
    out: str
    steps: tuple[tuple[Layer, Layer], ...]

    @property
    def stretch(self) -> Stretch:
        ends = [end for step in self.steps for layer in step for end in (layer.scale, layer.bias)]
        return Stretch((self.x, *ends), self.out)


def residual_blocks(model: SavedModel) -> list[Block]:
    """All that there are, in the order of the graph."""
    layers = {layer.out: layer for node in model.graph.node if (layer := _layer(model, node)) is not None}
    blocks = list[Block]()
    for node in model.graph.node:
        for step in _steps(node, layers):
            before = next((each for each in blocks if each.out == step[0].x), None)
            if before is not None and len(model.consumers[before.out]) == _READERS:
                blocks.remove(before)
                blocks.append(Block(before.x, node.output[0], (*before.steps, step)))
            else:
                blocks.append(Block(step[0].x, node.output[0], (step,)))
    return blocks


def _steps(add: onnx.NodeProto, layers: dict[str, Layer]) -> list[tuple[Layer, Layer]]:
    """The one that an addition ends, if it does."""
    if add.op_type != "Add":
        return []
    found = []
    for end, x in (add.input, add.input[::-1]):
        second = layers.get(end)
        first = None if second is None else layers.get(second.x)
        if first is not None and second is not None and first.x == x:
            found.append((first, second))
    return found[:1]


def _layer(model: SavedModel, conv: onnx.NodeProto) -> Layer | None:
    """Of Conv(Mul(Add(z, Mul(s, s)), factor)) for s = Sin(z) and z = InstanceNormalization(x, scale, bias)."""
    kernel = model.value(conv.input[1]) if conv.op_type == "Conv" else None
    scaled = _made(model, conv.input[0], "Mul") if kernel is not None else None
    if kernel is None or scaled is None or not _keeps_length(conv, kernel.shape):
        return None
    total = _made(model, scaled.input[0], "Add")
    square = None if total is None else _made(model, total.input[1], "Mul")
    if total is None or square is None or square.input[0] != square.input[1]:
        return None
    sine, norm = _made(model, square.input[0], "Sin"), _made(model, total.input[0], "InstanceNormalization")
    factor = model.value(scaled.input[1])
    if sine is None or norm is None or sine.input[0] != norm.output[0]:
        return None
    if factor is None or factor.shape != (1, kernel.shape[1], 1) or not all(map(model.producer.get, norm.input)):
        return None
    shift = conv.input[2] if len(conv.input) > 2 else None
    dilation, epsilon = attribute(conv, "dilations", [1])[0], attribute(norm, "epsilon", 1e-5)
    return Layer(*norm.input, epsilon, scaled.input[1], conv.input[1], shift, dilation, conv.output[0])


def _keeps_length(conv: onnx.NodeProto, shape: tuple[int, ...]) -> bool:
    """Whether a convolution is a plain one of one dimension that answers with as many values as it was given."""
    if len(shape) != 3 or attribute(conv, "auto_pad", b"NOTSET") != b"NOTSET" or attribute(conv, "group", 1) != 1:
        return False
    reach = (shape[2] - 1) * attribute(conv, "dilations", [1])[0]
    return attribute(conv, "strides", [1]) == [1] and attribute(conv, "pads", [0, 0]) == [reach // 2, reach - reach // 2]


def _made(model: SavedModel, name: str, kind: str) -> onnx.NodeProto | None:
    node = model.producer.get(name)
    return node if node is not None and node.op_type == kind else None
