"""Dynamically quantized graphs in float32 again: the weights as stored, and nothing else changed."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from accelerator.errors import ExportError
from accelerator.export.graph.dequantize import compared, dequantize, dequantized, rounds
from accelerator.runtime.onnx import Session
from accelerator.runtime.quantization import Quantizer
from tests.export.convolutions import CHANNELS, TAPS, chain, feed, model

INPUTS, HIDDEN = 6, 4


def kinds(content: bytes) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in onnx.load_from_string(content).graph.node)


def constants(content: bytes) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(content).graph.initializer}


def with_weights(content: bytes, weights: dict[str, np.ndarray]) -> bytes:
    proto = onnx.load_from_string(content)
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return bytes(proto.SerializeToString())


def rounded(content: bytes, tmp_path: Path) -> bytes:
    """As `quantize_dynamic` leaves it."""
    path = tmp_path / "float.onnx"
    path.write_bytes(content)
    nodes = [n.name for n in onnx.load_from_string(content).graph.node if n.op_type in ("Conv", "MatMul")]
    return Quantizer(path, [], "dynamic").quantized(nodes)


def matmuls() -> bytes:
    """y = (x A) B, of which B has a bias added in float32."""
    random = np.random.default_rng(3)
    arrays = {name: random.standard_normal((INPUTS, INPUTS)).astype(np.float32) for name in "AB"}
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    tensors.append(numpy_helper.from_array(np.arange(INPUTS, dtype=np.float32), "bias"))
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["xa"], name="a"),
        helper.make_node("MatMul", ["xa", "B"], ["xab"], name="b"),
        helper.make_node("Add", ["xab", "bias"], ["y"], name="add"),
    ]
    return model(nodes, tensors, {"x": [1, "n", INPUTS]}, {"y": [1, "n", INPUTS]})


def test_convolutions_with_a_bias_are_float_products_of_the_stored_weights(tmp_path: Path) -> None:
    plain = chain(2)
    stored = rounded(plain, tmp_path)
    assert kinds(stored)["ConvInteger"] == 4
    made, integers = dequantized(stored), constants(stored)
    assert kinds(made) == kinds(plain) + collections.Counter(Add=4, Reshape=4)  # of biases, which stayed in float32
    exact = {}
    for name in (f"conv_{index}.w" for index in range(4)):
        values, zero = integers[f"{name}_quantized"].astype(np.int32), int(integers[f"{name}_zero_point"])
        exact[name] = (values - zero).astype(np.float32) * integers[f"{name}_scale"]
    given = feed(7)
    np.testing.assert_array_equal(
        Session(made).run(given)[0], Session(with_weights(plain, exact)).run(given)[0], strict=True
    )


def test_it_is_closer_to_the_original_than_the_rounded_graph(tmp_path: Path) -> None:
    plain = chain(4)
    stored = rounded(plain, tmp_path)
    exact, before, after = (Session(each).run(feed(9))[0] for each in (plain, stored, dequantized(stored)))
    assert np.abs(after - exact).max() < 0.7 * np.abs(before - exact).max()


def test_matrix_products_are_float_products_of_the_stored_weights(tmp_path: Path) -> None:
    plain = matmuls()
    stored = rounded(plain, tmp_path)
    assert kinds(stored)["MatMulInteger"] == 2
    made, integers = dequantized(stored), constants(stored)
    assert kinds(made) == {"MatMul": 2, "Add": 1}
    exact = {
        name: (integers[f"{name}_quantized"].astype(np.int32) - int(integers[f"{name}_zero_point"])).astype(np.float32)
        * integers[f"{name}_scale"]
        for name in "AB"
    }
    given = {"x": np.random.default_rng(0).standard_normal((1, 5, INPUTS)).astype(np.float32)}
    np.testing.assert_array_equal(Session(made).run(given)[0], Session(with_weights(plain, exact)).run(given)[0])


@pytest.mark.parametrize("directions", [1, 2])
def test_cells_are_lstms_of_the_stored_weights(directions: int) -> None:
    random = np.random.default_rng(directions)
    sizes = {"w": (directions, INPUTS, 4 * HIDDEN), "r": (directions, HIDDEN, 4 * HIDDEN)}
    weights = {name: random.integers(-127, 128, shape).astype(np.int8) for name, shape in sizes.items()}
    scales = {f"{name}.s": np.full(directions, 0.01 * (1 + i), np.float32) for i, name in enumerate(sizes)}
    zeros = {f"{name}.z": np.full(directions, 3, np.int8) for name in sizes}
    bias = {"b": (0.1 * random.standard_normal((directions, 8 * HIDDEN))).astype(np.float32)}
    tensors = [numpy_helper.from_array(a, n) for n, a in {**weights, **scales, **zeros, **bias}.items()]
    attributes = {"hidden_size": HIDDEN, "direction": "bidirectional" if directions == 2 else "forward"}
    inputs = ["x", "w", "r", "b", "", "", "", "", "w.s", "w.z", "r.s", "r.z"]
    cell = helper.make_node("DynamicQuantizeLSTM", inputs, ["y"], domain="com.microsoft", name="cell", **attributes)
    ends = {"x": ["n", 1, INPUTS]}, {"y": ["n", directions, 1, HIDDEN]}
    exact = [
        numpy_helper.from_array(
            ((weights[name].astype(np.float32) - 3) * scales[f"{name}.s"][:, None, None]).transpose(0, 2, 1).copy(),
            name,
        )
        for name in sizes
    ]
    plain = helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], name="cell", **attributes)
    given = {"x": random.standard_normal((7, 1, INPUTS)).astype(np.float32)}
    made = dequantized(model([cell], tensors, *ends))
    assert kinds(made) == {"LSTM": 1}
    expected = Session(model([plain], [*exact, *tensors[-1:]], *ends)).run(given)[0]
    np.testing.assert_allclose(Session(made).run(given)[0], expected, rtol=0, atol=1e-6)


def test_a_value_that_others_read_is_left_as_it_is(tmp_path: Path) -> None:
    """An integer sum that is an output, too, must still be one."""
    stored = onnx.load_from_string(rounded(chain(1), tmp_path))
    cast = next(node for node in stored.graph.node if node.op_type == "Cast" and "conv_1.y" in node.input[0])
    stored.graph.node.append(helper.make_node("Identity", [cast.input[0]], ["sums"], name="sums"))
    stored.graph.output.append(helper.make_tensor_value_info("sums", TensorProto.INT32, None))
    before = bytes(stored.SerializeToString())
    made = dequantized(before)
    assert (kinds(before)["ConvInteger"], kinds(made)["ConvInteger"], kinds(made)["Conv"]) == (3, 1, 2)
    assert Session(made).outputs == ["y", "sums"]
    assert Session(made).run(feed(1))[1].dtype == np.int32


def test_only_the_place_named_is_rewritten(tmp_path: Path) -> None:
    stored = rounded(chain(2), tmp_path)
    found = kinds(dequantized(stored, "conv_2"))
    assert (found["ConvInteger"], found["Conv"]) == (3, 1)
    with pytest.raises(ExportError, match="no dynamically quantized products"):
        dequantized(stored, "/decoder")


def test_what_is_not_quantized_is_refused() -> None:
    with pytest.raises(ExportError, match="no dynamically quantized products"):
        dequantized(chain(1))
    with pytest.raises(ExportError, match="no ONNX model"):
        dequantized(b"nothing")


@pytest.mark.parametrize("among", ["", "conv_2"])
def test_each_product_is_compared_with_its_own(tmp_path: Path, among: str) -> None:
    """Of the same rounded values, so that nothing is left but the last bits of sums."""
    compared(rounded(chain(2), tmp_path), tmp_path / "compared.onnx", among)
    session = Session(tmp_path / "compared.onnx")
    assert len(session.outputs) == 2 * (1 if among else 4)
    energies = [each.item() for each in session.run(feed(3))]
    assert max(noise / signal for noise, signal in zip(energies[::2], energies[1::2], strict=True)) < 1e-11


def test_a_file_has_its_weights_beside_it(tmp_path: Path) -> None:
    stored, path = rounded(chain(2), tmp_path), tmp_path / "made.onnx"
    dequantize(stored, path)
    assert (tmp_path / "made.onnx.data").stat().st_size > 2 * CHANNELS * CHANNELS * TAPS * 4
    np.testing.assert_array_equal(Session(path).run(feed(5))[0], Session(dequantized(stored)).run(feed(5))[0])


def test_what_is_rounded_is_found_where_it_is(tmp_path: Path) -> None:
    stored = rounded(chain(1), tmp_path)
    assert [rounds(stored), rounds(stored, "conv_1"), rounds(stored, "/decoder"), rounds(chain(1))] == [
        True, True, False, False
    ]  # fmt: skip
    with pytest.raises(ExportError, match="no ONNX model"):
        rounds(b"nothing")
