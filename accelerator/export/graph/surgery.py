"""An ONNX model that somebody else made, in memory: looked into, its noise made an input, cut in two. All of it exact.

noise   a node that draws random numbers becomes an input: the caller draws, so a seed means the same on any number
        of threads, and two sessions of one process do not speak the same take
cut     everything behind a value becomes a model of its own, which is given that value and whatever else it needs
        of what came before

Weights stay aside while nodes are looked into and moved, and come back when the model is written: graphs are copied
often, and are small without them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from ...errors import ExportError

__all__ = ["Model", "Node", "Noise"]

_LARGE = 1024  # bytes of a tensor, from which on it is a weight and no setting, such as a shape
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


@dataclass(frozen=True)
class Node:
    """One operator. attributes: as Python values, tensors as arrays."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Noise:
    """An input of standard normal float32 that was a node: its name, and the value whose shape it has."""

    name: str
    like: str


class Model:
    """A model of one file. Methods that change it answer with another one. Raises ExportError for what is no model."""

    def __init__(self, source: bytes | onnx.ModelProto, weights: Mapping[str, bytes] | None = None) -> None:
        """source: a file's content. weights: of large tensors that have no data in the source."""
        try:
            proto = onnx.load_from_string(source) if isinstance(source, bytes) else source
        except Exception as error:  # protobuf has several decoders, each with its own errors
            raise ExportError(f"this is no ONNX model: {error}") from error
        if any(map(uses_external_data, proto.graph.initializer)):
            raise ExportError("the model keeps its weights in another file: only models of one file can be cut up")
        self._weights = dict(weights or {})
        self._proto = proto if weights is not None else _without_weights(proto, self._weights)
        graph = self._proto.graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._producer = {name: node for node in graph.node for name in node.output if name}
        self.inputs = tuple(each.name for each in graph.input if each.name not in self._tensors)
        self.outputs = tuple(each.name for each in graph.output)

    def __bytes__(self) -> bytes:
        whole = _copy(self._proto)
        for tensor in whole.graph.initializer:
            if tensor.name in self._weights:
                tensor.raw_data = self._weights[tensor.name]
        return bytes(whole.SerializeToString())

    def save(self, path: Path) -> None:
        path.write_bytes(bytes(self))

    def nodes(self) -> Iterator[Node]:
        """In the order in which they are computed."""
        return map(_node, self._proto.graph.node)

    def consumers(self, value: str) -> list[Node]:
        return [_node(node) for node in self._proto.graph.node if value in node.input]

    def array(self, name: str) -> np.ndarray:
        """A constant. Raises ExportError for a value that is computed."""
        if (tensor := self._tensors.get(name)) is not None:
            if name in self._weights:
                kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
                return np.frombuffer(self._weights[name], kind).reshape(tensor.dims)
            return np.asarray(numpy_helper.to_array(tensor))
        node = self._producer.get(name)
        if node is not None and node.op_type == "Constant":
            return np.asarray(next(iter(_node(node).attributes.values())))
        raise ExportError(f"{name} is no constant of the model")

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a constant. Raises ExportError for a value that is computed."""
        return tuple(self._tensors[name].dims) if name in self._tensors else self.array(name).shape

    def with_noise_as_inputs(self) -> tuple[Model, tuple[Noise, ...]]:
        """Every `RandomNormalLike` an input, in the order of the graph: noise_0, noise_1, ...

        Raises ExportError for a model that draws in any other way.
        """
        proto = _copy(self._proto)
        graph, found = proto.graph, list[Noise]()
        types = self._types
        for index, node in enumerate(list(graph.node)):
            if any(inner.op_type in _RANDOM for inner in _inner(node)):
                raise ExportError(f"{node.name} draws random numbers in a branch or a loop")
            if node.op_type not in _RANDOM:
                continue
            if node.op_type != "RandomNormalLike":
                raise ExportError(f"{node.name} draws random numbers by {node.op_type}: only RandomNormalLike is known")
            name = f"noise_{len(found)}"
            shape = types.get(node.output[0]) or types.get(node.input[0])
            graph.input.append(_value(name, shape))
            own = {each.name: helper.get_attribute_value(each) for each in node.attribute}
            scaled = _scaled(name, node.output[0], own.get("mean", 0.0), own.get("scale", 1.0))
            graph.node.remove(node)
            for offset, each in enumerate(scaled):
                graph.node.insert(index + offset, each)
            found.append(Noise(name, node.input[0]))
        return Model(proto, self._weights), tuple(found)

    def cut(self, at: str, head_outputs: Sequence[str], shared: Sequence[str] = ()) -> tuple[Model, Model]:
        """(head, tail). The tail computes this model's outputs from `at`, its first input, and from what else it needs.

        The head answers with `head_outputs`, and then with what else the tail needs, under the same names. shared: what
        follows from these values alone is computed by the tail, which is given them.
        """
        behind = self._behind(at)
        wanted = {name for node in behind for name in _used(node)} - {name for node in behind for name in node.output}
        fixed, known = self._following(()), self._following(shared)
        beside = {name for name in wanted - {at} if name not in known}
        beside |= {each for each in shared if any(name in known - fixed for name in wanted)}
        needed = sorted(beside)
        head = self._part(list(self.inputs), [*head_outputs, *(name for name in needed if name not in self.inputs)])
        return head, self._part([at, *needed], list(self.outputs))

    @functools.cached_property
    def _types(self) -> dict[str, onnx.TypeProto]:
        return _types(self._proto)

    def _behind(self, value: str) -> list[onnx.NodeProto]:
        """All nodes that depend on a value."""
        reached, found = {value}, []
        for node in self._proto.graph.node:
            if not reached.isdisjoint(_used(node)):
                found.append(node)
                reached.update(node.output)
        return found

    def _following(self, values: Iterable[str]) -> set[str]:
        """These values, and all that depend on nothing but them."""
        known = {"", *self._tensors, *values}
        for node in self._proto.graph.node:
            if known.issuperset(_used(node)) and node.op_type not in _RANDOM:
                known.update(node.output)
        return known

    def _part(self, inputs: Sequence[str], outputs: Sequence[str]) -> Model:
        """What computes `outputs` from `inputs`; of these, those that it needs, in this order."""
        wanted, needed = list(outputs), set[str]()
        nodes = set[int]()
        while wanted:
            name = wanted.pop()
            node = self._producer.get(name)
            needed.add(name)
            if name in inputs or node is None or id(node) in nodes:
                continue
            nodes.add(id(node))
            wanted += _used(node)
        types = self._types
        proto = _copy(self._proto)
        graph = proto.graph
        kept = [each for each, own in zip(graph.node, self._proto.graph.node, strict=True) if id(own) in nodes]
        tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
        part = helper.make_graph(
            kept,
            graph.name,
            [_value(name, types.get(name)) for name in inputs if name in needed],
            [_value(name, types.get(name)) for name in outputs],
            tensors,
        )
        made = helper.make_model(part, opset_imports=proto.opset_import, ir_version=proto.ir_version)
        made.functions.extend(proto.functions)
        return Model(made, {name: self._weights[name] for name in needed if name in self._weights})


def _without_weights(proto: onnx.ModelProto, weights: dict[str, bytes]) -> onnx.ModelProto:
    """A copy; the data of large tensors is put into `weights` instead."""
    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) >= _LARGE:
            weights[tensor.name] = tensor.raw_data
            tensor.ClearField("raw_data")
    return _copy(proto)  # the given one keeps the memory of what it has lost


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    return copied


def _node(node: onnx.NodeProto) -> Node:
    attributes = {}
    for each in node.attribute:
        value = helper.get_attribute_value(each)
        attributes[each.name] = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    return Node(node.op_type, node.name, tuple(node.input), tuple(node.output), attributes)


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for each in node.attribute:
        if each.type == onnx.AttributeProto.GRAPH:
            yield each.g
        elif each.type == onnx.AttributeProto.GRAPHS:
            yield from each.graphs


def _inner(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The nodes of its branches or its body, at any depth."""
    for graph in _graphs(node):
        for inner in graph.node:
            yield inner
            yield from _inner(inner)


