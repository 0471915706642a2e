"""Parts that are ONNX already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from accelerator.cache import ContentCache
from accelerator.errors import ProofFailed, SessionError
from accelerator.export.component import export_component
from accelerator.parts.onnx_file import digest, onnx_file, run_session
from accelerator.runtime.borrowed import model_of, runs_on_cpu
from accelerator.runtime.options import RunOptions


def doubling(factor: float = 2.0) -> bytes:
    """y = factor * x, and the same less one."""
    value = helper.make_tensor("k", TensorProto.FLOAT, [], [factor])
    nodes = [helper.make_node("Mul", ["x", "k"], ["y"]), helper.make_node("Sub", ["y", "one"], ["less"])]
    ends = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y", "less")}
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    graph = helper.make_graph(nodes, "doubling", [ends["x"]], [ends["y"], ends["less"]], [value, one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def examples() -> Iterator[tuple[dict[str, np.ndarray], list[np.ndarray]]]:
    for n in (3, 17):
        x = np.arange(n, dtype=np.float32) / n
        yield {"x": x}, [2 * x, 2 * x - 1]


def test_a_faithful_graph_is_published_and_runs(tmp_path: Path) -> None:
    model = doubling()
    component = onnx_file("graph", lambda: model, lambda: digest(model), {}, examples=examples)
    export = export_component(component, "fp32", ContentCache(tmp_path))
    assert (export.path / "graph.onnx").read_bytes() == model
    assert (export.proof["passed"], export.proof["outputs"]) == (True, 2)
    y, less = run_session("graph", {"graph": export.path}, RunOptions())({"x": np.array([1, 4], np.float32)})
    assert (y.tolist(), less.tolist()) == ([2, 8], [1, 7])


def test_a_graph_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    model = doubling(2.01)
    component = onnx_file("graph", lambda: model, lambda: digest(model), {}, examples=examples)
    with pytest.raises(ProofFailed, match="not faithful"):
        export_component(component, "fp32", ContentCache(tmp_path))


def test_a_graph_that_is_meant_to_answer_otherwise_has_a_bar_in_decibels(tmp_path: Path) -> None:
    """A hundredth too large is 40 dB; 2 x - 1, which is smaller, is further off."""
    model = doubling(2.02)
    made = {
        bar: onnx_file("graph", lambda: model, lambda: digest(model), {"bar": bar}, examples=examples, at_least=bar)
        for bar in (30.0, 41.0)
    }
    proof = export_component(made[30.0], "fp32", ContentCache(tmp_path)).proof
    assert (proof["passed"], proof["bar"], proof["outputs"]) == (True, {"snr_db": 30.0}, 2)
    assert 30.0 < proof["snr_db"] < 40.0
    with pytest.raises(ProofFailed, match="not faithful"):
        export_component(made[41.0], "fp32", ContentCache(tmp_path))


def test_the_model_of_a_session_is_found_whether_it_is_a_file_or_not(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(doubling())
    providers = ["CPUExecutionProvider"]
    from_file = onnxruntime.InferenceSession(str(path), providers=providers)
    from_memory = onnxruntime.InferenceSession(doubling(), providers=providers)
    assert model_of(from_file) == model_of(from_memory) == doubling()
    assert runs_on_cpu(from_file)


def test_a_session_whose_model_is_gone_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(doubling())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    path.unlink()
    with pytest.raises(SessionError, match="cannot be read"):
        model_of(session)
    with pytest.raises(SessionError, match="cannot be told which model object runs"):
        model_of(object())
