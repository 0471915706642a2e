"""A small builder of ONNX graphs whose weights go straight to disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper

from .specs import OPSET

__all__ = ["Graph", "stored_in"]

IR_VERSION = 10
_MICROSOFT = "com.microsoft"
_ALIGNMENT = 4096  # ONNX Runtime maps external data; page-aligned tensors need no copy
_INLINE_BYTES = 1024

_ELEMENT_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.bool_): TensorProto.BOOL,
}


def stored_in(data: BinaryIO, name: str, array: np.ndarray) -> TensorProto:
    """A tensor at the end of an open data file, which lies beside the model."""
    array = np.ascontiguousarray(array)
    data.write(b"\0" * (-data.tell() % _ALIGNMENT))
    offset = data.tell()
    data.write(array.data)
    tensor = TensorProto(name=name, data_type=_ELEMENT_TYPES[array.dtype], dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", Path(data.name).name), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


class Graph:
    """Collects nodes and writes `<directory>/<name>.onnx` with its weights beside it in `<name>.data`.

    Values are plain strings. Weights are written as they arrive, so that the peak memory of an export is one tensor,
    not one model. Use as a context manager; nothing is written to `<name>.onnx` unless the block ends without an error.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.name = Path(directory), name
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0
        self._data = open(self.directory / f"{name}.data", "wb")  # noqa: SIM115 - closed in __exit__

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._data.close()
        if kind is None:
            self._save()

    def input(self, name: str, dtype: Any, shape: Sequence[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, _ELEMENT_TYPES[np.dtype(dtype)], list(shape)))
        return name

    def output(self, value: str, name: str, dtype: Any, shape: Sequence[int | str]) -> None:
        """Declare `value` an output called `name`."""
        if value != name:
            self._nodes.append(helper.make_node("Identity", [value], [name], name=f"out/{name}"))
        self._outputs.append(helper.make_tensor_value_info(name, _ELEMENT_TYPES[np.dtype(dtype)], list(shape)))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a standard operator with one output; returns that output."""
        return self.node(kind, inputs, 1, "", attributes)[0]

    def fused(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add one of ONNX Runtime's own operators with one output; returns that output."""
        return self.node(kind, inputs, 1, _MICROSOFT, attributes)[0]

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: int | Sequence[str],
        domain: str = "",
        attributes: dict[str, Any] | None = None,
    ) -> Sequence[str]:
        """Add any operator; `outputs` is a count or the names, an empty name leaves an optional output out."""
        self._count += 1
        name = f"{kind}_{self._count}"
        names = [f"{name}:{i}" for i in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self._nodes.append(helper.make_node(kind, list(inputs), names, name=name, domain=domain, **(attributes or {})))
        return names

    def branch(self, name: str, build: Callable[[], Sequence[tuple[str, Any]]]) -> onnx.GraphProto:
        """A subgraph, for `If`: the nodes that `build` adds; it returns the subgraph's outputs and their types.

        Values of this graph can be read inside; weights and constants are kept in this graph.
        """
        outer, self._nodes = self._nodes, []
        try:
            outputs = [helper.make_tensor_value_info(v, _ELEMENT_TYPES[np.dtype(t)], None) for v, t in build()]
            return helper.make_graph(self._nodes, name, [], outputs)
        finally:
            self._nodes = outer

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """A small inline tensor; equal ones are stored once."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = name = f"constant_{len(self._constants)}"
            self._initializers.append(onnx.numpy_helper.from_array(array, name))
        return self._constants[key]

    def weight(self, name: str, array: np.ndarray) -> str:
        """A tensor in the data file (or inline if it is tiny)."""
        array = np.ascontiguousarray(array)
        if array.nbytes <= _INLINE_BYTES:
            self._initializers.append(onnx.numpy_helper.from_array(array, name))
            return name
        self._initializers.append(stored_in(self._data, name, array))
        return name

    def _save(self) -> None:
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="accelerator-tts")
        (self.directory / f"{self.name}.onnx").write_bytes(model.SerializeToString())
