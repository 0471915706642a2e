"""Models of others: noise as an input and cuts, which change no answer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from accelerator.errors import ExportError
from accelerator.export.graph.surgery import Model, Noise
from accelerator.runtime.onnx import Session


def drawing_model(kind: str = "RandomNormalLike", **attributes: float) -> onnx.ModelProto:
    """y = tanh((x w + noise * scale) * gate + 1), with gate = relu(x) from before the noise."""
    weights = numpy_helper.from_array(np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3), "w")
    like = ["mean"] if kind.endswith("Like") else []
    shape = {} if like else {"shape": [1, 3]}
    nodes = [
        helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.array(1, np.float32))),
        helper.make_node("MatMul", ["x", "w"], ["mean"], name="mean"),
        helper.make_node("Relu", ["x"], ["gate"], name="gate"),
        helper.make_node(kind, like, ["drawn"], name="draw", **attributes, **shape),
        helper.make_node("Mul", ["drawn", "scale"], ["spread"], name="spread"),
        helper.make_node("Add", ["mean", "spread"], ["z"], name="z"),
        helper.make_node("Mul", ["z", "gate"], ["gated"], name="gated"),
        helper.make_node("Add", ["gated", "one"], ["shifted"], name="shifted"),
        helper.make_node("Tanh", ["shifted"], ["y"], name="y"),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
    ]
    graph = helper.make_graph(
        nodes, "drawing", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])], [weights]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: Model, **feed: np.ndarray) -> list[np.ndarray]:
    return Session(bytes(model)).run(feed)


X, SCALE = np.array([[0.5, -1, 2], [1, 1, 1]], np.float32), np.array(0.25, np.float32)
NOISE = np.array([[1, -1, 0.5], [0, 2, -2]], np.float32)
MEAN = X @ np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)


def test_noise_becomes_an_input_that_the_graph_uses_as_what_it_drew() -> None:
    model, noise = Model(drawing_model()).with_noise_as_inputs()
    assert (noise, model.inputs) == ((Noise("noise_0", "mean"),), ("x", "scale", "noise_0"))
    (y,) = run(model, x=X, scale=SCALE, noise_0=NOISE)
    np.testing.assert_allclose(y, np.tanh((MEAN + NOISE * SCALE) * np.maximum(X, 0) + 1), rtol=1e-6)


def test_noise_keeps_the_mean_and_the_scale_it_was_drawn_with() -> None:
    model, _ = Model(drawing_model(mean=2.0, scale=3.0)).with_noise_as_inputs()
    (y,) = run(model, x=X, scale=SCALE, noise_0=NOISE)
    np.testing.assert_allclose(y, np.tanh((MEAN + (3 * NOISE + 2) * SCALE) * np.maximum(X, 0) + 1), rtol=1e-5)


def test_the_model_itself_stays_as_it_was() -> None:
    model = Model(drawing_model())
    before = bytes(model)
    model.with_noise_as_inputs()
    assert bytes(model) == before


def test_both_halves_answer_as_the_whole() -> None:
    model, _ = Model(drawing_model()).with_noise_as_inputs()
    head, tail = model.cut("z", ["mean"])
    assert (head.inputs, head.outputs) == (("x",), ("mean", "gate"))
    assert (tail.inputs, tail.outputs) == (("z", "gate"), ("y",))
    mean, gate = run(head, x=X)
    (y,) = run(tail, z=mean + NOISE * SCALE, gate=gate)
    (whole,) = run(model, x=X, scale=SCALE, noise_0=NOISE)
    np.testing.assert_array_equal(y, whole)


def test_a_tail_that_reads_an_input_of_the_model_is_given_it() -> None:
    model, _ = Model(drawing_model()).with_noise_as_inputs()
    head, tail = model.cut("drawn", [])
    assert (head.outputs, tail.inputs) == (("gate", "mean"), ("drawn", "gate", "mean", "scale"))


def test_any_length_may_follow_a_cut() -> None:
    _, tail = Model(drawing_model()).with_noise_as_inputs()[0].cut("z", ["mean"])
    session = Session(bytes(tail))
    assert [session.run({"z": np.ones((n, 3), np.float32), "gate": np.ones((n, 3), np.float32)})[0].shape
            for n in (1, 5)] == [(1, 3), (5, 3)]  # fmt: skip


def test_values_that_are_constants_can_be_read() -> None:
    model = Model(drawing_model())
    assert (model.array("w").shape, float(model.array("one"))) == ((3, 3), 1.0)
    with pytest.raises(ExportError, match="mean is no constant"):
        model.array("mean")


@pytest.mark.parametrize("kind", ["RandomNormal", "RandomUniformLike"])
def test_other_draws_are_refused(kind: str) -> None:
    with pytest.raises(ExportError, match=f"draw draws random numbers by {kind}"):
        Model(drawing_model(kind)).with_noise_as_inputs()


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ExportError, match="no ONNX model"):
        Model(b"\x00not a model")
