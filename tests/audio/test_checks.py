"""Reference recordings of every kind, the bad ones too; the check on an engine's audio."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from accelerator.audio.checks import check_audio, load_reference, write_wav
from accelerator.errors import BadOutput, InvalidReference

RATE = 24_000


def sine(seconds: float = 1.0, rate: int = RATE, hz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, **kind: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **({"format": "WAV"} | kind))
    return buffer.getvalue()


def loudest_hz(samples: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * rate / len(samples))


# Kinds of reference


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        ({"format": "WAV", "subtype": "PCM_16"}, 4e-5),
        ({"format": "WAV", "subtype": "PCM_24"}, 1e-6),
        ({"format": "WAV", "subtype": "PCM_U8"}, 1e-2),
        ({"format": "WAV", "subtype": "FLOAT"}, 0),
        ({"format": "WAV", "subtype": "DOUBLE"}, 0),
        ({"format": "FLAC"}, 4e-5),
        ({"format": "OGG", "subtype": "VORBIS"}, 0.05),
        ({"format": "MP3"}, None),  # has a delay
        ({"format": "AIFF"}, 4e-5),
    ],
    ids=lambda kind: "-".join(kind.values()) if isinstance(kind, dict) else "",
)
def test_file_formats(kind: dict[str, str], tolerance: float | None, tmp_path: Path) -> None:
    if kind["format"] not in soundfile.available_formats():
        pytest.skip("this libsndfile lacks the format")
    data = encoded(sine(), RATE, **kind)
    path = tmp_path / "voice.bin"
    path.write_bytes(data)
    with open(path, "rb") as file:
        kinds = [
            load_reference(each, "Hi.", sample_rate=RATE) for each in (path, str(path), data, file, io.BytesIO(data))
        ]
    reference = kinds[0]
    assert {each.digest for each in kinds} == {reference.digest}
    assert reference.audio.dtype == np.float32
    assert reference.audio.ndim == 1
    assert (reference.sample_rate, reference.text) == (RATE, "Hi.")
    if tolerance is None:
        assert loudest_hz(reference.audio, RATE) == pytest.approx(440, abs=2)
    else:
        np.testing.assert_allclose(reference.audio, sine(), atol=tolerance)


def test_telephone_stereo() -> None:
    left, right = sine(rate=8000), sine(rate=8000, hz=1000)
    reference = load_reference(encoded(np.stack([left, right], 1), 8000), "Hi.", sample_rate=44_100)
    assert reference.sample_rate == 44_100
    assert len(reference.audio) == 44_100
    spectrum = np.abs(np.fft.rfft(reference.audio * np.hanning(44_100)))
    assert set(np.argsort(spectrum)[-2:]) == {440, 1000}  # bins of 1 Hz
    assert np.abs(reference.audio).max() < 0.52


@pytest.mark.parametrize(("rate", "target"), [(8_000, 44_100), (48_000, 44_100), (44_100, 16_000), (22_050, 24_000)])
def test_resampling_keeps_pitch_level_and_length(rate: int, target: int) -> None:
    reference = load_reference((sine(2.0, rate), rate), "", sample_rate=target)
    assert abs(len(reference.audio) - 2 * target) <= 1
    assert loudest_hz(reference.audio, target) == pytest.approx(440, abs=1)
    middle = reference.audio[target // 2 : -target // 2]
    assert np.abs(middle - sine(2.0, target)[target // 2 : target // 2 + len(middle)]).max() < 1e-3


def test_no_resampling_changes_nothing() -> None:
    samples = sine()
    np.testing.assert_array_equal(load_reference((samples, RATE), sample_rate=RATE).audio, samples)


@pytest.mark.parametrize(
    ("convert", "tolerance"),
    [
        (lambda x: x.astype(np.float64), 0),
        (lambda x: x.astype(np.float16), 1e-3),
        (lambda x: np.round(x * 2**15).astype(np.int16), 2e-5),
        (lambda x: np.round(x * 2.0**31).astype(np.int32), 1e-7),
        (lambda x: np.round(x * 2**15).astype(np.int64), 2e-5),
        (lambda x: np.round(x * 2**15).astype(int).tolist(), 2e-5),
        (lambda x: np.round(x * 2**23).astype(int).tolist(), 1e-6),
        (lambda x: np.round(x * 2**31).astype(np.int64), 1e-7),
        (lambda x: np.round(x * 2**7).astype(np.int8), 4e-3),
        (lambda x: np.round(x * 2**7 + 128).astype(np.uint8), 4e-3),
        (lambda x: x.tolist(), 0),
        (lambda x: x[None], 0),
        (lambda x: x[None, None], 0),
        (lambda x: np.stack([x * 0.5, x * 1.5]), 1e-7),
        (lambda x: np.stack([x * 0.5, x * 1.5], 1), 1e-7),
        (lambda x: np.stack([x] * 6, 1)[::-1][::-1], 1e-7),
    ],
)
def test_arrays(convert, tolerance: float) -> None:
    for pair in ((convert(sine()), RATE), (RATE, convert(sine())), [convert(sine()), np.int64(RATE)]):
        np.testing.assert_allclose(load_reference(pair, sample_rate=RATE).audio, sine(), atol=tolerance)


def test_full_scale_integers() -> None:
    loud = np.tile(np.array([-32768, 32767], np.int16), RATE)
    assert load_reference((loud, RATE), sample_rate=RATE).audio.min() == -1.0


def test_tensors() -> None:
    import torch

    wave_form = torch.from_numpy(sine())
    expected = load_reference((sine(), RATE), sample_rate=RATE)
    for tensor in (wave_form, wave_form[None], wave_form.double(), wave_form.clone().requires_grad_()):
        assert load_reference((tensor, RATE), sample_rate=RATE).digest == expected.digest
    half = load_reference((wave_form.bfloat16(), RATE), sample_rate=RATE)
    np.testing.assert_allclose(half.audio, sine(), atol=2e-3)
    whole = load_reference(((wave_form * 32768).to(torch.int16), RATE), sample_rate=RATE)
    np.testing.assert_allclose(whole.audio, sine(), atol=4e-5)


def test_digest_names_samples_and_rate() -> None:
    one = load_reference((sine(), RATE), "a", sample_rate=RATE)
    assert len(one.digest) == 64
    assert load_reference((sine(), RATE), "b", sample_rate=RATE).digest == one.digest
    assert load_reference((sine(), 16_000), sample_rate=16_000).digest != one.digest
    assert load_reference((sine(hz=441), RATE), sample_rate=RATE).digest != one.digest


def test_the_callers_array_is_left_alone() -> None:
    samples = sine()
    before = samples.copy()
    load_reference((samples, RATE), sample_rate=16_000)
    np.testing.assert_array_equal(samples, before)


def test_slight_overshoot_is_kept() -> None:
    loud = sine(level=1.3)
    assert load_reference((loud, RATE), sample_rate=RATE).audio.max() == loud.max()


# Bad references


def bad_arrays() -> dict[str, tuple[object, str]]:
    nan, inf = sine(), sine()
    nan[5] = np.nan
    inf[6] = -np.inf
    return {
        "nothing": (np.zeros(0, np.float32), "is empty"),
        "no channels": (np.zeros((1000, 0), np.float32), "shape"),
        "0.05 s": (sine(0.05), "lasts 0.05 s, less than 0.2 s"),
        "10 min": (np.tile(sine(1.0), 600), "longer than 300 s"),
        "NaN": (nan, "1 of 24,000 reference samples are NaN"),
        "inf": (inf, "NaN or infinite"),
        "float64 beyond float32": (np.full(RATE, 1e300), "NaN or infinite"),
        "zeros": (np.zeros(RATE, np.float32), "silent"),
        "constant": (np.full(RATE, 0.3, np.float32), "silent"),
        "very quiet": (sine(level=5e-5), "silent"),
        "integers as floats": (sine(level=20_000), "divide by full scale"),
        "int64": (np.arange(RATE) << 32, "int64"),
        "uint16": (np.arange(RATE).astype(np.uint16), "uint16"),
        "bool": (np.ones(RATE, bool), "bool"),
        "complex": (np.ones(RATE, complex), "complex"),
        "text": (np.array(["a"] * RATE), "no known scale"),
        "a number": (np.float32(1), "shape"),
        "a picture": (np.zeros((200, 200), np.float32), "shape"),
        "three axes": (np.zeros((2, 3, 100), np.float32), "shape"),
        "ragged": ([[0.0, 1.0], [0.0]], "not an array"),
    }


@pytest.mark.parametrize("name", bad_arrays())
def test_bad_samples(name: str) -> None:
    samples, message = bad_arrays()[name]
    for pair in ((samples, RATE), (RATE, samples)):
        if name == "a number" and pair[0] is samples:
            continue  # two numbers: the first is the rate
        with pytest.raises(InvalidReference, match=message):
            load_reference(pair, sample_rate=RATE)


@pytest.mark.parametrize("rate", [0, -1, 1, 10**9, 44_100.5, float("nan"), float("inf"), True, "44100", None])
def test_bad_rates(rate: object) -> None:
    with pytest.raises(InvalidReference, match="sample rate"):
        load_reference((sine(), rate), sample_rate=RATE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"not audio at all, but some text" * 100, "cannot be read as audio"),
        (encoded(sine(), RATE)[:20], "cannot be read as audio"),
        (encoded(sine(0.05), RATE), "less than 0.2 s"),
        (encoded(np.zeros(0, np.float32), RATE), "is empty"),
        (encoded(np.zeros(RATE, np.float32), RATE), "silent"),
        (encoded(np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT"), "NaN"),
        (encoded(np.tile(sine(1.0, 8000), 600), 8000, subtype="PCM_U8"), "longer than 300 s"),
        (encoded(sine(1.0, 200, hz=20), 200), "sample rate"),
    ],
    ids=["empty", "text", "cut", "short", "no samples", "silent", "nan", "ten minutes", "rate"],
)
def test_bad_files(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "voice.wav"
    path.write_bytes(data)
    for each in (data, path, io.BytesIO(data), bytearray(data)):
        with pytest.raises(InvalidReference, match=message):
            load_reference(each, sample_rate=RATE)


def test_a_file_cut_in_the_middle_is_short_or_refused() -> None:
    for kind in ({"format": "WAV"}, {"format": "FLAC"}, {"format": "OGG"}):
        data = encoded(sine(2.0), RATE, **kind)
        try:
            reference = load_reference(data[: len(data) // 2], sample_rate=RATE)
        except InvalidReference:
            continue
        assert 0.2 * RATE <= len(reference.audio) < 2 * RATE
        assert np.isfinite(reference.audio).all()


def test_a_header_that_promises_hours_costs_no_memory() -> None:
    data = bytearray(encoded(sine(), RATE))
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = b"\xff\xff\xff\xff"
    assert len(load_reference(data, sample_rate=RATE).audio) == RATE


def melody(seconds: float = 3.0, rate: int = RATE) -> np.ndarray:
    t = np.arange(int(rate * seconds)) / rate
    return (0.3 * np.sin(2 * np.pi * 220 * t * (1 + 0.3 * t))).astype(np.float32)


@pytest.mark.parametrize("riff", [None, 0, 36, 0xFFFFFFFF])
@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64"])
def test_a_wav_whose_header_says_that_it_is_empty(container: str, riff: int | None) -> None:
    """What is written into a pipe, and cannot go back to its header, may say 0 there."""
    data = bytearray(encoded(melody(), RATE, format=container))
    at = data.index(b"data") + 4
    data[at : at + 4] = bytes(4)
    if riff is not None:
        data[4:8] = riff.to_bytes(4, "little")
    if container == "RF64":
        data[20:44] = bytes(24)
    reference = load_reference(data, sample_rate=RATE)
    np.testing.assert_allclose(reference.audio, melody(), atol=4e-5)


def test_other_streams_without_a_length() -> None:
    au = bytearray(encoded(melody(), RATE, format="AU"))
    flac = bytearray(encoded(melody(), RATE, format="FLAC"))
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    for length in (b"\0\0\0\0", b"\xff\xff\xff\xff"):
        au[8:12] = length
        np.testing.assert_allclose(load_reference(au, sample_rate=RATE).audio, melody(), atol=4e-5)
    np.testing.assert_allclose(load_reference(flac, sample_rate=RATE).audio, melody(), atol=4e-5)


def test_a_header_that_says_it_is_empty_and_is() -> None:
    for kind in ("WAV", "AU", "RF64"):
        with pytest.raises(InvalidReference, match="is empty"):
            load_reference(encoded(np.zeros(0, np.float32), RATE, format=kind), sample_rate=RATE)


def test_a_compressed_file_is_decoded_in_one_go() -> None:
    """Seeking between pieces, as soundfile does, spoils an MP3's next frame: a click in each second or so."""
    for kind in ({"format": "MP3"}, {"format": "OGG", "subtype": "OPUS"}, {"format": "OGG"}):
        data = encoded(melody(), RATE, **kind)
        whole = soundfile.read(io.BytesIO(data), dtype="float32")[0]
        np.testing.assert_allclose(load_reference(data, sample_rate=RATE).audio, whole, atol=1e-6)


