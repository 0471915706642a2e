"""The measure of quality, on a voice that says noise: every figure must be what the stand-ins make it."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from accelerator.benchmark import quality
from accelerator.benchmark.quality import QualityOptions, held_out, run, to_markdown
from accelerator.cli import app
from accelerator.errors import EngineError, InvalidOption
from accelerator.reference import ReferenceEngine, load
from accelerator.reference.measures import words


def say(text: str, speaker: str) -> np.ndarray:
    """Half a second of a tone that is the speaker's, with noise that is the text's."""
    t = np.arange(8000) / 16_000
    noise = np.random.default_rng(len(text)).standard_normal(8000)
    tone = np.sin(2 * np.pi * {"ann": 300, "bob": 2500}[speaker] * t)
    return (0.3 * tone * (1 + 0.3 * np.sin(8 * t)) + 0.01 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def voice(tiny: ReferenceEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny engine, whose exports there are, with names for two speakers."""
    lm = replace(tiny.config.language_model, speakers=("ann", "bob"), speaker_begin=324)
    config = replace(tiny.config, language_model=lm, max_new_tokens=16)
    path = tmp_path_factory.mktemp("voice") / "voice.safetensors"
    ReferenceEngine(config, tiny.language_model, tiny.codec).save(path)
    return path


@pytest.fixture(scope="module")
def result(voice: Path, fast: Any, exports: Path) -> dict[str, Any]:
    options = QualityOptions(voice=voice, precisions=("fp32",), sentences=6, cache_dir=exports)
    return run(options, say=say, recognise=lambda audio: "a b", report=lambda line: None)


def test_every_arm_says_every_sentence_by_name_and_by_reference(result: dict[str, Any]) -> None:
    rows = result["rows"]
    assert [(row["backend"], row["precision"], row["how"]) for row in rows] == [
        ("flite", None, None),
        ("pytorch", "fp32", "name"),
        ("pytorch", "fp32", "reference"),
        ("onnxruntime", "fp32", "name"),
        ("onnxruntime", "fp32", "reference"),
    ]
    assert [len(row["scores"]) for row in rows] == [6] * 5
    assert rows[3]["rejected"] == []
    assert [score["speaker"] for score in rows[1]["scores"]] == ["ann", "bob"] * 3
    assert [score["text"] for score in rows[1]["scores"]] == held_out()[30:36]
    for row in rows[1:]:
        assert row["rtf"] > 0
        assert 0 < row["audio_s"] <= 6 * 16 * 256 / 16_000


def test_the_original_is_the_yardstick(result: dict[str, Any]) -> None:
    flite, voice = result["rows"][:2]
    assert flite["distortion_db"] == (0, 0, 0)
    assert flite["right_speaker"] == (1, 1, 1)
    assert voice["distortion_db"][1] > 3  # noise is nothing like a tone
    said = sum(len(words(text)) for text in held_out()[30:36])
    wrong = sum(s["errors"] for s in flite["scores"])
    assert flite["word_error_rate"][0] == pytest.approx(wrong / said, abs=1e-4)


def test_errors_are_compared_with_pytorchs_sentence_by_sentence(result: dict[str, Any]) -> None:
    rows = result["rows"]
    assert rows[1]["minus_pytorch"] is None
    assert rows[3]["minus_pytorch"] == (0, 0, 0)  # the recogniser always hears the same
    table = to_markdown(result)
    assert "| pytorch fp32 | name |" in table
    assert "0.0 % [0.0, 0.0]" in table


