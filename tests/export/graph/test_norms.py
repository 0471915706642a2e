"""Instance norms spelled out against the operator, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from accelerator.export.graph.rewrite import rewrite_activations
from accelerator.runtime.onnx import Session

CHANNELS, STYLE = 6, 4
RANDOM = np.random.default_rng(5)
CONSTANTS = {
    "axes": np.array([2], np.int64),
    "eps": np.array(1e-5, np.float32),
    "two": np.array(2.0, np.float32),
    "one": np.array(1.0, np.float32),
    "fc": RANDOM.standard_normal((STYLE, 4 * CHANNELS)).astype(np.float32),
    "alpha": RANDOM.uniform(0.3, 2.0, (1, CHANNELS, 1)).astype(np.float32),
    "conv": RANDOM.standard_normal((2, CHANNELS, 3)).astype(np.float32),
}
CONSTANTS["reciprocal"] = 1 / CONSTANTS["alpha"]


def normed(*, axes: str = "axes", square: str = "Mul") -> list[onnx.NodeProto]:
    """x and a style -> "div", and two pairs of a scale and a bias, as AdaIN has them."""
    node = helper.make_node
    return [
        node("MatMul", ["style", "fc"], ["all"]),
        node("Unsqueeze", ["all", "axes"], ["apart"]),
        node("Split", ["apart"], ["gamma0", "beta0", "gamma1", "beta1"], axis=1, num_outputs=4),
        node("ReduceMean", ["x", axes], ["mean"]),
        node("Sub", ["x", "mean"], ["sub"]),
        node(square, ["sub", "sub"] if square == "Mul" else ["sub", "two"], ["square"]),
        node("ReduceMean", ["square", axes], ["variance"]),
        node("Add", ["variance", "eps"], ["more"]),
        node("Sqrt", ["more"], ["root"]),
        node("Div", ["sub", "root"], ["div"]),
    ]


def affine(index: int, out: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Add", [f"gamma{index}", "one"], [f"scale{index}"]),
        helper.make_node("Mul", [f"scale{index}", "div"], [f"scaled{index}"]),
        helper.make_node("Add", [f"scaled{index}", f"beta{index}"], [out]),
    ]


def snake(x: str, out: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Mul", ["alpha", x], [f"{x}/a"]),
        helper.make_node("Sin", [f"{x}/a"], [f"{x}/sin"]),
        helper.make_node("Pow", [f"{x}/sin", "two"], [f"{x}/pow"]),
        helper.make_node("Mul", ["reciprocal", f"{x}/pow"], [f"{x}/b"]),
        helper.make_node("Add", [x, f"{x}/b"], [out]),
    ]


def save(path: Path, nodes: list[onnx.NodeProto], *outputs: str, batch: Any = 1, **constants: np.ndarray) -> Path:
    shapes = {"x": [batch, CHANNELS, "n"], "style": [batch, STYLE]}
    tensors = {**CONSTANTS, **constants}
    graph = helper.make_graph(
        nodes,
        "norms",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString())
    return path


def check_same(path: Path, expected: dict[str, int]) -> list[str]:
    """Rewrite, and compare; returns the operators that are left."""
    feeds = [
        {
            "x": (3 + 2 * RANDOM.standard_normal((1, CHANNELS, n))).astype(np.float32),
            "style": RANDOM.standard_normal((1, STYLE)).astype(np.float32),
        }
        for n in (200, 7)
    ]
    before = [Session(path).run(feed) for feed in feeds]
    assert rewrite_activations(path) == expected
    for feed, answers in zip(feeds, before, strict=True):
        for answer, made in zip(answers, Session(path).run(feed), strict=True):
            np.testing.assert_allclose(made, answer, rtol=1e-4, atol=2e-5)
    return [node.op_type for node in onnx.load(str(path)).graph.node]


@pytest.mark.parametrize("square", ["Mul", "Pow"])
def test_an_adaptive_norm_is_one_operator(tmp_path: Path, square: str) -> None:
    path = save(tmp_path / "m.onnx", [*normed(square=square), *affine(0, "y")], "y")
    left = check_same(path, {"norm": 1, "snake": 0})
    assert left.count("InstanceNormalization") == 1
    assert {"ReduceMean", "Div", "Sqrt", "Sub"}.isdisjoint(left)


def test_blocks_that_share_their_input_have_a_norm_each(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [*normed(), *affine(0, "y"), *affine(1, "z")], "y", "z")
    left = check_same(path, {"norm": 2, "snake": 0})
    assert left.count("InstanceNormalization") == 2
    assert "ReduceMean" not in left


def test_what_somebody_else_reads_stays(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [*normed(), *affine(0, "y")], "y", "div")
    left = check_same(path, {"norm": 1, "snake": 0})
    assert (left.count("InstanceNormalization"), left.count("Div")) == (1, 1)


def test_a_snake_behind_a_norm_has_its_factor_in_it_and_leaves_weights_alone(tmp_path: Path) -> None:
    convolution = helper.make_node("Conv", ["bent", "conv"], ["y"])
    nodes = [*normed(), *affine(0, "normal"), *snake("normal", "bent"), convolution]
    path = save(tmp_path / "m.onnx", nodes, "y")
    left = check_same(path, {"norm": 1, "snake": 1})
    assert "Pow" not in left
    assert left.count("Mul") == 4  # of scale and bias, which are small; the square; and 1 / alpha
    kept = {each.name: each for each in onnx.load(str(path)).graph.initializer}["conv"]
    np.testing.assert_array_equal(numpy_helper.to_array(kept), CONSTANTS["conv"])


def test_a_norm_that_several_snakes_read_keeps_its_size(tmp_path: Path) -> None:
    nodes = [*normed(), *affine(0, "normal"), *snake("normal", "y"), helper.make_node("Tanh", ["normal"], ["z"])]
    assert check_same(save(tmp_path / "m.onnx", nodes, "y", "z"), {"norm": 1, "snake": 1}).count("Mul") == 3


@pytest.mark.parametrize(
    ("given", "constants"),
    [
        ({"axes": "other"}, {"other": np.array([1], np.int64)}),  # a layer norm over channels
        ({}, {"eps": np.full((1, CHANNELS, 1), 1e-5, np.float32)}),  # as many epsilons as channels
        ({"square": "Pow"}, {"two": np.array(4.0, np.float32)}),
    ],
)
def test_other_norms_are_left_alone(tmp_path: Path, given: dict[str, str], constants: dict[str, np.ndarray]) -> None:
    path = save(tmp_path / "m.onnx", [*normed(**given), *affine(0, "y")], "y", **constants)
    assert "InstanceNormalization" not in check_same(path, {"norm": 0, "snake": 0})


def test_a_scale_of_several_rows_is_left_alone(tmp_path: Path) -> None:
    """The operator takes one value for each channel, whatever the batch."""
    path = save(tmp_path / "m.onnx", [*normed(), *affine(0, "y")], "y", batch="batch")
    assert "Div" in check_same(path, {"norm": 0, "snake": 0})