@pytest.mark.parametrize(
    "kind", [{"format": "MP3"}, {"format": "OGG"}, {"format": "OGG", "subtype": "OPUS"}, {"format": "FLAC"}], ids=str
)
def test_joined_files_are_read_whole_or_refused(kind: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """libsndfile reads the first and says nothing of the others."""
    data = encoded(melody(), RATE, **kind)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "av", None)
        with pytest.raises(InvalidReference, match=r"cannot be read.*convert it.*pip install .*\[formats\]"):
            load_reference(data + data, sample_rate=RATE)
    pytest.importorskip("av", reason='pip install -e ".[formats]"')
    assert len(load_reference(data + data, sample_rate=RATE).audio) == pytest.approx(6 * RATE, abs=2_500)


def test_tags_at_an_mp3s_end_are_no_audio() -> None:
    data = encoded(melody(), RATE, format="MP3") + b"TAG" + b" " * 125
    assert len(load_reference(data, sample_rate=RATE).audio) == 3 * RATE


def test_eight_bit_files_have_no_offset() -> None:
    """WAV's are unsigned: 128 is silence, 0 is -1."""
    wav = bytearray(encoded(np.zeros(RATE, np.float32), RATE, subtype="PCM_U8"))
    at = wav.index(b"data") + 8
    levels = np.tile(np.array([0, 64, 128, 192, 255], np.uint8), RATE // 5)
    wav[at : at + RATE] = levels.tobytes()
    expected = (levels.astype(np.float32) - 128) / 128
    np.testing.assert_allclose(load_reference(wav, sample_rate=RATE).audio, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        ({"format": "WAV", "subtype": "ULAW"}, 0.03),
        ({"format": "WAV", "subtype": "ALAW"}, 0.03),
        ({"format": "WAV", "subtype": "GSM610"}, 0.15),
        ({"format": "WAV", "subtype": "IMA_ADPCM"}, 0.05),
        ({"format": "WAV", "subtype": "MS_ADPCM"}, 0.05),
        ({"format": "AU", "subtype": "ULAW"}, 0.03),
    ],
    ids=str,
)
def test_telephone_encodings_keep_level_and_form(kind: dict, tolerance: float) -> None:
    said = melody(rate=8_000)
    heard = load_reference(encoded(said, 8_000, **kind), sample_rate=8_000).audio
    assert len(said) <= len(heard) < len(said) + 2_000  # whole blocks
    assert abs(heard.mean()) < 2e-3
    error = heard[: len(said)] - said
    assert np.sqrt(np.mean(error**2)) < tolerance * np.sqrt(np.mean(said**2))


