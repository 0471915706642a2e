"""`engines`, `voices` and `options`: what there is, and what is missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cli.commands import TINY, answer, error, run
from tests.skeletons import Flow, Graph, Tokens


def test_engines():
    found = {engine["name"]: engine for engine in answer("engines")["engines"]}
    assert set(found) >= {"reference", "fish-speech", "vits"}
    assert found["reference"]["available"]
    assert found["vits"]["checkpoints"]
    assert found["kokoro"]["type"] == "kokoro_onnx.Kokoro"
    assert found["kitten"]["checkpoints"]
    text = run("engines").stdout
    assert "--engine reference" in text
    assert "--engine piper --checkpoint FILE.onnx" in text
    assert "--engine kitten --checkpoint DIR" in text


def test_what_an_engine_lacks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("accelerator.cli.voices._found", lambda module: module != "transformers")
    found = {engine["name"]: engine for engine in answer("engines")["engines"]}
    assert found["vits"]["missing"] == "transformers"
    assert "pip install transformers" in run("engines").stdout


def test_voices():
    assert answer("voices")["voices"] == ["rms", "slt", "awb"]  # its own choice first
    assert run("voices").stdout.split() == ["rms", "slt", "awb"]
    assert "knows no voices by name here: --reference takes a recording" in run("voices", *TINY).stderr
    assert error("voices", "--engine", "nope", exit_code=2)["type"] == "BadParameter"


def test_an_engine_that_imitates_nobody_is_given_no_recording(checkpoint: Callable[..., list[str]]):
    said = run("voices", *checkpoint(Flow)).stderr
    assert said == "an-engine knows no voices by name here: it speaks in the one it has.\n"


def test_options(checkpoint: Callable[..., list[str]]):
    found = answer("options", *checkpoint(Graph))
    speed = {"kind": "float", "help": "of speech", "low": 0.5, "high": 2.0, "choices": [], "default": 1.0}
    assert found == {"engine": "an-engine", "options": {"speed": speed}}
    shown = run("options", *checkpoint(Tokens)).stdout
    rows = {line.split("  ")[0].strip(): " ".join(line.split()) for line in shown.splitlines()}
    assert rows["gender"] == "gender female or male the engine's whose voice"
    assert rows["temperature"] == "temperature 0 to 2 the engine's softmax temperature, 0 is greedy"
    assert rows["top_k"] == "top_k a whole number from 1 the engine's candidates kept"
    assert "no options of its own" in run("options", *checkpoint(Flow)).stderr
