"""Residual blocks whose norms follow a style, as they stand in a graph behind `norms` and `rewrite`.

    x + conv(snake(norm(conv(snake(norm(x)))))), several times one after the other

norm is an instance norm with a scale and a bias that the graph computes (AdaIN, Huang and Belongie 2017,
arXiv:1703.06868), conv a convolution of the same length. Source: StyleTTS 2 (Li et al. 2023, arXiv:2306.07691).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ...errors import ExportError
from .pieces import Stretch, write_pieces
from .saved import SavedModel, attribute

__all__ = ["Block", "Layer", "has_sines", "residual_blocks", "write_blocks"]

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


def has_sines(content: bytes, among: str = "") -> bool:
    """Whether there may be such blocks in a model before it is rewritten."""
    nodes = onnx.load_from_string(content).graph.node
    return any(node.op_type == "Sin" and node.name.startswith(among) for node in nodes)


def write_blocks(
    path: Path, directory: Path, takes: Callable[[tuple[int, ...]], bool]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The graph at `path` cut into files there, and the weights and the description of the blocks between them:

        <block>.<layer>.kernel    float32 [out, taps, in], with the snake's factor
        <block>.<layer>.bias      [out], where there is one

    and pieces (names of files), outputs (of the graph), blocks (x, out, after: the number of a piece, and layers:
    scale, bias, epsilon, dilation). takes: of a weight's shape [out, in, taps], whether it may be in a block.

    Raises ExportError for a graph without such blocks.
    """
    model = SavedModel(path)
    blocks, tensors, described = residual_blocks(model, takes), dict[str, np.ndarray](), list[dict[str, Any]]()
    if not blocks:
        raise ExportError(f"{path.name} has no residual blocks with adaptive norms and snakes: leave it in one piece")
    files, after = write_pieces(model, [block.stretch for block in blocks], directory)
    for i, (block, piece) in enumerate(zip(blocks, after, strict=True)):
        layers = [layer for step in block.steps for layer in step]
        for j, layer in enumerate(layers):
            tensors.update({f"{i}.{j}.{name}": array for name, array in _weights(model, layer).items()})
        own = [{name: getattr(layer, name) for name in ("scale", "bias", "epsilon", "dilation")} for layer in layers]
        described.append({"x": block.x, "out": block.out, "after": piece, "layers": own})
    outputs = [each.name for each in model.graph.output]
    return tensors, {"pieces": files, "blocks": described, "outputs": outputs}


def _weights(model: SavedModel, layer: Layer) -> dict[str, np.ndarray]:
    kernel, factor = (np.asarray(model.value(name)) for name in (layer.kernel, layer.factor))
    made = {"kernel": np.ascontiguousarray((kernel * factor).transpose(0, 2, 1), np.float32)}
    return made if layer.shift is None else {**made, "bias": np.asarray(model.value(layer.shift), np.float32)}


def residual_blocks(model: SavedModel, takes: Callable[[tuple[int, ...]], bool]) -> list[Block]:
    """All that there are, in the order of the graph. takes: see `write_blocks`."""
    layers = {layer.out: layer for node in model.graph.node if (layer := _layer(model, node, takes)) is not None}
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


def _layer(model: SavedModel, conv: onnx.NodeProto, takes: Callable[[tuple[int, ...]], bool]) -> Layer | None:
    """Of Conv(Mul(Add(z, Mul(s, s)), factor)) for s = Sin(z) and z = InstanceNormalization(x, scale, bias)."""
    kernel = model.value(conv.input[1]) if conv.op_type == "Conv" else None
    scaled = _made(model, conv.input[0], "Mul") if kernel is not None else None
    if kernel is None or scaled is None or not _keeps_length(conv, kernel.shape) or not takes(kernel.shape):
        return None
    total = _made(model, scaled.input[0], "Add")
    square = None if total is None else _made(model, total.input[1], "Mul")
    if total is None or square is None or square.input[0] != square.input[1]:
        return None
    sine, norm = _made(model, square.input[0], "Sin"), _made(model, total.input[0], "InstanceNormalization")
    factor = model.value(scaled.input[1])
    if sine is None or norm is None or sine.input[0] != norm.output[0]:
        return None
    if factor is None or factor.shape != (1, kernel.shape[1], 1):
        return None
    if any(model.value(end) is not None for end in norm.input):  # what pieces do not hand over
        return None
    shift, out = _shifted(model, conv, kernel.shape[0])
    if shift is not None and model.value(shift) is None:
        return None
    dilation, epsilon = attribute(conv, "dilations", [1])[0], attribute(norm, "epsilon", 1e-5)
    x, scale, bias = norm.input
    return Layer(x, scale, bias, epsilon, scaled.input[1], conv.input[1], shift, dilation, out)


def _shifted(model: SavedModel, conv: onnx.NodeProto, channels: int) -> tuple[str | None, str]:
    """A convolution's bias, and its answer's name; what quantizes dynamically may have put the bias behind it."""
    out = conv.output[0]
    if len(conv.input) > 2:
        return conv.input[2], out
    add = model.only_consumer(out)
    reshape = _made(model, add.input[1], "Reshape") if add is not None and add.op_type == "Add" else None
    shape = None if reshape is None else model.value(reshape.input[1])
    if add is None or reshape is None or shape is None or shape.tolist() not in ([1, -1, 1], [1, channels, 1]):
        return None, out
    return reshape.input[0], add.output[0]


def _keeps_length(conv: onnx.NodeProto, shape: tuple[int, ...]) -> bool:
    """Whether a convolution is a plain one of one dimension that answers with as many values as it was given."""
    if len(shape) != 3 or attribute(conv, "auto_pad", b"NOTSET") != b"NOTSET" or attribute(conv, "group", 1) != 1:
        return False
    reach = (shape[2] - 1) * attribute(conv, "dilations", [1])[0]
    return attribute(conv, "strides", [1]) == [1] and attribute(conv, "pads", [0, 0]) == [
        reach // 2,
        reach - reach // 2,
    ]


def _made(model: SavedModel, name: str, kind: str) -> onnx.NodeProto | None:
    node = model.producer.get(name)
    return node if node is not None and node.op_type == kind else None
