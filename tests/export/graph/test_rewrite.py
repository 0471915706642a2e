"""Rewritten graphs against the graphs they came from, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from accelerator.export.graph.rewrite import rewrite_convolutions

RNG = np.random.default_rng(7)


def weight(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32) * 0.3, name)


def save(path: Path, nodes: list, initializers: list, channels: int, *, external: bool) -> Path:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", channels, "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(path), save_as_external_data=external, location=f"{path.name}.data", size_threshold=100)
    return path


def run(path: Path, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def check_same(path: Path, channels: int, expected: dict[str, int]) -> list[str]:
    """Rewrite, compare at several lengths and batches; returns the operators that are left."""
    inputs = [RNG.standard_normal((b, channels, n)).astype(np.float32) for b, n in ((1, 7), (2, 12), (1, 1))]
    before = [run(path, x) for x in inputs]
    assert rewrite_convolutions(path) == expected
    for x, y in zip(inputs, before, strict=True):
        after = run(path, x)
        assert after.shape == y.shape
        np.testing.assert_allclose(after, y, rtol=1e-4, atol=2e-5)
    return [node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node]


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "extra", "bias"),
    [
        (16, 8, [0, 0], 0, True),
        (2, 2, [0, 0], 0, True),
        (4, 2, [1, 1], 0, False),
        (5, 3, [1, 2], 0, True),
        (7, 2, [2, 3], 1, True),
        (3, 4, [0, 1], 0, True),
        (10, 5, [3, 2], 0, False),
    ],
)
def test_a_transposed_convolution_becomes_a_convolution(
    tmp_path: Path, kernel: int, stride: int, pads: list[int], extra: int, bias: bool, external: bool
) -> None:
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    node = helper.make_node("ConvTranspose", inputs, ["y"], strides=[stride], pads=pads, output_padding=[extra])
    initializers = [weight("w", 3, 5, kernel)] + ([weight("b", 5)] if bias else [])
    path = save(tmp_path / "m.onnx", [node], initializers, 3, external=external)
    left = check_same(path, 3, {"snake": 0, "transposed": 1})
    assert "ConvTranspose" not in left
    assert left.count("Conv") == 1


@pytest.mark.parametrize("attributes", [{"group": 3}, {"dilations": [2]}, {"strides": [1]}])
def test_other_transposed_convolutions_are_left_alone(tmp_path: Path, attributes: dict) -> None:
    shape = (3, 1, 4) if "group" in attributes else (3, 5, 4)
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], **{"strides": [2], **attributes})
    path = save(tmp_path / "m.onnx", [node], [weight("w", *shape)], 3, external=False)
    content = path.read_bytes()
    assert check_same(path, 3, {"snake": 0, "transposed": 0}) == ["ConvTranspose"]
    assert path.read_bytes() == content


def snake(x: str, y: str, prefix: str, *, divide: bool = True) -> list:
    last = [f"{prefix}_p", "a"] if divide else [f"{prefix}_p", "inverse"]
    return [
        helper.make_node("Mul", ["a", x], [f"{prefix}_m"]),
        helper.make_node("Sin", [f"{prefix}_m"], [f"{prefix}_s"]),
        helper.make_node("Pow", [f"{prefix}_s", "two"], [f"{prefix}_p"]),
        helper.make_node("Div" if divide else "Mul", last, [f"{prefix}_d"]),
        helper.make_node("Add", [x, f"{prefix}_d"], [y]),
    ]


def snake_constants(channels: int, *, negative: bool = False) -> list:
    a = RNG.uniform(0.2, 3.0, (1, channels, 1)).astype(np.float32) * (-1 if negative else 1)
    arrays = {"a": a, "inverse": 1 / a, "two": np.float32(2)}
    return [numpy_helper.from_array(np.asarray(v), k) for k, v in arrays.items()]


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("negative", [True, False])
def test_both_factors_of_a_snake_vanish_between_two_convolutions(
    tmp_path: Path, divide: bool, negative: bool, external: bool
) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], pads=[1, 1]),
        *snake("c", "s", "n", divide=divide),
        helper.make_node("Pad", ["s", "pads"], ["padded"]),
        helper.make_node("Conv", ["padded", "w2", "b2"], ["y"]),
    ]
    pads = numpy_helper.from_array(np.array([0, 0, 2, 0, 0, 0]), "pads")
    tensors = [weight("w1", 4, 3, 3), weight("b1", 4), weight("w2", 6, 4, 3), weight("b2", 6), pads]
    tensors += snake_constants(4, negative=negative)
    path = save(tmp_path / "m.onnx", nodes, tensors, 3, external=external)
    left = check_same(path, 3, {"snake": 1, "transposed": 0})
    assert left.count("Mul") == 1  # the square
    assert not {"Pow", "Div"} & set(left)


def test_a_snake_on_a_shared_input_keeps_its_factors(tmp_path: Path) -> None:
    """A residual connection reads x too, so the convolution before must not be scaled."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], pads=[1, 1]),
        *snake("c", "s", "n"),
        helper.make_node("Add", ["s", "c"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, [weight("w1", 4, 3, 3), *snake_constants(4)], 3, external=True)
    left = check_same(path, 3, {"snake": 1, "transposed": 0})
    assert left.count("Mul") == 3


def test_a_snake_before_a_transposed_convolution_folds_into_it(tmp_path: Path) -> None:
    nodes = [*snake("x", "s", "n"), helper.make_node("ConvTranspose", ["s", "w"], ["y"], strides=[2])]
    path = save(tmp_path / "m.onnx", nodes, [weight("w", 4, 3, 4), *snake_constants(4)], 4, external=True)
    left = check_same(path, 4, {"snake": 1, "transposed": 1})
    assert left.count("Mul") == 2  # a and the square


@pytest.mark.parametrize(
    "change",
    [
        lambda nodes, tensors: (nodes, [*tensors[:2], numpy_helper.from_array(np.float32(3), "two")]),
        lambda nodes, tensors: (
            nodes,
            [tensors[0], numpy_helper.from_array(np.full((1, 4, 1), 2, "f"), "inverse"), tensors[2]],
        ),
    ],
    ids=["cube", "another factor"],
)
def test_what_is_no_snake_is_left_alone(tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    nodes, tensors = change(snake("x", "y", "n", divide=False), snake_constants(4))
    path = save(tmp_path / "m.onnx", nodes, tensors, 4, external=False)
    left = check_same(path, 4, {"snake": 0, "transposed": 0})
    assert "Pow" in left


def test_a_weight_used_twice_is_not_changed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["a1"], strides=[2]),
        helper.make_node("ConvTranspose", ["x", "w"], ["a2"], strides=[2]),
        helper.make_node("Add", ["a1", "a2"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, [weight("w", 3, 5, 4)], 3, external=False)
    assert check_same(path, 3, {"snake": 0, "transposed": 0}).count("ConvTranspose") == 2