def test_a_playlist_is_no_recording(tmp_path: Path) -> None:
    """FFmpeg would open the files, or the addresses, that a playlist names."""
    write_wav(tmp_path / "secret.wav", melody(), RATE)
    lists = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile '{tmp_path}/secret.wav'\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InvalidReference, match="cannot be read as audio"):
            load_reference(tmp_path / name, sample_rate=RATE)


def test_bad_paths(tmp_path: Path) -> None:
    raw = tmp_path / "voice.raw"
    raw.write_bytes(bytes(range(256)) * 100)
    cases = [
        (tmp_path / "none.wav", "does not exist"),
        (str(tmp_path / "none.wav"), "does not exist"),
        ("", "does not exist"),
        ("nul\0.wav", "nul"),
        ("x" * 5000, "x"),
        (tmp_path, "is not a file"),
        (raw, "cannot be read as audio"),
    ]
    for path, message in cases:
        with pytest.raises(InvalidReference, match=message):
            load_reference(path, sample_rate=RATE)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this file system")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidReference, match="is not a file"):
        load_reference(tmp_path / "pipe", sample_rate=RATE)


@pytest.mark.parametrize("audio", [None, 3, sine(), sine().tolist(), {}, io.StringIO("text"), (1, 2, 3), object()])
def test_other_things(audio: object) -> None:
    with pytest.raises(InvalidReference, match=r"sample_rate|binary mode"):
        load_reference(audio, sample_rate=RATE)


