"""An engine whose models are files of their own, named on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.cli.commands import answer, error
from tests.engines.mockingbird.checkpoints import checkout, checkpoints


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The options that name a checkout of MockingBird's double, and its models."""
    folder = tmp_path_factory.mktemp("named")
    root = checkout(folder / "MockingBird", "new")
    files = checkpoints(root, folder)
    models = [("encoder", "encoder"), ("synthesizer", "synthesizer"), ("vocoder", "hifigan")]
    return ["--checkpoint", root, *(word for name, file in models for word in (f"--{name}", files[file]))]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    noise = 0.1 * np.random.default_rng(0).standard_normal(48_000)
    soundfile.write(tmp_path / "voice.wav", noise, 16_000)
    return tmp_path / "voice.wav"


def test_models_are_named_one_by_one(named: list[object], recording: Path, tmp_path: Path) -> None:
    exported = answer("export", "--engine", "mockingbird", *named, "--precision", "fp32", "--threads", 1)
    assert set(exported["parts"]) == {"encoder", "text", "loop", "postnet", "vocoder"}
    words = ["synth", "hello there", "--engine", "mockingbird", *named, "--reference", recording, "--seed", 1]
    asked = ["--option", "steps=40", "--option", "style_idx=3", "--threads", 1, "--precision", "fp32"]
    found = answer(*words, *asked, "-o", tmp_path / "out.wav")
    assert found["metrics"]["frames"] == 40
    assert found["metrics"]["fallback"] == []
    assert (found["samples"], found["sample_rate"]) == (800, 16_000)


def test_what_is_not_meant_is_refused(named: list[object], tmp_path: Path) -> None:
    words = ["synth", "hello", "-o", tmp_path / "out.wav"]
    found = error(*words, "--engine", "vits", "--checkpoint", tmp_path, "--vocoder", tmp_path, exit_code=2)
    assert "vits has no vocoder of its own" in found["message"]
    found = error(*words, "--engine", "mockingbird", exit_code=2)
    assert "mockingbird needs --checkpoint DIR: a checkout, `git clone" in found["message"]
    found = error(*words, "--engine", "mockingbird", *named[:4])
    assert "there is no single synthesizer in" in found["message"]
    found = error(*words, "--engine", "mockingbird", *named[:7], tmp_path / "nowhere.pt")
    assert "the vocoder's checkpoint" in found["message"]
