"""Measures of speech: each says nothing where there is nothing to say, and the right thing where there is."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import soundfile

from accelerator.reference.flite import flite
from accelerator.reference.measures import (
    Recogniser,
    Score,
    Speakers,
    bootstrap,
    cepstra,
    distortion,
    errors,
    scored,
    summarise,
    words,
)


def vowel(formants: tuple[float, float], seconds: float = 0.6, pitch: float = 120.0) -> np.ndarray:
    """Harmonics under two resonances, with a little seeded noise."""
    t = np.arange(round(16_000 * seconds)) / 16_000
    tones = [
        np.sin(2 * np.pi * pitch * h * t) * sum(np.exp(-(((pitch * h - f) / 150) ** 2)) for f in formants)
        for h in range(1, 40)
    ]
    noise = np.random.default_rng(round(sum(formants))).standard_normal(t.size)
    return (0.2 * np.sum(tones, axis=0) + 0.002 * noise).astype(np.float32)


def test_errors_count_words_replaced_lost_and_added():
    assert errors(["the", "cat", "sat"], ["the", "hat", "sat", "down"]) == 2
    assert errors([], ["a"]) == errors(["a"], []) == 1
    assert words("It's 'five' o'clock, Anna.") == ["it's", "five", "o'clock", "anna"]


def test_intervals_hold_the_figure_and_shrink_with_the_number_of_sentences():
    value, low, high = bootstrap(np.array([[1.0], [2.0], [3.0]]), lambda rows: rows.mean())
    assert low < value == 2.0 < high
    more = bootstrap(np.tile([[1.0], [2.0], [3.0]], (30, 1)), lambda rows: rows.mean())
    assert more[0] == 2.0
    assert more[2] - more[1] < 0.5 * (high - low)


def test_what_is_said_again_tells_no_more_of_other_sentences():
    once = [Score("x", "ann", "a b", "a", 2, e, float(e), "ann" if e else "bob") for e in (0, 1, 2, 0, 2, 1)]
    twice = [score for score in once for _ in range(2)]
    assert summarise(twice, draws=2) == summarise(once)
    assert summarise(twice)["sentences"] == 12
    assert summarise(twice)["word_error_rate"] != summarise(once)["word_error_rate"], "narrower, and wrong"


def test_distortion_is_of_the_spectrum_not_of_time_or_level():
    ours = cepstra(vowel((500, 1500)))
    assert ours.shape[1] == 13
    assert distortion(ours, ours) == 0
    assert distortion(ours, np.repeat(ours, 2, axis=0)) == pytest.approx(0, abs=1e-9)
    assert distortion(ours, ours + 1) == pytest.approx(20 / np.log(10) * np.sqrt(13 / 40), rel=0.4)
    assert distortion(ours, cepstra(0.5 * vowel((500, 1500)))) < 0.5
    assert distortion(ours, cepstra(vowel((300, 2300)))) > 2


def test_the_nearest_speaker_is_the_one_that_sounds_alike():
    clips = {
        "dark": [vowel((400, 900), pitch=p) for p in (90.0, 100.0, 110.0)],
        "light": [vowel((700, 2200), pitch=p) for p in (90.0, 100.0, 110.0)],
    }
    speakers = Speakers(clips)
    assert speakers.nearest(vowel((420, 920), pitch=105)) == "dark"
    assert speakers.nearest(vowel((680, 2150), pitch=95)) == "light"
    original = vowel((400, 900))
    score = scored(
        original,
        original,
        name="a",
        speaker="light",
        text="Two words.",
        recognise=lambda audio: "two birds",
        speakers=speakers,
    )
    assert (score.words, score.errors, score.distortion, score.nearest) == (2, 1, 0.0, "dark")


def test_the_recogniser_knows_its_dictionary():
    pytest.importorskip("pocketsphinx")
    recogniser = Recogniser()
    assert recogniser.knows("the cat's river.")
    assert not recogniser.knows("the xqzzk river.")


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite speaks here")
def test_the_recogniser_understands_flite(tmp_path):
    pytest.importorskip("pocketsphinx")
    flite("please wait a moment.", "slt", tmp_path / "a.wav")
    assert Recogniser()(soundfile.read(tmp_path / "a.wav", dtype="float32")[0]) == "please wait a moment"