def _used(node: onnx.NodeProto) -> list[str]:
    """The values that a node reads, those that its branches take from outside among them."""
    names = [name for name in node.input if name]
    for graph in _graphs(node):
        own = {name for inner in graph.node for name in inner.output}
        own.update(each.name for each in (*graph.input, *graph.initializer))
        names += [name for inner in graph.node for name in _used(inner) if name not in own]
        names += [each.name for each in graph.output if each.name not in own]
    return names


def _types(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """What is known of the values: those declared, and those that can be inferred."""
    with contextlib.suppress(Exception):  # of operators that ONNX does not know; a name alone will do then
        proto = onnx.shape_inference.infer_shapes(proto)
    graph = proto.graph
    every: Iterable[onnx.ValueInfoProto] = (*graph.value_info, *graph.input, *graph.output)
    return {each.name: each.type for each in every if each.type.tensor_type.elem_type}


def _value(name: str, kind: onnx.TypeProto | None) -> onnx.ValueInfoProto:
    """A declaration with a name for each length that is not fixed: they may be any from run to run."""
    if kind is None:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return helper.make_tensor_value_info(name, tensor.elem_type, None)
    dims = [each.dim_value or f"{name}_{axis}" for axis, each in enumerate(tensor.shape.dim)]
    return helper.make_tensor_value_info(name, tensor.elem_type, dims)


def _scaled(name: str, output: str, mean: float, scale: float) -> list[onnx.NodeProto]:
    """Nodes that make a node's output of standard normal noise."""
    if (mean, scale) == (0.0, 1.0):
        return [helper.make_node("Identity", [name], [output], name=f"{name}/drawn")]
    factor, shift = (numpy_helper.from_array(np.array(each, np.float32)) for each in (scale, mean))
    return [
        helper.make_node("Constant", [], [f"{name}/scale"], value=factor),
        helper.make_node("Constant", [], [f"{name}/mean"], value=shift),
        helper.make_node("Mul", [name, f"{name}/scale"], [f"{name}/scaled"], name=f"{name}/Mul"),
        helper.make_node("Add", [f"{name}/scaled", f"{name}/mean"], [output], name=f"{name}/Add"),
    ]
