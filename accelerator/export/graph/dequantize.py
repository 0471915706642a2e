"""A dynamically quantized model in float32 again: its weights exactly as stored, its activations no longer rounded.

`quantize_dynamic` of ONNX Runtime rounds each activation to 8 bits as it comes, and multiplies integers:

    DynamicQuantizeLinear -> ConvInteger or MatMulInteger [-> Add of a rounded bias] -> Cast -> Mul of both scales
    DynamicQuantizeLSTM

Where ConvInteger is slow, the float32 product of the dequantized weights is both faster and closer to the model before
it was quantized. Weights take four times the memory. What does not look so is left as it is.

Nobody may have the model as it was before, and rounding is chaotic: where a sum differs in its last bit, a value
further on is rounded otherwise, so that even with its roundings put back the float32 graph soon answers otherwise.
Hence `compared`: each product beside the one that takes its place, both of the same rounded values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...errors import ExportError
from .graph import stored_in

__all__ = ["compared", "dequantize", "dequantized", "rounds"]

_FLOAT = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}
_ROUNDING = (*_FLOAT, "DynamicQuantizeLSTM")
_STEPS = ("Reshape", "Cast", "Floor")  # from an Add back to the division of a bias by both scales
_CELL = 12  # inputs of DynamicQuantizeLSTM
_DIRECTIONS, _WEIGHTS = 0, (1, 2)  # of a cell, [directions, inputs, 4 * hidden]


def rounds(content: bytes, among: str = "") -> bool:
    """Whether there is anything for `dequantized` to rewrite. Raises ExportError for what is no model."""
    graph = _model(content).graph
    return any(node.op_type in _ROUNDING and node.name.startswith(among) for node in graph.node)


def dequantized(content: bytes, among: str = "") -> bytes:
    """The model with float32 products in place of its integer ones. content: a model of one file.

    among: how the names of their nodes begin; without what predicts lengths, the answer stays as long as it was.

    Raises ExportError for one that has none, or is no model.
    """
    return _changed(content, among, None, _Rewriting.run)


def dequantize(content: bytes, path: Path, among: str = "") -> None:
    """`dequantized` as a file at `path`, its new weights one by one into <its name>.data beside it."""
    with open(path.with_name(f"{path.name}.data"), "wb") as data:
        path.write_bytes(_changed(content, among, data, _Rewriting.run))


def compared(content: bytes, path: Path, among: str = "") -> None:
    """A model at `path` that judges `dequantize`: for each product the energies of its difference and of itself.

    The difference is that of the product as the stored model rounds it and the float32 one of the same rounded values,
    so nothing but the last bits of sums. Cells, whose roundings are inside, are not compared.
    """
    with open(path.with_name(f"{path.name}.data"), "wb") as data:
        path.write_bytes(_changed(content, among, data, _Rewriting.compare))


def _changed(content: bytes, among: str, data: BinaryIO | None, change: Callable[[_Rewriting], int]) -> bytes:
    model = _model(content)
    if not change(_Rewriting(model.graph, among, data)):
        raise ExportError("the model has no dynamically quantized products: use it as it is")
    return bytes(model.SerializeToString())


def _model(content: bytes) -> onnx.ModelProto:
    try:
        return onnx.load_from_string(content)
    except Exception as error:  # protobuf has several decoders, each with its own errors
        raise ExportError(f"this is no ONNX model: {error}") from error


class _Rewriting:
    """A graph on its way, and who makes and who reads each value of it."""

    def __init__(self, graph: onnx.GraphProto, among: str, data: BinaryIO | None) -> None:
        """data: where the weights go; within the graph if None."""
        self._graph, self._among, self._data = graph, among, data
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._producer = {name: node for node in graph.node for name in node.output if name}
        self._consumers = defaultdict[str, list[onnx.NodeProto]](list)
        for node in graph.node:
            for name in node.input:
                self._consumers[name].append(node)
        self._new: dict[str, onnx.TensorProto] = {}
        self._rounding, self._before = False, list[onnx.NodeProto]()  # what the next product of rounded values needs

    def run(self) -> int:
        """Rewrite all products that can be; how many they are."""
        nodes = [self._rewritten(node) for node in self._graph.node]
        count = sum(new is not old for new, old in zip(nodes, self._graph.node, strict=True))
        self._replace(nodes)
        return count

    def compare(self) -> int:
        """Compute each product also in float32; the graph's only outputs are then two energies for each."""
        self._rounding, nodes, ends = True, list[onnx.NodeProto](), list[str]()
        for node in self._graph.node:
            nodes.append(node)
            if node.op_type == "Mul" and (made := self._product(node)) is not None:
                own, name = node.output[0], f"{node.output[0]}/again"
                made.name = made.output[0] = name
                kinds = [("Sub", [own, name]), ("ReduceSumSquare", [f"{name}/Sub"]), ("ReduceSumSquare", [own])]
                outputs = [f"{name}/Sub", f"{name}/noise", f"{name}/signal"]
                nodes += [*self._before, made]
                nodes += [
                    helper.make_node(kind, inputs, [out], name=out)
                    for (kind, inputs), out in zip(kinds, outputs, strict=True)
                ]
                ends += outputs[1:]
                self._before.clear()
        del self._graph.output[:]
        self._graph.output.extend(helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, None) for end in ends)
        self._replace(nodes)
        return len(ends)

    def _rewritten(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """What takes a node's place: itself, or a float32 product in the place of the last node of its chain."""
        if node.op_type == "DynamicQuantizeLSTM" and node.name.startswith(self._among):
            return self._cell(node) or node
        if node.op_type == "Mul" and (made := self._product(node)) is not None:
            return made
        return node

    def _product(self, last: onnx.NodeProto) -> onnx.NodeProto | None:
        """Of Mul(Cast([Add](product)), scales), where these are the only readers of each other."""
        cast = self._made(last.input[0], "Cast")
        if cast is None:
            return None
        bias, source = None, self._only(cast.input[0])
        if source is not None and source.op_type == "Add":
            bias, source = self._bias(source, last.input[1]), self._only(source.input[0])
            if bias is None:
                return None
        scales = self._made(last.input[1], "Mul")
        if source is None or scales is None or source.op_type not in _FLOAT or not source.name.startswith(self._among):
            return None
        rounded = self._made(source.input[0], "DynamicQuantizeLinear")
        scale = next((self._tensors[name] for name in scales.input if name in self._tensors), None)
        if rounded is None or scale is None or source.input[1] not in self._tensors:
            return None
        inputs = [self._activation(rounded), self._weight(source, numpy_helper.to_array(scale))]
        inputs += [] if bias is None else [bias]
        made = helper.make_node(_FLOAT[source.op_type], inputs, list(last.output), name=source.name)
        made.attribute.extend(source.attribute)
        return made

    def _activation(self, rounded: onnx.NodeProto) -> str:
        if not self._rounding:
            return str(rounded.input[0])
        return self._first("DequantizeLinear", list(rounded.output))

    def _first(self, kind: str, inputs: list[str]) -> str:
        """A node before the next product; its output."""
        name = f"{inputs[0]}/float"
        if name not in self._producer:
            self._producer[name] = helper.make_node(kind, inputs, [name], name=name)
            self._before.append(self._producer[name])
        return name

    def _bias(self, add: onnx.NodeProto, scales: str) -> str | None:
        """The float32 bias that a node adds after dividing it by both scales and rounding it."""
        name = rounded = add.input[1]
        for kind in _STEPS:
            node = self._made(name, kind)
            if node is None:
                return None
            name, rounded = node.input[0], node.output[0]
        divided = self._made(name, "Div")
        if divided is None or divided.input[1] != scales or divided.input[0] not in self._tensors:
            return None
        return self._first("Mul", [rounded, scales]) if self._rounding else str(divided.input[0])

    def _weight(self, source: onnx.NodeProto, scale: np.ndarray) -> str:
        """A constant: the weight that a product's integers stand for."""
        values = numpy_helper.to_array(self._tensors[source.input[1]])
        zero = numpy_helper.to_array(self._tensors[source.input[3]]) if len(source.input) > 3 else np.zeros((), np.int8)
        if source.op_type == "ConvInteger":  # the first axis is that of outputs; of a matrix the last
            scale, zero = (each.reshape(-1, *[1] * (values.ndim - 1)) for each in (scale, zero))
        return self._constant(f"{source.input[1]}/float", _exact(values, zero, scale))

    def _cell(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """An LSTM of ONNX, whose weights are [directions, 4 * hidden, inputs]."""
        inputs = [*node.input, *[""] * (_CELL - len(node.input))]
        if not all(inputs[place] in self._tensors for place in (*_WEIGHTS, 8, 9, 10, 11)):
            return None
        plain = inputs[:8]
        for place, (scale, zero) in zip(_WEIGHTS, ((8, 9), (10, 11)), strict=True):
            values, *by = (numpy_helper.to_array(self._tensors[inputs[each]]) for each in (place, scale, zero))
            directions = values.shape[_DIRECTIONS]
            zero_point, scales = (each.reshape(directions, 1, -1) for each in reversed(by))
            weight = _exact(values, zero_point, scales).transpose(0, 2, 1)
            plain[place] = self._constant(f"{inputs[place]}/float", weight)
        while not plain[-1]:
            plain.pop()
        made = helper.make_node("LSTM", plain, list(node.output), name=node.name)
        made.attribute.extend(node.attribute)
        return made

    def _made(self, name: str, kind: str) -> onnx.NodeProto | None:
        node = self._producer.get(name)
        return node if node is not None and node.op_type == kind else None

    def _only(self, name: str) -> onnx.NodeProto | None:
        """What makes a value that one node reads."""
        return self._producer.get(name) if len(self._consumers[name]) == 1 else None

    def _constant(self, name: str, array: np.ndarray) -> str:
        if name not in self._new:
            array = np.ascontiguousarray(array)
            self._new[name] = (
                numpy_helper.from_array(array, name) if self._data is None else stored_in(self._data, name, array)
            )
        return name

    def _replace(self, nodes: list[onnx.NodeProto]) -> None:
        """These nodes and their constants, without what is read by nobody any more."""
        tensors = {**self._tensors, **self._new}
        wanted = {each.name for each in self._graph.output}
        kept = list[Any]()
        for node in reversed(nodes):
            if not wanted.isdisjoint(node.output):
                kept.append(node)
                wanted.update(_read(node))
        del self._graph.node[:], self._graph.initializer[:], self._graph.value_info[:]
        self._graph.node.extend(reversed(kept))
        self._graph.initializer.extend(tensor for name, tensor in tensors.items() if name in wanted)


def _exact(values: np.ndarray, zero: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return (values.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale.astype(np.float32)


def _read(node: onnx.NodeProto) -> set[str]:
    """What a node reads, its branches and bodies included."""
    names = set(node.input)
    for each in node.attribute:
        for graph in [each.g, *each.graphs]:
            names.update(value.name for value in graph.output)
            for inner in graph.node:
                names |= _read(inner)
    return names
