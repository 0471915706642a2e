"""Texts and recordings as the engine reads them, and as its files do without it; and what is remembered of those."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator.audio.reference import Reference
from accelerator.cache import ContentCache
from accelerator.engines.spark_tts import SparkAdapter, known
from accelerator.engines.spark_tts.examples import noise
from accelerator.engines.spark_tts.folder import tokenizer
from accelerator.engines.spark_tts.known import Facts, Memory, code_of
from accelerator.engines.spark_tts.reading import FromFiles, InEngine, alike
from accelerator.engines.spark_tts.stages import Spoken
from accelerator.errors import EngineError
from tests.engines.spark_tts.double import RATE

CLIP = 6 * RATE


@pytest.fixture
def place(convertible: Any, tmp_path: Path) -> Path:
    """A folder with the double's tokenizer."""
    convertible.tokenizer.save_pretrained(tmp_path / "LLM")
    return tmp_path


@pytest.fixture
def facts(convertible: Any) -> Facts:
    return SparkAdapter(convertible)._facts


def test_files_say_what_the_engine_says(convertible: Any, place: Path) -> None:
    own, files = InEngine(lambda: convertible), FromFiles(tokenizer(place), clip=CLIP, level=True)
    assert alike(own, files, 4, RATE)
    voice = Spoken(np.array([1, 2, 3, 0]), np.array([5, 6]), "It says so.")
    np.testing.assert_array_equal(own.prompt("one two", voice), files.prompt("one two", voice))
    audio = noise(0.9, RATE)
    np.testing.assert_allclose(files.values(audio), own.values(audio), atol=1e-5)
    whole, clip = files.heard(Reference(audio.astype(np.float32), RATE, "", ""))
    assert (whole.dtype, clip.dtype, clip.shape) == (np.float64, np.float32, (CLIP,))


@pytest.mark.parametrize("odd", ["clip", "level", "prompt", "values", "tokens"])
def test_what_is_read_otherwise_is_noticed(convertible: Any, place: Path, odd: str) -> None:
    own = InEngine(lambda: convertible)
    files = FromFiles(tokenizer(place), clip=CLIP - (odd == "clip"), level=odd != "level")
    if odd == "prompt":
        files.prompt = lambda text, voice: own.prompt(text.strip(), voice)  # type: ignore[method-assign]
    elif odd == "values":
        files.values = lambda audio: own.values(audio) * 1.001  # type: ignore[method-assign]
    elif odd == "tokens":
        files.tokens = lambda: {**own.tokens(), "<|new|>": 1_000_000}  # type: ignore[method-assign]
    assert not alike(own, files, 4, RATE)


def test_a_file_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"tokenizer\.json is missing"):
        tokenizer(tmp_path)
    (tmp_path / "LLM").mkdir()
    (tmp_path / "LLM" / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match=r"tokenizer\.json cannot be read"):
        tokenizer(tmp_path)


def test_facts_are_remembered_for_these_files_and_this_code(
    facts: Facts, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, code = ContentCache(tmp_path / "cache"), tmp_path / "package"
    code.mkdir()
    (code / "model.py").write_text("one = 1")
    monkeypatch.setattr(known, "_place", lambda package: code if package == "sparktts" else None)
    memory = Memory(cache, tmp_path)
    assert memory.read() is None
    memory.write(facts)
    assert memory.read() == facts
    assert Memory(ContentCache(tmp_path / "cache"), tmp_path).read() == facts, "by another process, too"
    (code / "model.py").write_text("one = 2")
    assert memory.read() is None, "the engine has changed"
    memory.write(facts)
    config = tmp_path / "LLM" / "config.json"
    config.write_text(json.dumps({"vocab_size": 7}))
    assert memory.read() is None, "the checkpoint has changed"
    monkeypatch.setattr(known, "_place", lambda package: None)
    memory.write(facts)
    assert memory.read() is None, "without the engine nothing is remembered"


def test_a_note_of_something_else_is_none(
    facts: Facts, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "_place", lambda package: tmp_path / "LLM")
    cache = ContentCache(tmp_path / "cache")
    memory = Memory(cache, tmp_path)
    memory.write(facts)
    key = memory._key()
    assert key is not None
    cache.write_note(key, known._NOTE, {"spec": 1})
    assert memory.read() is None


def test_the_code_of_an_engine_is_that_of_its_package(convertible: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = code_of(convertible)
    assert len(here) == 64, "of the double, its file"
    monkeypatch.setattr(known, "_place", lambda package: Path(known.__file__).parent if package == "odd" else None)

    class Tokenizer:
        __module__ = "odd.models.audio_tokenizer"

    odd = code_of(types.SimpleNamespace(audio_tokenizer=Tokenizer()))
    assert len(odd) == 64
    assert odd != here