def test_a_sentence_may_be_drawn_several_times(voice: Path, result: dict[str, Any], fast: Any, exports: Path) -> None:
    options = QualityOptions(voice=voice, precisions=("fp32",), sentences=6, how=("name",), cache_dir=exports, draws=2)
    heard = iter(["a b"] * 6 + ["a b", "nothing that was ever said"] * 6 + ["a b"] * 12)  # flite, PyTorch, the export
    drawn = run(options, say=say, recognise=lambda audio: next(heard), report=lambda line: None)
    flite, pytorch, export = drawn["rows"]
    assert (flite["sentences"], pytorch["sentences"]) == (6, 6)
    assert flite["word_error_rate"] == result["rows"][0]["word_error_rate"]
    assert len(flite["scores"]) == 6
    scores = pytorch["scores"]
    assert [score["text"] for score in scores] == [text for text in held_out()[30:36] for _ in range(2)]
    assert [score["heard"] for score in scores] == ["a b", "nothing that was ever said"] * 6
    assert scores[0]["distortion"] != scores[1]["distortion"], "another seed"
    assert scores[0]["distortion"] == result["rows"][1]["scores"][0]["distortion"], "and the first one is the same"
    wrong, said = (sum(score[figure] for score in scores) for figure in ("errors", "words"))
    assert pytorch["word_error_rate"][0] == pytest.approx(wrong / said, abs=1e-4)
    fewer = sum(e["errors"] - p["errors"] for e, p in zip(export["scores"], scores, strict=True)) / said
    assert export["minus_pytorch"][0] == pytest.approx(fewer, abs=1e-4)
    assert "6 held-out sentences, said 2 times by each voice but flite, speakers ann, bob" in to_markdown(drawn)


def test_the_command(voice: Path, fast: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from accelerator.reference import measures

    monkeypatch.setattr(quality, "_flite", say)
    monkeypatch.setattr(measures, "Recogniser", lambda: lambda audio: "a")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())  # pocketsphinx is installed
    args = ["bench", "quality", "--checkpoint", str(voice), "--sentences", "2", "--precision", "fp32"]
    args += ["--recogniser", "pocketsphinx"]
    outputs = ["--json", str(tmp_path / "q.json"), "--markdown", str(tmp_path / "q.md")]
    done = CliRunner().invoke(app, [*args, *outputs])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "q.json").read_text())["sentences"] == 2
    assert (tmp_path / "q.md").read_text().strip() == done.stdout.strip()
    assert "speakers ann, bob, listened to by pocketsphinx; in brackets" in done.stdout
    assert CliRunner().invoke(app, [*args, "--recipe", "hqq-64", "--engine", "fish-speech"]).exit_code == 2
    assert CliRunner().invoke(app, ["bench", "--draws", "2"]).exit_code == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"draws": 0}, InvalidOption, "draws must be at least 1, not 0"),
        ({"sentences": 1000}, InvalidOption, "there are 360 held-out sentences, not 1000"),
        ({"voice": Path("/nowhere")}, EngineError, "cannot read the weights"),
    ],
)
def test_what_cannot_be_measured(voice: Path, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(QualityOptions(**{"voice": voice} | options), say=say, recognise=str, report=lambda line: None)


def test_numbers_that_a_recogniser_writes_in_digits_are_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "recognisers", lambda name, whisper: [("ear", lambda audio: "It's 42, Anna!")])
    name, recognise = quality._recogniser(QualityOptions())
    assert (name, recognise(np.zeros(10))) == ("ear", "it's forty two anna")


def test_options_are_checked() -> None:
    with pytest.raises(InvalidOption, match="sentences"):
        QualityOptions(sentences=0)
    with pytest.raises(InvalidOption, match="not by smell"):
        QualityOptions(how=("smell",))


def test_without_a_voice_or_flite_it_says_so(tmp_path: Path, voice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerator import reference

    monkeypatch.setattr(reference, "bundled_voice", lambda: None)
    with pytest.raises(EngineError, match="no trained voice"):
        run(QualityOptions(), say=say, recognise=str, report=lambda line: None)
    load("tiny").save(tmp_path / "random.safetensors")
    with pytest.raises(EngineError, match="named speakers"):
        run(QualityOptions(voice=tmp_path / "random.safetensors"), say=say, recognise=str, report=lambda line: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="there is no flite"):
        run(QualityOptions(voice=voice), recognise=str, report=lambda line: None)


def test_the_held_out_sentences_are_many_and_different() -> None:
    sentences = held_out()
    assert len(set(sentences)) == len(sentences) == 390
    assert all(len(words(sentence)) >= 4 for sentence in sentences)
