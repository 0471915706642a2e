"""The voice in the package: it is what it is said to be, and what it says is understood."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from accelerator.audio.checks import load_reference
from accelerator.benchmark.quality import held_out
from accelerator.engines.reference import ReferenceAdapter
from accelerator.errors import InvalidReference
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


def _without_pauses_noise(audio: np.ndarray) -> np.ndarray:
    """As noise suppression leaves it: zeros wherever nobody speaks."""
    power = np.convolve(audio**2, np.ones(480) / 480, "same")
    return np.where(power < 1e-3 * np.percentile(power, 95), 0, audio).astype(np.float32)


def _in_eight_bits(audio: np.ndarray) -> np.ndarray:
    return np.asarray(np.floor(audio * 128) / 128, np.float32)


@pytest.mark.parametrize(
    "change",
    [lambda audio: 0.05 * audio, lambda audio: 2 * audio, _without_pauses_noise, _in_eight_bits],
    ids=["quiet", "loud", "without noise", "eight bits"],
)
def test_level_and_pauses_do_not_say_who_speaks(
    engine: ReferenceEngine, spoken: dict[tuple[str, str], np.ndarray], change: Callable[[np.ndarray], np.ndarray]
) -> None:
    """slt at a quarter of its level was taken for rms, and so was everybody whose pauses were silent."""
    known = Speakers({s: [audio for (each, _), audio in spoken.items() if each == s] for s in engine.speakers})
    for speaker in engine.speakers:
        said, audio = max(((t, a) for (s, t), a in spoken.items() if s == speaker), key=lambda pair: len(pair[1]))
        heard, _ = engine.synthesize("The weather will be fine tomorrow.", change(audio), said, seed=0)
        assert known.nearest(heard) == speaker


def test_recordings_that_would_speak_as_somebody_else_are_refused(
    engine: ReferenceEngine, spoken: dict[tuple[str, str], np.ndarray]
) -> None:
    cloning = ReferenceAdapter(engine).cloning
    assert cloning is not None
    for audio in spoken.values():
        asked = {"sample_rate": 16_000, "bandwidth": cloning.bandwidth, "contrast": cloning.contrast}
        load_reference((audio, 16_000), **asked)
        narrow = soxr.resample(audio, 16_000, 8_000)
        for subtype in ("PCM_16", "PCM_U8", "ULAW", "ALAW", "GSM610", "IMA_ADPCM"):
            soundfile.write(file := io.BytesIO(), narrow, 8_000, subtype=subtype, format="WAV")
            with pytest.raises(InvalidReference, match=r"up to [34].* kHz only|noisy"):
                load_reference(file.getvalue(), **asked)
        with pytest.raises(InvalidReference, match=r"up to [34].* kHz only"):  # whatever its header says
            load_reference((soxr.resample(narrow, 8_000, 48_000), 48_000), **asked)
        noise = np.random.default_rng(0).standard_normal(len(audio)) * 10 ** (-10 / 20) * audio.std()
        with pytest.raises(InvalidReference, match="noisy"):
            load_reference(((audio + noise).astype(np.float32), 16_000), **asked)
