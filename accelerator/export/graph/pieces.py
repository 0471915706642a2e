"""A graph in pieces, between which something else computes values of it: exact, since each operator is in one of them.

A stretch is what something else computes: one value from others. Of the values that a piece computes, each has behind
it the same number of stretches, one after the other: none for the first piece, one for the second. A stretch is
computed as soon as a piece has all that it needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper
from onnx.external_data_helper import uses_external_data

from ...errors import ExportError
from .graph import stored_in
from .saved import SavedModel

__all__ = ["Stretch", "write_pieces"]

_BRANCHING = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


@dataclass(frozen=True)
class Stretch:
    """Names of the values that it needs, and of the one that it computes."""

    inputs: tuple[str, ...]
    output: str


def write_pieces(model: SavedModel, stretches: Sequence[Stretch], directory: Path) -> tuple[list[str], list[int]]:
    """The pieces' files in their order, and for each stretch the number of the piece after which it is computed.

    A piece's inputs are the model's, outputs of stretches, and outputs of earlier pieces; the model's own outputs are
    among all of these. Raises ExportError for a graph with branches or loops.
    """
    cut, files = _Cut(model, stretches), list[str]()
    for n in range(cut.count):
        file = directory / f"piece-{n}.onnx"
        with open(file.with_name(f"{file.name}.data"), "wb") as data:
            piece = cut.piece(n)
            for i, tensor in enumerate(piece.graph.initializer):
                array = model.value(tensor.name) if uses_external_data(tensor) else None
                if array is not None:
                    piece.graph.initializer[i].CopyFrom(stored_in(data, tensor.name, array))
            file.write_bytes(piece.SerializeToString())
        if not Path(data.name).stat().st_size:
            Path(data.name).unlink()
        files.append(file.name)
    return files, cut.after


class _Cut:
    """count: of pieces. after: see `write_pieces`."""

    def __init__(self, model: SavedModel, stretches: Sequence[Stretch]) -> None:
        if any(each.type in _BRANCHING for node in model.graph.node for each in node.attribute):
            raise ExportError("a graph with branches or loops cannot be cut into pieces: its other backends run it")
        self._model, self._made = model, {stretch.output: stretch for stretch in stretches}
        self._levels, self._types = self._leveled(), _types(model.proto)
        self.after = [self._level(stretch.inputs) for stretch in stretches]
        outputs = [each.name for each in model.graph.output]
        self.count = 1 + max(self._level(outputs), *self.after)
        asked = [name for stretch in stretches for name in stretch.inputs]
        self._nodes, crossing = self._needed([*asked, *outputs])
        self._handed = dict.fromkeys(name for name in [*asked, *crossing, *outputs] if self._computed(name))

    def piece(self, n: int) -> onnx.ModelProto:
        producer, known = self._model.producer, self._model.initializers
        graph = self._model.graph
        own = [node for node in graph.node if node.output[0] in self._nodes and self._levels[node.output[0]] == n]
        read = dict.fromkeys(name for node in own for name in node.input if name)
        constants = [producer[name] for name in read if name in self._model.constants]
        within = {name for node in (*own, *constants) for name in node.output}
        outputs = [name for name in self._handed if name in within]
        made = helper.make_graph(
            [*constants, *own],
            f"piece {n}",
            [self._value(name) for name in read if name not in within and name not in known],
            [self._value(name) for name in outputs],
            [known[name] for name in read if name in known],
        )
        proto = self._model.proto
        model = helper.make_model(made, opset_imports=proto.opset_import, ir_version=proto.ir_version)
        model.functions.extend(proto.functions)
        return model

    def _level(self, names: Sequence[str]) -> int:
        return max((self._levels.get(name, 0) for name in names), default=0)

    def _leveled(self) -> dict[str, int]:
        """Of each value that a node computes; those of other nodes and of constants are 0."""
        self._levels = dict[str, int]()
        for node in self._model.graph.node:
            for name in node.output:
                own = self._made.get(name)
                self._levels[name] = self._level(node.input) if own is None else 1 + self._level(own.inputs)
        return self._levels

    def _computed(self, name: str) -> bool:
        """By one piece: constants are in each piece that reads them."""
        return name in self._model.producer and name not in self._model.constants and name not in self._made

    def _needed(self, wanted: list[str]) -> tuple[set[str], list[str]]:
        """The first outputs of the nodes that pieces have, and the values that they read of an earlier piece."""
        nodes, crossing = set[str](), list[str]()
        while wanted:
            name = wanted.pop()
            node = self._model.producer.get(name)
            if node is None or not self._computed(name) or node.output[0] in nodes:
                continue
            nodes.add(node.output[0])
            wanted += node.input
            crossing += [each for each in node.input if self._level([each]) < self._levels[name]]
        return nodes, crossing

    def _value(self, name: str) -> onnx.ValueInfoProto:
        """Without a shape, which differs from run to run."""
        return helper.make_tensor_value_info(name, self._types.get(name, onnx.TensorProto.FLOAT), None)


def _types(model: onnx.ModelProto) -> Mapping[str, int]:
    """What is known of the values' types."""
    with contextlib.suppress(Exception):  # of operators that ONNX does not know
        model = onnx.shape_inference.infer_shapes(model)
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    return {each.name: kind for each in values if (kind := each.type.tensor_type.elem_type)}
