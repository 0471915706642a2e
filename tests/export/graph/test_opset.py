"""Graphs in older operator sets: equal answers where their operators allow it, the lowest set that works otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from accelerator.errors import ExportError
from accelerator.export.graph.opset import lower
from accelerator.runtime.onnx import Session

X = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)


def written(path: Path, nodes: list[onnx.NodeProto], outputs: list[str], **constants: np.ndarray) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def opset(path: Path) -> int:
    return int(onnx.load(path).opset_import[0].version)


def test_reductions_and_splits_are_rewritten(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "last"], ["mean"], keepdims=1),
        helper.make_node("ReduceL2", ["x", "two"], ["norm"], keepdims=0, noop_with_empty_axes=0),
        helper.make_node("ReduceMax", ["x"], ["max"], keepdims=0),
        helper.make_node("ReduceSum", ["x", "last"], ["sum"], keepdims=0),
        helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
    ]
    names = ["mean", "norm", "max", "sum", "a", "b"]
    path = written(tmp_path / "m.onnx", nodes, names, last=np.array([-1]), two=np.array([0, 2]))
    expected = Session(path).run({"x": X})
    lower(path, 13)
    assert opset(path) == 13
    for before, after in zip(expected, Session(path).run({"x": X}), strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_allclose(expected[1], np.sqrt(np.square(X).sum((0, 2))), rtol=1e-5)


def test_the_lowest_set_that_works_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale"], ["y"], axis=-1),
        helper.make_node("ReduceMean", ["y", "last"], ["mean"]),
    ]
    path = written(tmp_path / "m.onnx", nodes, ["mean"], scale=np.ones(6, np.float32), last=np.array([-1]))
    before = path.read_bytes()
    with pytest.raises(ExportError, match="m cannot be written in operator set 16: the lowest that works is 17"):
        lower(path, 16)
    assert path.read_bytes() == before
    lower(path, 17)
    assert opset(path) == 17


def test_axes_that_are_computed_stay(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["one"], ["axes"], to=TensorProto.INT64),
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"]),
    ]
    path = written(tmp_path / "m.onnx", nodes, ["mean"], one=np.array([1], np.int32))
    with pytest.raises(ExportError, match="the lowest that works is 18"):
        lower(path, 17)


def test_a_set_that_the_exporter_did_not_reach_is_no_silent_one(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], ["y"])
    with pytest.raises(ExportError, match="stays at 18"):
        lower(path, 21)


def test_weights_stay_beside_the_graph(tmp_path: Path) -> None:
    """Also those that say along which axes something is reduced."""
    weights = np.arange(6000, dtype=np.float32).reshape(6, 1000)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("ReduceMean", ["h", "last"], ["y"])]
    path = written(tmp_path / "m.onnx", nodes, ["y"], w=weights, last=np.array([-1]))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    data = (tmp_path / "m.onnx.data").read_bytes()
    lower(path, 13)
    assert opset(path) == 13
    assert path.stat().st_size < 1000
    assert (tmp_path / "m.onnx.data").read_bytes() == data
    np.testing.assert_allclose(Session(path).run({"x": X})[0], (X @ weights).mean(-1, keepdims=True), rtol=1e-4)
