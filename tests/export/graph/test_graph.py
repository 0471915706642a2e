from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from accelerator.export.graph.graph import Graph
from accelerator.export.graph.specs import OPSET
from accelerator.runtime.onnx import Session


def test_a_graph_computes_what_it_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    matrix, offset = rng.standard_normal((40, 30)).astype(np.float32), rng.standard_normal(30).astype(np.float32)
    with Graph(tmp_path, "affine") as graph:
        x = graph.input("x", np.float32, ["n", 40])
        y = graph.op("Add", graph.op("MatMul", x, graph.weight("m", matrix)), graph.weight("b", offset))
        half, rest = graph.node("Split", [y], 2, "", {"axis": -1, "num_outputs": 2})
        graph.output(graph.fused("QuickGelu", half, alpha=1.0), "silu", np.float32, ["n", 15])
        graph.output(rest, "rest", np.float32, ["n", 15])
    model = onnx.load(str(tmp_path / "affine.onnx"))
    assert {o.domain: o.version for o in model.opset_import} == {"": OPSET, "com.microsoft": 1}
    x = rng.standard_normal((3, 40)).astype(np.float32)
    session = Session(tmp_path / "affine.onnx")
    silu, rest = session.run({"x": x})
    expected = x @ matrix + offset
    np.testing.assert_allclose(silu, expected[:, :15] / (1 + np.exp(-expected[:, :15])), atol=1e-5)
    np.testing.assert_allclose(rest, expected[:, 15:], atol=1e-5)
    assert session.outputs == ["silu", "rest"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, np.int8, np.int32, np.int64])
def test_weights_lie_aligned_beside_the_graph(tmp_path: Path, dtype: type) -> None:
    arrays = {f"w{i}": np.random.default_rng(i).integers(0, 100, (i + 20, 61)).astype(dtype) for i in range(3)}
    with Graph(tmp_path, "g") as graph:
        for name, array in arrays.items():
            graph.output(graph.weight(name, array), f"out_{name}", dtype, list(array.shape))
    light = onnx.load(str(tmp_path / "g.onnx"), load_external_data=False)
    for tensor in light.graph.initializer:
        external = {e.key: e.value for e in tensor.external_data}
        assert external["location"] == "g.data"
        assert int(external["offset"]) % 4096 == 0
        assert int(external["length"]) == arrays[tensor.name].nbytes
    assert (tmp_path / "g.onnx").stat().st_size < 2000
    for tensor in onnx.load(str(tmp_path / "g.onnx")).graph.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), arrays[tensor.name])


def test_a_transposed_weight_is_stored_as_it_reads(tmp_path: Path) -> None:
    weight = np.arange(40 * 20, dtype=np.float32).reshape(40, 20)
    with Graph(tmp_path, "g") as graph:
        graph.output(graph.weight("w", weight.T), "y", np.float32, [20, 40])
    np.testing.assert_array_equal(Session(tmp_path / "g.onnx").run({})[0], weight.T)


def test_small_tensors_are_inline_and_equal_constants_stored_once(tmp_path: Path) -> None:
    with Graph(tmp_path, "g") as graph:
        assert graph.constant([0, 1]) == graph.constant(np.array([0, 1]))
        different = {graph.constant(1), graph.constant([1]), graph.constant(1, np.int32), graph.constant([0, 1])}
        assert len(different) == 4
        graph.weight("tiny", np.zeros(256, np.float32))
        graph.weight("large", np.zeros(257, np.float32))
        graph.output(graph.constant(7.0, np.float32), "y", np.float32, [])
    graph_ = onnx.load(str(tmp_path / "g.onnx"), load_external_data=False).graph
    external = {t.name for t in graph_.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    assert external == {"large"}


def test_a_graph_that_fails_is_not_written(tmp_path: Path) -> None:
    def build() -> None:
        with Graph(tmp_path, "g") as graph:
            graph.weight("w", np.zeros(1000, np.float32))
            raise MemoryError("the next tensor was too large")

    with pytest.raises(MemoryError):
        build()
    assert not (tmp_path / "g.onnx").exists()


def test_optional_outputs_are_left_out(tmp_path: Path) -> None:
    with Graph(tmp_path, "g") as graph:
        x = graph.input("x", np.float32, [1, 8])
        scale = graph.weight("s", np.ones(8, np.float32))
        graph.node(
            "SkipSimplifiedLayerNormalization", [x, x, scale], ["n", "", "", "sum"], "com.microsoft", {"epsilon": 0.0}
        )
        graph.output("sum", "sum", np.float32, [1, 8])
        graph.output("n", "normed", np.float32, [1, 8])
    x = np.arange(1, 9, dtype=np.float32)[None]
    total, normed = Session(tmp_path / "g.onnx").run({"x": x})
    np.testing.assert_allclose(total, 2 * x)
    np.testing.assert_allclose(normed, 2 * x / np.sqrt(np.square(2 * x).mean()), rtol=1e-5)
