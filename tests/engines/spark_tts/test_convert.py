"""A conversion: its files, their proofs, and that there is a whole one or none."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from accelerator.cache.disk import scratch_name
from accelerator.engines.spark_tts import SparkAdapter, SparkTTSONNX, convert
from accelerator.engines.spark_tts.boundaries import GRAPHS, passage
from accelerator.engines.spark_tts.convert import TRACED, Verdict
from accelerator.engines.spark_tts.folder import VERSION
from accelerator.errors import EngineError, ExportError, InvalidOption
from accelerator.runtime.onnx import Session
from tests.engines.spark_tts.double import HOP, WIDTH

OF_THE_SEED = {
    "encoder",
    "quantizer_tokenize",
    "quantizer_detokenize",
    "speaker_encoder",
    "prenet",
    "postnet",
    "decoder",
}
BESIDE = {"speaker_tokenize", "speaker_detokenize", "wav2vec2"}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the decoder's graph: what a test says of one, it says of all."""
    monkeypatch.setattr(convert, "GRAPHS", GRAPHS[-1:])


def alone(folder: Path) -> bool:
    """Whether nothing but this folder is where it lies: no rest of a conversion."""
    return [each.name for each in folder.parent.iterdir()] == [folder.name]


def test_all_files_are_there_and_equal_pytorch(converted: tuple[Path, list[Verdict]]) -> None:
    folder, verdicts = converted
    assert {each.name for each in verdicts} == OF_THE_SEED | BESIDE | {"LLM/embeddings", "LLM/causal"}
    assert all(verdict.passed for verdict in verdicts)
    assert {path.stem for path in folder.glob("*.onnx")} == OF_THE_SEED | BESIDE
    assert {"tokenizer.json", "causal.onnx", "embeddings.npy"} <= {path.name for path in (folder / "LLM").iterdir()}
    assert alone(folder)
    for verdict in verdicts[:-2]:
        assert TRACED not in verdict.figures["lengths"]
        assert verdict.figures.get("max_error", 0.0) < 1e-5
        assert verdict.figures.get("equal", 1.0) == 1.0
    assert verdicts[-1].figures["mismatches"] == 0


def test_graphs_have_the_engines_boundaries_and_the_operator_set_asked_for(
    converted: tuple[Path, list[Verdict]], convertible: Any
) -> None:
    folder, _ = converted
    values = passage(convertible, 23)
    shapes = {
        "encoder": [(1, WIDTH, 23)],
        "quantizer_tokenize": [(1, 23)],
        "quantizer_detokenize": [(1, 23, WIDTH)],
        "wav2vec2": [(1, 23, WIDTH)],
        "decoder": [(1, 1, 23 * HOP)],
    }
    for graph in GRAPHS:
        path = folder / f"{graph.name}.onnx"
        model = onnx.load(path)
        assert [each.version for each in model.opset_import if each.domain == ""] == [17]
        onnx.checker.check_model(str(path), full_check=True)
        session = Session(path)
        given = [each.numpy() for each in graph.given(values)]
        answers = session.run(dict(zip(session.inputs, given, strict=True)))
        if graph.name in shapes:
            assert [answer.shape for answer in answers] == shapes[graph.name]


def test_static_graphs_take_one_length_and_cannot_speak(few: None, convertible: Any, tmp_path: Path) -> None:
    (decoder, *_) = convert.convert(SparkAdapter(convertible), tmp_path / "onnx", dynamic=False)
    assert decoder.passed
    assert decoder.figures["lengths"] == [TRACED]
    assert Session(tmp_path / "onnx" / "decoder.onnx").inputs["hidden"] == (np.float32, [1, WIDTH, TRACED])
    with pytest.raises(EngineError, match=f"static: they take exactly {TRACED} frames.*--dynamic_axes"):
        SparkTTSONNX(tmp_path)


