"""What a recording holds, whatever its header says; and a voice that cannot cope with it refuses it."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
import soundfile
import soxr

from accelerator.audio.checks import load_reference, read_audio
from accelerator.audio.clarity import clarity
from accelerator.errors import InvalidReference
from tests.doubles import pulses

RATE = 16_000


def recorded(rate: int = RATE, subtype: str = "PCM_16", *, header: int | None = None, **kind: object) -> bytes:
    """Speech by way of a file of that kind; header: the rate of the WAV that it was converted to afterwards."""
    samples = soxr.resample(pulses(), RATE, rate) if rate != RATE else pulses()
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype=subtype, **{"format": "WAV", **kind})
    if header is None:
        return file.getvalue()
    again = io.BytesIO()
    soundfile.write(again, soxr.resample(read_audio(file.getvalue())[0], rate, header), header, format="WAV")
    return again.getvalue()


NARROW = {
    "8 kHz, 16 bits": (recorded(8_000), 4_000),
    "8 kHz, 8 bits": (recorded(8_000, "PCM_U8"), 4_000),
    "mu-law": (recorded(8_000, "ULAW"), 4_000),
    "A-law": (recorded(8_000, "ALAW"), 4_000),
    "GSM": (recorded(8_000, "GSM610"), 4_000),
    "IMA ADPCM": (recorded(8_000, "IMA_ADPCM"), 4_000),
    "48 kHz of 8 kHz": (recorded(8_000, header=48_000), 4_000),
    "48 kHz of 8 bits": (recorded(8_000, "PCM_U8", header=48_000), 4_000),
    "44.1 kHz of GSM": (recorded(8_000, "GSM610", header=44_100), 4_000),
    "11 kHz, 16 bits": (recorded(11_025), 5_512),
    "11 kHz, 8 bits": (recorded(11_025, "PCM_U8"), 5_512),
}
WIDE = {
    "16 bits": recorded(),
    "8 bits": recorded(subtype="PCM_U8"),
    "IMA ADPCM": recorded(subtype="IMA_ADPCM"),
    "mu-law": recorded(subtype="ULAW"),
    "FLAC": recorded(format="FLAC"),
    "Vorbis": recorded(subtype="VORBIS", format="OGG"),
    "48 kHz": recorded(header=48_000),
    "22 kHz": recorded(header=22_050),
}


@pytest.mark.parametrize("kind", NARROW)
def test_what_is_missing_is_measured_and_named(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    data, bandwidth = NARROW[kind]
    assert clarity(*read_audio(data)).bandwidth == pytest.approx(bandwidth, abs=260)
    with pytest.raises(InvalidReference, match=r"up to [3-5]\.?\d* kHz only.*needs 6\.5 kHz.*choose a voice"):
        load_reference(data, sample_rate=RATE, bandwidth=6_500)
    with caplog.at_level(logging.WARNING):
        load_reference(data, sample_rate=RATE)  # an engine that asks for nothing may do well with it
    assert ("as by telephone" in caplog.text) == (bandwidth == 4_000)


@pytest.mark.parametrize("kind", WIDE)
def test_what_is_there_is_heard(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    found = clarity(*read_audio(WIDE[kind]))
    assert 7_200 <= found.bandwidth <= 8_260
    assert found.contrast > 28  # pulses are hard on IMA ADPCM
    with caplog.at_level(logging.WARNING):
        load_reference(WIDE[kind], sample_rate=RATE, bandwidth=6_500, contrast=28)
    assert not caplog.text


@pytest.mark.parametrize("gain", [1.0, 0.01])
@pytest.mark.parametrize("below", [10, 20, 30, 40])
def test_contrast_is_that_of_speech_and_noise(below: float, gain: float) -> None:
    """Of pulses, whose bands are all equally loud: their power in the middle of a pulse over that of the noise."""
    speech = pulses()
    noise = np.random.default_rng(0).standard_normal(len(speech)) * 10 ** (-below / 20) * np.sqrt(np.mean(speech**2))
    noisy = (gain * (speech + noise)).astype(np.float32)
    contrast = clarity(noisy, RATE).contrast
    assert below < contrast < below + 12
    load_reference((noisy, RATE), sample_rate=RATE, contrast=contrast - 0.1)
    with pytest.raises(InvalidReference, match=rf"noisy: its speech stands {contrast:.0f} dB .* needs \d+"):
        load_reference((noisy, RATE), sample_rate=RATE, contrast=round(contrast) + 1)


@pytest.mark.parametrize("steady", [np.full(RATE, 0.1), np.sin(np.arange(RATE)), np.zeros(RATE), np.ones(3)])
def test_what_never_changes_is_no_speech(steady: np.ndarray) -> None:
    found = clarity(steady.astype(np.float32), RATE)
    assert found.bandwidth == 0
    assert found.contrast < 10


def test_noise_reaches_nowhere() -> None:
    found = clarity(np.random.default_rng(0).standard_normal(10 * RATE).astype(np.float32), RATE)
    assert found.bandwidth == 0
    assert 4 < found.contrast < 10
