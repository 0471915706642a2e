"""References in NumPy: as the engine's own functions have them, and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from accelerator.audio.checks import read_audio
from accelerator.engines.spark_tts.examples import noise
from accelerator.engines.spark_tts.recording import clipped, levelled, magnitudes, standardised
from tests.engines.spark_tts.double import MELS, RATE, Mel


def test_the_loud_passages_get_a_fifth_of_full_scale() -> None:
    audio = noise(1.0, RATE)
    sizes = np.sort(np.abs(levelled(0.3 * audio)))
    assert sizes[int(0.9 * len(sizes)) : int(0.99 * len(sizes))].mean() == pytest.approx(0.2, rel=0.02)
    np.testing.assert_allclose(levelled(0.5 * audio), levelled(0.9 * audio), rtol=0.02)


def test_what_is_hardly_there_is_no_measure() -> None:
    faint = np.array([0.0, 5e-4, -1e-3])
    np.testing.assert_allclose(levelled(faint), 100 * faint)
    assert np.abs(levelled(np.full(RATE, 1e-9))).max() <= 1e-7


def test_peaks_stay_within_full_scale() -> None:
    audio = np.full(1000, 0.02)
    audio[:5] = 0.9
    assert np.abs(levelled(audio)).max() == 1.0


def test_a_clip_is_repeated_or_cut() -> None:
    np.testing.assert_array_equal(clipped(np.arange(3.0), 7), np.array([0, 1, 2, 0, 1, 2, 0], np.float32))
    np.testing.assert_array_equal(clipped(np.arange(9.0), 2), np.array([0, 1], np.float32))


def test_values_have_mean_0_and_variance_1() -> None:
    values = standardised(3 + noise(1.0, RATE))
    assert values.dtype == np.float32
    assert float(values.mean()) == pytest.approx(0, abs=1e-5)
    assert float(values.var()) == pytest.approx(1, abs=1e-4)


def test_mels_are_pytorchs() -> None:
    torch.manual_seed(0)
    mel, audio = Mel(), noise(0.7, RATE).astype(np.float32)
    own = mel.spectrogram
    found = magnitudes(audio, own.window.numpy(), mel.mel_scale.fb.numpy(), own.n_fft, own.hop_length)
    expected = mel(torch.from_numpy(audio)[None])[0].T.numpy()
    assert found.shape == (len(audio) // own.hop_length + 1, MELS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.max())


@pytest.mark.parametrize("gain", [1e-4, 0.01, 0.3, 1.0, 2.5])
def test_the_level_is_the_packages(gain: float) -> None:
    audio = pytest.importorskip("spark_tts_lib.utils.audio", reason="pip install --no-deps spark-tts-lib==0.2.1")
    given = gain * noise(0.9, RATE)
    np.testing.assert_array_equal(levelled(given), audio.audio_volume_normalize(given))


def test_all_of_it_is_the_packages(folder: Path, recording: Path) -> None:
    """On a checkpoint of its own classes: level, clip, wav2vec2's values and the mel spectrogram."""
    from spark_tts_lib.SparkTTS import SparkTTS

    engine = SparkTTS(folder, torch.device("cpu")).audio_tokenizer
    whole, clip = engine.process_audio(recording)
    found = levelled(read_audio(recording)[0].astype(np.float64))
    np.testing.assert_array_equal(found, whole)
    np.testing.assert_array_equal(clipped(found, clip.shape[1]), clip[0].numpy())
    values = engine.processor(whole, sampling_rate=RATE, return_tensors="np", padding=True).input_values
    np.testing.assert_array_equal(standardised(found), values[0])
    mel = engine.model.mel_transformer
    own = mel.spectrogram
    mels = magnitudes(clip[0].numpy(), own.window.numpy(), mel.mel_scale.fb.numpy(), own.n_fft, own.hop_length)
    expected = mel(clip)[0].T.numpy()
    np.testing.assert_allclose(mels, expected, atol=1e-6 * expected.max())
