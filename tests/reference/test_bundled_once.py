"""`accelerator.load()` and the commands open the voice that comes along from one place."""

from __future__ import annotations

from pathlib import Path

import pytest

import accelerator
from accelerator.benchmark.demo import open_voice
from accelerator.errors import EngineError
from accelerator.reference import load

PLACE = "accelerator.reference.bundled.bundled_voice"


def test_one_place_for_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load("tiny", seed=7).save(tmp_path / "voice.safetensors")
    monkeypatch.setattr(PLACE, lambda: tmp_path / "voice.safetensors")
    voice = open_voice()
    assert (voice.size, voice.trained, voice.note) == ("tiny", True, "the weights come with the package")
    with accelerator.load(cache_dir=tmp_path / "cache") as optimizer:
        assert optimizer.config.name == "tiny"


def test_a_package_without_a_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PLACE, lambda: None)
    assert not open_voice("small").trained
    with pytest.raises(EngineError, match="install it anew"):
        accelerator.load()


def test_a_damaged_voice_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "voice.safetensors").write_bytes(b"nonsense")
    monkeypatch.setattr(PLACE, lambda: tmp_path / "voice.safetensors")
    for opened in (accelerator.load, open_voice):
        with pytest.raises(EngineError, match=r"voice\.safetensors"):
            opened()
