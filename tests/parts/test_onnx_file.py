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
from accelerator.parts import onnx_file as module
from accelerator.parts.onnx_file import deferred, digest, model_digest, onnx_file, run_session
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


@pytest.mark.parametrize("differs", [False, True])
def test_a_proof_says_whether_two_threads_answer_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, differs: bool
) -> None:
    def run(name: str, paths: object, options: RunOptions) -> object:
        off = np.float32(1e-6 if differs and options.threads == 2 else 0)
        return lambda feed: [2 * feed["x"] + off, 2 * feed["x"] - 1]

    monkeypatch.setattr(module, "run_session", run)
    component = onnx_file("graph", doubling, lambda: digest(doubling()), {}, examples=examples, alike=True)
    assert export_component(component, "fp32", ContentCache(tmp_path)).proof["alike"] is not differs


def test_a_file_that_an_engine_runs_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("accelerator.cache.findings.time.time", lambda: 1e10)  # the file is as old as that
    file, read = tmp_path / "m.onnx", list[object]()
    file.write_bytes(doubling())
    monkeypatch.setattr(module, "model_of", lambda session: read.append(session) or model_of(session))
    assert {model_digest(onnxruntime.InferenceSession(str(file))) for _ in range(3)} == {digest(doubling())}
    assert len(read) == 1
    assert [[value.name for value in deferred(file).get_outputs()] for _ in range(2)] == [["y", "less"]] * 2
    assert len(read) == 2
    file.write_bytes(doubling(3.0))
    assert model_digest(deferred(file)) == digest(doubling(3.0))


def test_content_that_an_engine_runs_has_no_file_to_remember_it_by() -> None:
    assert model_digest(onnxruntime.InferenceSession(doubling())) == digest(doubling())
