"""A graph in pieces, between which something else computes values of it: exact, since every operator is in one piece.

A stretch is what something else computes: one value from others. Values have a level, how many stretches lie one behind
the other before them, at most. Piece n computes what is of level n; then the stretches that need no more are computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from ...errors import ExportError

__all__ = ["Stretch", "in_pieces"]


@dataclass(frozen=True)
class Stretch:
    """Names of the values that it needs, and of the one that it computes."""

    inputs: tuple[str, ...]
    output: str


def in_pieces(model: onnx.ModelProto, stretches: Sequence[Stretch]) -> tuple[list[onnx.ModelProto], list[int]]:
    """The pieces in order, and for each stretch, after which one it is computed.

    A piece's inputs are the model's, a stretch's output, or an earlier piece's outputs. Their weights may lie beside
    the model. Raises ExportError for a graph with branches or loops.
    """
    return _Cutting(model, stretches).pieces()


class _Cutting:
    def __init__(self, model: onnx.ModelProto, stretches: Sequence[Stretch]) -> None:
        self._model, self._stretches = model, stretches
        graph = model.graph
        if any(each.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for n in graph.node for each in n.attribute):
            raise ExportError("a graph with branches or loops cannot be cut into pieces")
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._producer = {name: node for node in graph.node for name in node.output if name}
        self._given = {stretch.output for stretch in stretches}
        self._levels = self._leveled()
        self._outputs = {name: None for each in graph.output for name in [each.name]}

    def pieces(self) -> tuple[list[onnx.ModelProto], list[int]]:
        after = [self._level(stretch.inputs) for stretch in self._stretches]
        count = 1 + max(self._level(list(self._outputs)), *after)
        targets = dict.fromkeys(name for stretch in self._stretches for name in stretch.inputs) | self._outputs
        nodes, crossing = self._needed(list(targets))
        types = _types(self._model)
        made = []
        for level in range(count):
            wanted = [n for n in dict.fromkeys([*targets, *crossing]) if self._computed(n) and self._levels[n] == level]
            made.append(self._piece(level, nodes, wanted, types))
        return made, after

    def _level(self, names: Sequence[str]) -> int:
        return max((self._levels.get(name, 0) for name in names), default=0)

    def _leveled(self) -> dict[str, int]:
        levels, stretches = dict[str, int](), {stretch.output: stretch for stretch in self._stretches}
        for node in self._model.graph.node:
            for name in node.output:
                own = stretches.get(name)
                needed, step = (node.input, 0) if own is None else (own.inputs, 1)
                levels[name] = step + max((levels.get(each, 0) for each in needed), default=0)
        return levels

    def _computed(self, name: str) -> bool:
        """By a node of a piece, and not in each piece that reads it."""
        node = self._producer.get(name)
        return node is not None and node.op_type != "Constant" and name not in self._given

    def _needed(self, wanted: list[str]) -> tuple[set[str], list[str]]:
        """The first outputs of all nodes that are, and the values that a piece reads of an earlier one."""
        nodes, crossing = set[str](), list[str]()
        while wanted:
            name = wanted.pop()
            node = self._producer.get(name)
            if node is None or name in self._given or node.output[0] in nodes:
                continue
            nodes.add(node.output[0])
            wanted += node.input
            level = self._level(node.output)
            crossing += [each for each in node.input if self._computed(each) and self._levels[each] < level]
        return nodes, crossing

    def _piece(self, level: int, needed: set[str], outputs: Sequence[str], types: dict[str, onnx.TypeProto]) -> onnx.ModelProto:
        own = [n for n in self._model.graph.node if n.output[0] in needed and self._level(n.output) == level and n.op_type != "Constant"]
        read = dict.fromkeys(name for node in own for name in node.input if name)
        constants = [self._producer[name] for name in read if name in self._producer and self._producer[name].op_type == "Constant"]
        within = {name for node in (*own, *constants) for name in node.output}
        inputs = [name for name in read if name not in within and name not in self._tensors]
        graph = helper.make_graph(
            [*constants, *own],
            f"piece {level}",
            [_value(name, types) for name in inputs],
            [_value(name, types) for name in outputs],
            [self._tensors[name] for name in read if name in self._tensors],
        )
        model = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        model.functions.extend(self._model.functions)
        return model


def _types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """What is known of the values."""
    with contextlib.suppress(Exception):  # of operators that ONNX does not know
        model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    return {each.name: each.type for each in (*graph.value_info, *graph.input, *graph.output)}


def _value(name: str, types: dict[str, onnx.TypeProto]) -> onnx.ValueInfoProto:
    """Without a shape, which differs from run to run."""
    kind = types[name].tensor_type.elem_type if name in types else onnx.TensorProto.FLOAT
    return helper.make_tensor_value_info(name, kind or onnx.TensorProto.FLOAT, None)
