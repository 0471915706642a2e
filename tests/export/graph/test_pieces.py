"""A graph in pieces answers as the whole does, bit for bit, whoever computes what lies between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from accelerator.errors import ExportError
from accelerator.export.graph.pieces import Stretch, write_pieces
from accelerator.export.graph.saved import SavedModel
from accelerator.runtime.onnx import Session


def node(kind: str, inputs: list[str], out: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [out], **attributes)


NODES = [
    node("Constant", [], "three", value=numpy_helper.from_array(np.array(3.0, np.float32))),
    node("Shape", ["x"], "shape"),  # an output, and read behind both stretches
    node("Mul", ["x", "three"], "a"),
    node("Exp", ["a"], "early"),  # of the first piece, read by the last one only
    node("Sin", ["a"], "b"),  # one stretch
    node("Add", ["b", "three"], "c"),
    node("Mul", ["c", "factor"], "d"),
    node("Sin", ["d"], "e"),  # another one
    node("Add", ["e", "early"], "f"),
    node("Expand", ["f", "shape"], "y"),
]
STRETCHES = [Stretch(("a",), "b"), Stretch(("d",), "e")]


def model(path: Path, nodes: list[onnx.NodeProto]) -> SavedModel:
    factor = np.linspace(-1, 1, 64, dtype=np.float32)
    graph = helper.make_graph(
        nodes,
        "whole",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("shape", TensorProto.INT64, None),
        ],
        [numpy_helper.from_array(factor, "factor")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, str(path), save_as_external_data=True, size_threshold=0)
    return SavedModel(path)


def test_pieces_and_what_lies_between_answer_as_the_whole(tmp_path: Path) -> None:
    own = model(tmp_path / "whole.onnx", NODES)
    (folder := tmp_path / "pieces").mkdir()
    files, after = write_pieces(own, STRETCHES, folder)
    assert files == ["piece-0.onnx", "piece-1.onnx", "piece-2.onnx"]
    assert after == [0, 1]
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    expected = Session(own.path).run({"x": x})
    sine = Session(model(tmp_path / "sine.onnx", [node("Sin", ["x"], "y"), node("Shape", ["x"], "shape")]).path)
    values = {"x": x}
    sessions = [Session(folder / file) for file in files]
    for n, session in enumerate(sessions):
        values.update(zip(session.outputs, session.run({name: values[name] for name in session.inputs}), strict=True))
        for stretch, place in zip(STRETCHES, after, strict=True):
            if place == n:
                values[stretch.output] = sine.run({"x": values[stretch.inputs[0]]})[0]
    np.testing.assert_array_equal(values["y"], expected[0])
    np.testing.assert_array_equal(values["shape"], expected[1])
    assert [set(session.inputs) for session in sessions] == [{"x"}, {"b"}, {"e", "early", "shape"}]
    assert [set(session.outputs) for session in sessions] == [{"a", "early", "shape"}, {"d"}, {"y"}]


def test_a_piece_has_its_own_weights_beside_it(tmp_path: Path) -> None:
    own = model(tmp_path / "whole.onnx", NODES)
    (folder := tmp_path / "pieces").mkdir()
    write_pieces(own, STRETCHES, folder)
    assert {file.name for file in folder.iterdir()} == {*(f"piece-{n}.onnx" for n in range(3)), "piece-1.onnx.data"}
    assert (folder / "piece-1.onnx.data").read_bytes() == np.linspace(-1, 1, 64, dtype=np.float32).tobytes()


def test_a_graph_with_branches_is_refused(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [node("Neg", ["x"], "negative")],
        "branch",
        [],
        [helper.make_tensor_value_info("negative", TensorProto.FLOAT, None)],
    )
    condition = node("Constant", [], "yes", value=numpy_helper.from_array(np.array(True)))
    chosen = node("If", ["yes"], "y", then_branch=branch, else_branch=branch)
    own = model(tmp_path / "m.onnx", [condition, chosen, node("Shape", ["x"], "shape")])
    with pytest.raises(ExportError, match="branches or loops"):
        write_pieces(own, [Stretch(("x",), "shape")], tmp_path)