def test_what_differs_leaves_nothing(
    few: None, convertible: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_TOLERANCE", 1e-12)
    decoder, *others = convert.convert(SparkAdapter(convertible), tmp_path / "onnx")
    assert not decoder.passed
    assert decoder.figures["max_error"] > decoder.figures["bar"]["max_error"]
    assert all(other.passed for other in others)
    assert list(tmp_path.iterdir()) == []


def test_without_verification_nothing_is_compared(
    few: None, convertible: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_TOLERANCE", 1e-12)
    verdicts = convert.convert(SparkAdapter(convertible), tmp_path / "onnx", verify=False)
    assert all(verdict.passed and not verdict.figures for verdict in verdicts)
    assert (tmp_path / "onnx" / "decoder.onnx").is_file()


def test_an_operator_set_that_does_not_work_is_told_with_the_lowest_that_does(
    few: None, convertible: Any, tmp_path: Path
) -> None:
    decoder, *_ = convert.convert(SparkAdapter(convertible), tmp_path / "onnx", opset=9)
    assert "decoder cannot be written in operator set 9: the lowest that works is 1" in decoder.error
    lowest = int(decoder.error.rpartition(" ")[2])
    assert convert.convert(SparkAdapter(convertible), tmp_path / "onnx", opset=lowest)[0].passed
    (used,) = onnx.load(tmp_path / "onnx" / "decoder.onnx").opset_import
    assert used.version == lowest


def test_interrupted_it_leaves_nothing(
    few: None, convertible: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert._Conversion, "rest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert.convert(SparkAdapter(convertible), tmp_path / "onnx", verify=False)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_conversion_is_replaced_and_leftovers_of_killed_ones_go(
    few: None, convertible: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "onnx"
    folder.mkdir()
    (folder / "spark-tts.json").write_text("{}")
    (folder / "old.onnx").write_text("")
    killed = tmp_path / scratch_name("onnx.partial-").replace(f"-{os.getpid()}-", "-99999999-")
    killed.mkdir()
    convert.convert(SparkAdapter(convertible), folder, verify=False)
    assert not (folder / "old.onnx").exists()
    assert json.loads((folder / "spark-tts.json").read_text())["version"] == VERSION
    assert alone(folder)


def test_files_of_others_are_not_replaced(convertible: Any, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "mine.onnx").write_text("mine")
    with pytest.raises(InvalidOption, match="other files in it"):
        convert.convert(SparkAdapter(convertible), tmp_path / "onnx")
    assert (tmp_path / "onnx" / "mine.onnx").read_text() == "mine"


def test_a_tokenizer_that_reads_otherwise_is_refused(
    few: None, convertible: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert.examples, "PROOF_TEXT", "another text")
    monkeypatch.setattr(convert.prompts, "ids", lambda engine, prompt: np.array([1, 2, 3]))
    with pytest.raises(ExportError, match="tokenizer"):
        convert._check_tokenizer(convertible, tmp_path / "tokenizer.json")


def test_a_quantized_language_model_speaks_from_the_folder(
    few: None, convertible: Any, converted: tuple[Path, list[Verdict]], recording: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "onnx"
    *_, causal = convert.convert(SparkAdapter(convertible), folder, precision="int8")
    assert causal.passed
    assert causal.figures["kl"] < 0.02
    for graph in GRAPHS[:-1]:
        for file in converted[0].glob(f"{graph.name}.onnx*"):
            shutil.copy(file, folder)
    quantized, exact = (SparkTTSONNX(place, threads=1, probe=False) for place in (folder, converted[0]))
    audio, info = quantized.inference("is this one said", prompt_speech_path=recording, seed=1)
    assert info["tokens"] > 5
    assert len(audio) == HOP * info["tokens"]
    size = (folder / "LLM" / "causal.data").stat().st_size
    assert size < 0.7 * (exact.folder / "LLM" / "causal.data").stat().st_size  # the rotary table stays
