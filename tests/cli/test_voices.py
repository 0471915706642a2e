"""`engines` and `voices`: what there is, and what is missing."""

from __future__ import annotations

import pytest

from tests.cli.commands import TINY, answer, error, run


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
    assert "knows no voices" in run("voices", *TINY).stderr
    assert error("voices", "--engine", "nope", exit_code=2)["type"] == "BadParameter"
