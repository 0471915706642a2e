"""The voice in the package: it is what it is said to be, and what it says is understood."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from accelerator.benchmark.quality import held_out
from accelerator.reference import ReferenceEngine, bundled_voice, load
from accelerator.reference.measures import Recogniser, Speakers, errors, words

SENTENCES = 4  # of each speaker


@pytest.fixture(scope="module")
def path() -> Path:
    found = bundled_voice()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def engine(path: Path) -> ReferenceEngine:
    return load(path=path)


@pytest.fixture(scope="module")
def spoken(engine: ReferenceEngine) -> dict[tuple[str, str], np.ndarray]:
    """Held-out sentences by speaker and text."""
    short = [text for text in held_out() if len(text) <= 50]
    said = {}
    for index, speaker in enumerate(engine.speakers):
        for text in short[index * SENTENCES :][:SENTENCES]:
            said[speaker, text] = engine.synthesize(text, speaker=speaker, seed=0)[0]
    return said


def test_it_is_small_and_comes_with_its_makers_conditions(path: Path, engine: ReferenceEngine) -> None:
    assert path.stat().st_size <= 16_000_000
    assert engine.config.name == "small"
    assert engine.sample_rate == 16_000
    assert engine.speakers == ("slt", "rms", "awb")
    licence = files("accelerator.reference").joinpath("voices", "LICENSE.txt").read_text(encoding="utf-8")
    for needed in ("Carnegie Mellon", "Princeton", "small.safetensors", *(f"cmu_us_{s}" for s in engine.speakers)):
        assert needed in licence


def test_each_sentence_ends_by_itself_and_takes_as_long_as_its_words(
    engine: ReferenceEngine, spoken: dict[tuple[str, str], np.ndarray]
) -> None:
    for (_, text), audio in spoken.items():
        seconds = len(audio) / engine.sample_rate
        assert 0.03 < seconds / len(text) < 0.16, text
        assert 0.1 < np.abs(audio).max() <= 1


def test_most_words_are_understood(spoken: dict[tuple[str, str], np.ndarray]) -> None:
    pytest.importorskip("pocketsphinx")
    hears = Recogniser()
    wrong = sum(errors(words(text), words(hears(audio))) for (_, text), audio in spoken.items())
    assert wrong < 0.6 * sum(len(words(text)) for _, text in spoken)  # noise has more errors than words


def test_speakers_differ(spoken: dict[tuple[str, str], np.ndarray], engine: ReferenceEngine) -> None:
    clips = {s: [audio for (speaker, _), audio in spoken.items() if speaker == s] for s in engine.speakers}
    for speaker, own in clips.items():
        others = {s: audio for s, audio in clips.items() if s != speaker}
        for index, audio in enumerate(own):
            apart = Speakers({**others, speaker: [a for i, a in enumerate(own) if i != index]})
            assert apart.nearest(audio) == speaker


def test_it_speaks_in_the_voice_it_hears(engine: ReferenceEngine, spoken: dict[tuple[str, str], np.ndarray]) -> None:
    clips = {s: [audio for (speaker, _), audio in spoken.items() if speaker == s] for s in engine.speakers}
    known, text = Speakers(clips), "The weather will be fine tomorrow."
    for speaker in engine.speakers:
        said, reference = max(((t, a) for (s, t), a in spoken.items() if s == speaker), key=lambda pair: len(pair[1]))
        audio, _ = engine.synthesize(text, reference, said, seed=0)
        assert known.nearest(audio) == speaker
