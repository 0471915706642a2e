"""Those who listen, by packages that stand in for theirs, and DNSMOS's windows, by a model that answers with a mean."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from accelerator.benchmark import hearing
from accelerator.benchmark.hearing import SAMPLE_RATE, Opinion, Similarity, at_16_khz, recognisers
from accelerator.errors import EngineError, InvalidOption


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes packages seem installed, and all others that listen seem not to be."""
    import importlib.util

    ears, find = (
        {"moonshine_cpp", "faster_whisper", "pocketsphinx", "speechmos", "resemblyzer"},
        importlib.util.find_spec,
    )
    there: dict[str, Any] = {}

    def found(name: str, *rest: Any) -> Any:
        return there.get(name) if name in ears else find(name, *rest)

    def install(name: str, **contents: Any) -> None:
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        there[name] = types.SimpleNamespace(submodule_search_locations=[str(contents.get("folder", ""))])

    monkeypatch.setattr(importlib.util, "find_spec", found)
    return install


class WhisperModel:
    def __init__(self, folder: str, **settings: Any) -> None:
        self.settings = settings

    def transcribe(self, audio: np.ndarray, language: str) -> Any:
        assert self.settings["local_files_only"], "nothing is downloaded"
        return iter([types.SimpleNamespace(text=" Hello"), types.SimpleNamespace(text=f" {language}.")]), None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.bin").touch()
    return tmp_path


def test_moonshine_is_the_best_and_hears_a_clip_between_silence(
    installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[np.ndarray] = []
    monkeypatch.setattr(hearing, "Moonshine", lambda rate: lambda audio: given.append(audio) or f"at {rate}")
    installed("moonshine_cpp")
    installed("pocketsphinx")
    (best,) = recognisers()
    assert best.name == "moonshine"
    assert best.hear(np.full(SAMPLE_RATE, 0.25, np.float32)) == "at 16000"
    assert len(given[0]) == SAMPLE_RATE * 3 // 2
    assert np.flatnonzero(given[0])[[0, -1]].tolist() == [SAMPLE_RATE // 4, SAMPLE_RATE * 5 // 4 - 1]


def test_whisper_listens_as_well_or_alone(installed: Any, folder: Path) -> None:
    installed("faster_whisper", WhisperModel=WhisperModel)
    (alone,) = recognisers(whisper=folder)
    assert (alone.name, alone.hear(np.zeros(100, np.float32))) == ("whisper", "Hello en.")
    installed("moonshine_cpp")
    assert [each.name for each in recognisers(whisper=folder)] == ["moonshine", "whisper"]
    (german,) = recognisers(whisper=folder, language="de")
    assert german.hear(np.zeros(100, np.float32)) == "Hello de."
    assert [each.name for each in recognisers("whisper", folder)] == ["whisper"]


def test_pocketsphinx_only_where_there_is_nothing_better(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerator.reference import measures

    monkeypatch.setattr(measures, "Recogniser", lambda: lambda audio: "words")
    installed("pocketsphinx")
    assert [each.name for each in recognisers()] == ["pocketsphinx"]
    installed("moonshine_cpp")
    assert [each.name for each in recognisers("pocketsphinx")] == ["pocketsphinx"]


def test_who_is_missing_is_said_with_the_command_that_installs_it(installed: Any, folder: Path) -> None:
    with pytest.raises(EngineError, match=r"there is no recogniser: pip install .*\[hearing\]"):
        recognisers()
    with pytest.raises(EngineError, match=r"there is no moonshine: pip install .*\[hearing\]"):
        recognisers("moonshine")
    with pytest.raises(EngineError, match="pip install faster-whisper"):
        recognisers(whisper=folder)
    with pytest.raises(EngineError, match=r"there is no speechmos.*\[hearing\]"):
        Opinion()
    assert hearing.similarity() is None


def test_wishes_that_cannot_be_met(installed: Any, folder: Path, tmp_path: Path) -> None:
    installed("faster_whisper", WhisperModel=WhisperModel)
    for given, says in [
        ({"name": "ear"}, "there are moonshine, whisper, pocketsphinx"),
        ({"name": "whisper"}, "give --whisper FOLDER"),
        ({"language": "de"}, "only Whisper understands 'de'"),
        ({"name": "moonshine", "language": "de", "whisper": folder}, "only Whisper understands 'de'"),
        ({"whisper": tmp_path / "elsewhere"}, "has no model.bin"),
    ]:
        with pytest.raises(InvalidOption, match=says):
            recognisers(**given)


def mean_model(path: Path) -> None:
    """[1, n] -> [1, 3]: zero, zero, and the mean of the samples."""
    weights = numpy_helper.from_array(np.array([[0.0, 0.0, 1.0]], np.float32), "weights")
    nodes = [
        helper.make_node("ReduceMean", ["input_1"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("MatMul", ["mean", "weights"], ["answer"]),
    ]
    values = [
        helper.make_tensor_value_info("input_1", TensorProto.FLOAT, [1, "n"]),
        helper.make_tensor_value_info("answer", TensorProto.FLOAT, [1, 3]),
    ]
    graph = helper.make_graph(nodes, "means", values[:1], values[1:], [weights])
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def test_an_opinion_is_a_mean_over_windows_of_nine_seconds(installed: Any, tmp_path: Path) -> None:
    mean_model(tmp_path / "dnsmos_models" / "sig_bak_ovr.onnx")
    installed("speechmos", folder=tmp_path)
    opinion = Opinion()

    def published(raw: float) -> float:
        return -0.06766283 * raw**2 + 1.11546468 * raw + 0.04602535

    assert opinion(np.full(1000, 0.5, np.float32)) == pytest.approx(published(0.5), abs=1e-5)
    long = np.full(12 * SAMPLE_RATE, 0.5, np.float32)
    long[round(11.02 * SAMPLE_RATE) :] = 1.0  # behind the windows of 9.01 s that fit: from 0, 1 and 2 s on
    assert opinion(long) == pytest.approx(published(0.5), abs=1e-4)


def test_similarity_is_the_cosine() -> None:
    alike = Similarity(lambda audio: audio)
    one, two = np.array([3.0, 4.0]), np.array([4.0, -3.0])
    assert alike(one, 2 * one) == pytest.approx(1.0)
    assert alike(one, two) == pytest.approx(0.0)
    assert alike(np.zeros(2), one) == 0.0


def test_what_is_heard_has_16_khz_and_is_never_empty() -> None:
    assert len(at_16_khz(np.zeros(22_050, np.float32), 22_050)) == SAMPLE_RATE
    assert len(at_16_khz(np.zeros(0, np.float32), 22_050)) == SAMPLE_RATE // 10
