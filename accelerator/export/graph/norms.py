"""Instance norms that an exporter spelled out, as one operator.

    (x - mean) / sqrt(mean of (x - mean)^2 + eps) * scale + bias  ->  InstanceNormalization

Ten passes over a long signal become one. Scale and bias may be computed, as an adaptive norm's are from a style (AdaIN,
Huang and Belongie 2017, arXiv:1703.06868): the operator takes a value for each channel, so only those of one batch row
are rewritten.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from .saved import SavedModel, attribute

__all__ = ["rewrite_norms"]

_LAST = ([2], [-1])  # of [N, C, L]


@dataclass(frozen=True)
class _Norm:
    """nodes: the affine ones, whose output is the norm's; those before become unused, if nobody else reads them."""

    nodes: list[onnx.NodeProto]
    x: str
    scale: str
    bias: str
    epsilon: float


def rewrite_norms(model: SavedModel, among: str = "") -> int:
    """Rewrite all that can be; how many they are. among: how the names of their nodes begin."""
    shapes = _shapes(model)
    divisions = [node for node in model.graph.node if node.op_type == "Div" and node.name.startswith(among)]
    found = [norm for node in divisions for norm in _norms(model, node, shapes)]
    for norm in found:
        out = norm.nodes[-1].output[0]
        ends = [f"{out}/scale", f"{out}/bias"]
        flat = model.constant(np.array([-1], np.int64))
        model.replace(
            norm.nodes,
            [
                *(
                    helper.make_node("Reshape", [value, flat], [end], name=end)
                    for value, end in zip((norm.scale, norm.bias), ends, strict=True)
                ),
                helper.make_node("InstanceNormalization", [norm.x, *ends], [out], name=out, epsilon=norm.epsilon),
            ],
        )
    if found:
        model.prune()
    return len(found)


def _norms(model: SavedModel, divide: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> list[_Norm]:
    """Those that this division by a standard deviation belongs to: several blocks may have one input."""
    centred, root = (model.producer.get(name) for name in divide.input)
    if centred is None or root is None or (centred.op_type, root.op_type) != ("Sub", "Sqrt"):
        return []
    x, mean = centred.input
    added = model.producer.get(root.input[0])
    if added is None or added.op_type != "Add" or _averaged(model, mean) != x:
        return []
    epsilon = model.value(added.input[1])
    square = model.producer.get(_averaged(model, added.input[0]) or "")
    if epsilon is None or epsilon.size != 1 or square is None or not _is_square_of(model, square, centred.output[0]):
        return []
    affine = [_affine(model, each, divide.output[0]) for each in model.consumers.get(divide.output[0], [])]
    found = [_Norm(nodes, x, scale, bias, float(epsilon.reshape(-1)[0])) for nodes, scale, bias in filter(None, affine)]
    return [norm for norm in found if _of_channels(shapes.get(norm.scale)) and _of_channels(shapes.get(norm.bias))]


def _averaged(model: SavedModel, name: str) -> str | None:
    """What a mean along the last axis is the mean of."""
    node = model.producer.get(name)
    if node is None or node.op_type != "ReduceMean" or not attribute(node, "keepdims", 1):
        return None
    axes = attribute(node, "axes", None) if len(node.input) < 2 else model.value(node.input[1])
    return node.input[0] if axes is not None and list(axes) in _LAST else None


def _is_square_of(model: SavedModel, node: onnx.NodeProto, name: str) -> bool:
    if node.op_type == "Pow" and node.input[0] == name:
        exponent = model.value(node.input[1])
        return exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) == 2.0
    return node.op_type == "Mul" and list(node.input) == [name, name]


def _affine(model: SavedModel, multiply: onnx.NodeProto, name: str) -> tuple[list[onnx.NodeProto], str, str] | None:
    """The nodes of name * scale + bias, and both factors' names."""
    add = model.only_consumer(multiply.output[0]) if multiply.op_type == "Mul" else None
    if add is None or add.op_type != "Add":
        return None
    (scale,) = (each for each in multiply.input if each != name)
    (bias,) = (each for each in add.input if each != multiply.output[0])
    return [multiply, add], scale, bias


def _of_channels(shape: tuple[int, ...] | None) -> bool:
    return shape is not None and len(shape) == 3 and shape[0] == shape[2] == 1


def _shapes(model: SavedModel) -> dict[str, tuple[int, ...]]:
    """The shapes that are known beforehand; 0 for a length that is not."""
    inferred = onnx.shape_inference.infer_shapes(model.proto)
    kinds = {each.name: each.type.tensor_type.shape.dim for each in inferred.graph.value_info}
    known = {name: tuple(each.dim_value for each in dims) for name, dims in kinds.items()}
    return {**known, **{name: tuple(tensor.dims) for name, tensor in model.initializers.items()}}
