"""A model on disk that is changed in place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from accelerator.export.graph.saved import SavedModel
from accelerator.runtime.onnx import Session


def test_a_later_rewrite_keeps_the_constants_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"], name="end")], "m", ends[:1], ends[1:])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString())
    for value in (2.0, 5.0):  # y = 5 * (2 * x)
        model = SavedModel(path)
        (last,) = (node for node in model.graph.node if node.name == "end")
        constant, before = model.constant(np.array(value, np.float32)), f"times {value}"
        model.replace(
            [last],
            [
                helper.make_node("Mul", [last.input[0], constant], [before], name=before),
                helper.make_node("Identity", [before], ["y"], name="end"),
            ],
        )
        model.save()
    (answer,) = Session(path).run({"x": np.array([1.0, 3.0], np.float32)})
    assert answer.tolist() == [10.0, 30.0]


def test_what_nobody_reads_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    nodes = [
        helper.make_node("Tanh", ["x"], ["y"]),
        helper.make_node("Sin", ["x"], ["a"]),
        helper.make_node("Cos", ["a"], ["b"]),
    ]
    path.write_bytes(helper.make_model(helper.make_graph(nodes, "m", ends[:1], ends[1:])).SerializeToString())
    model = SavedModel(path)
    model.prune()
    assert [node.op_type for node in model.graph.node] == ["Tanh"]
    assert "a" not in model.producer
