"""Sessions that engines made for themselves, and what stands for one until it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from accelerator.runtime import borrowed
from accelerator.runtime.borrowed import Deferred, describe, model_file, settings_of

SPINNING = "session.intra_op.allow_spinning"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negative", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"kokoro_config": "{}"})
    onnx.save(model, str(tmp_path / "model.onnx"))
    return tmp_path / "model.onnx"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found, own = list[Any](), onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: found.append(a) or own(*a, **k))
    return found


def test_it_answers_as_the_session_of_its_file_would_without_being_opened(file: Path, opened: list[Any]) -> None:
    described, own = describe(file.read_bytes()), onnxruntime.InferenceSession(str(file))
    opened.clear()
    session = Deferred(file, described)
    for mine, theirs in ((session.get_inputs(), own.get_inputs()), (session.get_outputs(), own.get_outputs())):
        assert [(v.name, v.type, v.shape) for v in mine] == [(v.name, v.type, v.shape) for v in theirs]
    assert session.get_modelmeta().custom_metadata_map == own.get_modelmeta().custom_metadata_map != {}
    assert session.get_providers() == own.get_providers()
    assert not opened
    (answer,) = session.run(None, {"x": np.ones((1, 2), np.float32)})
    assert (answer.tolist(), len(opened)) == ([[-1.0, -1.0]], 1)


def test_without_a_description_it_asks_the_session(file: Path, opened: list[Any]) -> None:
    session = Deferred(file)
    assert session.get_inputs()[0].name == "x"
    assert session.get_outputs()[0].name == "y"
    assert session.get_modelmeta().custom_metadata_map == {"kokoro_config": "{}"}
    assert len(opened) == 1


def test_threads_do_not_spin_unless_the_engine_said_so(file: Path) -> None:
    assert settings_of(onnxruntime.InferenceSession(str(file))).get_session_config_entry(SPINNING) == "0"
    assert settings_of(Deferred(file)).get_session_config_entry(SPINNING) == "0"
    chosen = onnxruntime.SessionOptions()
    chosen.add_session_config_entry(SPINNING, "1")
    assert settings_of(onnxruntime.InferenceSession(str(file), chosen)).get_session_config_entry(SPINNING) == "1"


def test_a_model_has_a_file_only_if_it_was_opened_from_one(file: Path) -> None:
    assert model_file(onnxruntime.InferenceSession(str(file))) == file
    assert model_file(onnxruntime.InferenceSession(file.read_bytes())) is None
    assert model_file(Deferred(file)) == file
    assert model_file(object()) is None
    assert borrowed.model_of(Deferred(file)) == file.read_bytes()