def test_reference_text() -> None:
    assert load_reference((sine(), RATE), sample_rate=RATE).text == ""
    assert load_reference((sine(), RATE), " ¿Qué? 🙂 ", sample_rate=RATE).text == " ¿Qué? 🙂 "
    for text, message in [("a\0", "NUL"), ("\ud800", "surrogate"), ("a" * 10**6, "1,000,000"), (3, "must be a str")]:
        with pytest.raises(InvalidReference, match=f"the reference text.*{message}"):
            load_reference((sine(), RATE), text, sample_rate=RATE)  # type: ignore[arg-type]


def test_limits_are_options() -> None:
    assert load_reference((sine(0.1), RATE), sample_rate=RATE, min_s=0.1)
    with pytest.raises(InvalidReference, match="longer than 1 s"):
        load_reference((sine(1.01), RATE), sample_rate=RATE, max_s=1.0)


# What an engine answered


def test_good_audio_passes() -> None:
    samples = sine()
    assert check_audio(samples, RATE) is not None
    np.testing.assert_array_equal(check_audio(samples[None, None], RATE), samples)
    assert check_audio(samples.astype(np.float64), RATE).dtype == np.float32
    assert len(check_audio(np.zeros(RATE // 2), RATE)) == RATE // 2  # a pause in a stream
    peaks = sine()
    peaks[:100] = 1.0
    check_audio(peaks, RATE)


def test_bad_audio() -> None:
    broken = sine()
    broken[3:6] = np.nan, np.inf, -np.inf
    cases = [
        (np.zeros(0), "0 samples"),
        (np.zeros((2, 100)), r"shape \(2, 100\)"),
        (broken, "3 of 24,000 audio samples are NaN"),
        (np.zeros(2 * RATE), r"2\.00 s of audio are silent: peak 0\.0e\+00"),
        (sine(2.0, level=9e-5), r"silent: peak 9\.0e-05"),
        (sine(level=3.0), r"7\d\.\d% of the audio is clipped \(peak 3\.00\), more than 1\.0%"),
        (np.sign(sine()), "clipped"),
    ]
    for samples, message in cases:
        with pytest.raises(BadOutput, match=message):
            check_audio(samples, RATE)


def test_bars_are_options() -> None:
    check_audio(np.zeros(2 * RATE), RATE, silent_s=3.0)
    check_audio(np.sign(sine()), RATE, max_clipped=1.0)
    with pytest.raises(BadOutput, match="silent"):
        check_audio(np.zeros(10), RATE, silent_s=0.0)


def test_import_is_light() -> None:
    import subprocess
    import sys

    code = (
        "import sys, accelerator.audio.checks, accelerator.text.check, accelerator.inference.sampling;"
        "print([name for name in ('soundfile', 'soxr', 'torch', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
