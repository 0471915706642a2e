"""An ONNX model on disk that is changed in place: weights stay in their data file, and are never all in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

__all__ = ["SavedModel", "attribute"]


class SavedModel:
    """A graph with its constants, producers and consumers; its weights may lie beside it, and are read one by one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.proto = onnx.load(str(path), load_external_data=False)
        self.graph = self.proto.graph
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self.outputs = {value.name for value in self.graph.output}
        self.constants = {n.output[0]: n.attribute[0].t for n in self.graph.node if n.op_type == "Constant"}
        self._new = 0
        self.index()

    def index(self) -> None:
        self.producer = {name: node for node in self.graph.node for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    def value(self, name: str) -> np.ndarray | None:
        """The array behind a constant name, or None."""
        tensor = self.initializers.get(name, self.constants.get(name))
        if tensor is None:
            return None
        if uses_external_data(tensor):
            tensor = _copy(tensor)
            load_external_data_for_tensor(tensor, str(self.path.parent))
        return numpy_helper.to_array(tensor)

    def set_value(self, name: str, array: np.ndarray) -> None:
        """Replace an initializer's content, in its place in the data file if it fits."""
        tensor = self.initializers[name]
        array = np.ascontiguousarray(array, np.float32)
        if not uses_external_data(tensor):
            tensor.CopyFrom(numpy_helper.from_array(array, name))
            return
        info = {entry.key: entry.value for entry in tensor.external_data}
        with open(self.path.parent / info["location"], "r+b") as data:
            if int(info["length"]) >= array.nbytes:
                offset = int(info["offset"])
            else:
                offset = -(-data.seek(0, 2) // 4096) * 4096
            data.seek(offset)
            data.write(array.data)
        del tensor.external_data[:], tensor.dims[:]
        tensor.dims.extend(array.shape)
        for key, entry in (("location", info["location"]), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(entry))

    def constant(self, array: np.ndarray) -> str:
        while (name := f"rewritten_constant_{self._new}") in self.initializers:  # perhaps of an earlier rewrite
            self._new += 1
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        self.graph.initializer.append(tensor)
        self.initializers[name] = self.graph.initializer[-1]
        return name

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        users = self.consumers.get(name, [])
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def unshared(self, name: str) -> bool:
        """Whether an initializer is used by one node only, so that it may change."""
        return name in self.initializers and len(self.consumers.get(name, [])) == 1

    def replace(self, old: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto]) -> None:
        """Put `new` where the last of `old` stood."""
        gone = {node.output[0] for node in old}
        nodes = list(self.graph.node)
        last = max(i for i, node in enumerate(nodes) if node.output[0] in gone)
        kept = [node for node in nodes[: last + 1] if node.output[0] not in gone]
        rest = nodes[last + 1 :]
        copies = [[_copy(node) for node in part] for part in (kept, new, rest)]
        del self.graph.node[:]
        self.graph.node.extend(node for part in copies for node in part)
        self.index()

    def prune(self) -> None:
        """Without what is read by nobody any more."""
        wanted, kept = set(self.outputs), list[onnx.NodeProto]()
        for node in reversed(self.graph.node):
            if not wanted.isdisjoint(node.output):
                kept.append(_copy(node))
                wanted.update(node.input)
        del self.graph.node[:]
        self.graph.node.extend(reversed(kept))
        self.index()

    def save(self) -> None:
        del self.graph.value_info[:]  # shapes of values that are gone
        used = [_copy(t) for t in self.graph.initializer if t.name in self.consumers or t.name in self.outputs]
        del self.graph.initializer[:]
        self.graph.initializer.extend(used)
        self.path.write_bytes(self.proto.SerializeToString())


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """A node's attribute as a Python value."""
    for each in node.attribute:
        if each.name == name:
            return helper.get_attribute_value(each)
    return default


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
