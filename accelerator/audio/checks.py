"""Audio at the edges: reference recordings in, files out, and the check on what an engine answered."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import struct
from typing import Any, BinaryIO

import numpy as np

from ..errors import BadOutput, InvalidReference
from ..installation import install_command
from ..text.check import check_characters
from .clarity import clarity
from .files import AudioWriter, write_audio, write_wav
from .reference import Reference

__all__ = [
    "AudioWriter",
    "check_audio",
    "load_reference",
    "mono",
    "read_audio",
    "resampled",
    "write_audio",
    "write_wav",
]

logger = logging.getLogger(__name__)

SILENT_PEAK = 1e-4  # -80 dB of full scale: below the noise of any recording
MAX_PEAK = 2.0  # lossy decoders overshoot 1 by some per cent; integers stored as floats exceed it by thousands
MAX_CHANNELS = 8
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
MIXED = 0.1  # of the loudest channel's energy: a mean with less has channels that cancel each other
TELEPHONE = 4_500  # Hz, up to which it carries speech: half of what distinguishes voices is missing
PAUSE_FRAME_S = 0.05  # resolution in looking for pauses
BLOCK = 16_384  # frames decoded at a time, so that a false header cannot claim memory
UNREAD = 1_024  # bytes that may follow an MP3's last frame: tags
_OGG_BEGINS = b"OggS\0\2"
MAX_BYTES = 256 << 20  # read of a file whose header has no length
_CONTAINERS = "mov,matroska,webm,aac,asf,amr,ogg,mp3,flac"
_NUMBER = (int, float, np.integer, np.floating)


def load_reference(
    audio: Any,
    text: str | None = None,
    *,
    sample_rate: int,
    min_s: float = 0.2,
    max_s: float = 300.0,
    cut: bool = False,
    bandwidth: float = 0.0,
    contrast: float = 0.0,
) -> Reference:
    """A voice to imitate, as float32 mono at `sample_rate` Hz, from a recording and what it says (None: unknown).

    audio: a path; the bytes of an audio file, or a binary file object with them (WAV, FLAC, OGG, MP3, AIFF ..., and
    with the extra `formats` m4a, webm ...); or (samples, rate) in either order, samples as `mono` takes them. They are
    not clipped. cut: a recording that is too long is cut at a pause, with a warning. bandwidth, contrast: what it must
    have at least, as `clarity` measures them. Raises InvalidReference for what cannot be read, is not `min_s` ..
    `max_s` seconds long, not finite, silent, far outside [-1, 1], or not as clear as asked.
    """
    said = check_characters("" if text is None else text, what="the reference text", error=InvalidReference)
    samples, rate = _samples(audio, max_s)
    if cut and len(samples) > max_s * rate:
        samples = _up_to_a_pause(samples[: int(max_s * rate)], rate)
        logger.warning(
            "the reference audio lasts more than %g s: its first %.1f s are used", max_s, len(samples) / rate
        )
    _check_length(len(samples), rate, min_s, max_s)
    _check_level(samples)
    _check_clarity(samples, rate, bandwidth, contrast)
    samples = resampled(samples, rate, sample_rate)
    digest = hashlib.sha256(struct.pack("<q", sample_rate) + samples.astype("<f4", copy=False).tobytes()).hexdigest()
    return Reference(audio=samples, sample_rate=sample_rate, text=said, digest=digest)


def resampled(samples: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """float32 [n] of `rate` Hz at `sample_rate` Hz."""
    if rate != sample_rate:
        import soxr

        samples = soxr.resample(samples, rate, sample_rate, quality="HQ")
    return np.ascontiguousarray(samples, np.float32)


def read_audio(audio: Any, max_s: float = 4 * 3600.0) -> tuple[np.ndarray, int]:
    """What `load_reference` takes, as float32 mono [n] and Hz, unchecked and unchanged. Raises InvalidReference."""
    return _samples(audio, max_s)


def mono(samples: Any) -> np.ndarray:
    """An array, tensor or list [n], [n, channels] or [channels, n] of floats in [-1, 1] or of integers -> float32 [n].

    Integers of 8, 16 and 32 bits are scaled by their type. Integers of 64 bits, such as Python's, are taken for 16-bit
    samples, or for 24 or 32 bits if they exceed that. Channels are averaged, or where they cancel each other the
    loudest one is taken. Raises InvalidReference for anything else.
    """
    return _mono(_array(samples))


def check_audio(audio: np.ndarray, sample_rate: int, *, silent_s: float = 1.0, max_clipped: float = 0.01) -> np.ndarray:
    """An engine's answer as float32 mono [n], when it can be speech; axes of length 1 are dropped.

    Raises BadOutput for audio that is empty, has more than one channel or a sample that is not finite, is silent
    throughout and longer than `silent_s` seconds (shorter silence may be a pause), or has more than the share
    `max_clipped` of its samples at or beyond full scale.
    """
    shape = np.shape(audio)
    samples = _float32(audio).reshape(-1)
    if samples.size == 0:
        raise BadOutput("the engine answered with no audio: 0 samples")
    if samples.size != max(shape, default=1):
        raise BadOutput(f"the engine answered with audio of shape {shape} instead of one channel")
    finite = int(np.isfinite(samples).sum())
    if finite < samples.size:
        raise BadOutput(f"{samples.size - finite:,} of {samples.size:,} audio samples are NaN or infinite")
    level = np.abs(samples)
    peak, seconds = float(level.max()), samples.size / sample_rate
    if peak < SILENT_PEAK and seconds > silent_s:
        silent = f"{seconds:.2f} s of audio are silent: peak {peak:.1e}, below {SILENT_PEAK:.0e}"
        raise BadOutput(silent, check="silent")
    clipped = np.count_nonzero(level >= 1.0) / samples.size
    if clipped > max_clipped:
        loud = f"{clipped:.1%} of the audio is clipped (peak {peak:.2f}), more than {max_clipped:.1%}"
        raise BadOutput(loud, check="clipped")
    return samples


def _samples(audio: Any, max_s: float) -> tuple[np.ndarray, int]:
    """Any kind of reference -> float32 mono [n], Hz. Decodes little more than `max_s` seconds of a file."""
    if isinstance(audio, (str, os.PathLike)):
        try:
            if not os.path.isfile(audio):
                what = "is not a file" if os.path.exists(audio) else "does not exist"
                raise InvalidReference(f"the reference audio {os.fspath(audio)!r} {what}")
            with open(audio, "rb") as file:
                return _decode(file, repr(os.fspath(audio)), max_s)
        except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
            if isinstance(exc, InvalidReference):
                raise
            raise InvalidReference(f"the reference audio {os.fspath(audio)!r} cannot be opened: {exc}") from exc
    if isinstance(audio, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(audio), "data", max_s)
    if hasattr(audio, "read"):
        data = audio.read()
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise InvalidReference("the reference audio's file object yields text: open it in binary mode, 'rb'")
        return _decode(io.BytesIO(data), "file", max_s)
    if isinstance(audio, (tuple, list)) and len(audio) == 2:
        samples, rate = reversed(audio) if isinstance(audio[0], _NUMBER) else audio
        rate = _rate(rate)
        return mono(samples), rate
    raise InvalidReference(
        f"the reference audio cannot be a {type(audio).__name__}: give a path, the bytes of an audio file, "
        "a binary file object, or (samples, sample_rate)"
    )


def _decode(file: BinaryIO, name: str, max_s: float) -> tuple[np.ndarray, int]:
    import soundfile

    if not file.read(1):
        raise InvalidReference(f"the reference audio {name} is empty")
    file.seek(0)
    try:
        return _by_soundfile(file, max_s)
    except (soundfile.SoundFileError, TypeError, _Unreadable) as exc:  # TypeError: a name that ends in .raw
        reason = getattr(exc, "error_string", str(exc)).rstrip(".")  # without the repr of our buffer
        failure = f"the reference audio {name} cannot be read as audio ({reason})"
    file.seek(0)
    try:
        return _by_pyav(file, max_s)
    except ImportError:
        more = f"or let more kinds of files be read: {install_command('formats')}"
        raise InvalidReference(f"{failure}: convert it to WAV, FLAC, OGG or MP3, {more}") from None
    except _Unreadable as exc:
        raise InvalidReference(
            f"{failure}, nor as a film's sound ({exc}): convert it to WAV, FLAC, OGG or MP3"
        ) from exc


class _Unreadable(Exception):
    """A file that a library cannot read to its end."""


def _by_soundfile(file: BinaryIO, max_s: float) -> tuple[np.ndarray, int]:
    import soundfile

    class Forward(soundfile.SoundFile):
        """Read once, from the beginning. soundfile seeks after each block of a seekable file: libsndfile then corrupts
        the next frame of an MP3, and fails in a FLAC without a length."""

        def seekable(self) -> bool:
            return False

    blocks: list[np.ndarray] = []
    with Forward(file) as source:
        rate, left = _rate(source.samplerate), int(max_s * source.samplerate) + 1
        while left > 0 and len(block := source.read(min(left, BLOCK), dtype="float32", always_2d=True)):
            blocks.append(block)
            left -= len(block)
        kind = source.format
    if not blocks and (whole := _with_length(file)) is not None:
        return _by_soundfile(whole, max_s)
    if left > 0 and kind in ("MP3", "OGG") and _goes_on(file, kind):
        raise _Unreadable("more follows its end: several files in one, or an MP3 that tells no length")
    return _mixed(blocks) if blocks else np.zeros(0, np.float32), rate


def _goes_on(file: BinaryIO, kind: str) -> bool:
    """Whether more follows the end of an MP3 or Ogg file: libsndfile reads only the first of concatenated ones."""
    if kind == "MP3":
        at = file.tell()
        return file.seek(0, os.SEEK_END) - at > UNREAD
    file.seek(0)
    return file.read(MAX_BYTES).count(_OGG_BEGINS) > 1


def _with_length(file: BinaryIO) -> BinaryIO | None:
    """A WAV or AU file whose header says 0 bytes, because it was written to a pipe, with its real length."""
    file.seek(0)
    head = file.read(BLOCK)
    if head[:4] == b".snd":
        unknown = head[8:12] == bytes(4) and len(head) == BLOCK
        return io.BytesIO(head[:8] + b"\xff" * 4 + head[12:] + file.read(MAX_BYTES)) if unknown else None
    if head[:4] not in (b"RIFF", b"RF64") or head[8:12] != b"WAVE":
        return None
    form, at = b"", 12
    while at + 8 <= len(head):
        name, size = struct.unpack_from("<4sI", head, at)
        if name == b"data":
            break
        if name == b"fmt ":
            form = head[at : at + 8 + size]
        at += 8 + size + size % 2
    else:
        return None
    file.seek(at + 8)
    samples = file.read(MAX_BYTES)
    if not form or not samples:
        return None
    sizes = struct.pack("<I", 4 + len(form) + 8 + len(samples)), struct.pack("<I", len(samples))
    return io.BytesIO(b"RIFF" + sizes[0] + b"WAVE" + form + b"data" + sizes[1] + samples)


def _by_pyav(file: BinaryIO, max_s: float) -> tuple[np.ndarray, int]:
    """m4a, webm and whatever else FFmpeg reads, except playlists: a recording must not refer to other files."""
    import av

    blocks: list[np.ndarray] = []
    try:
        with av.open(file, mode="r", options={"format_whitelist": _CONTAINERS}) as container:
            stream = container.streams.audio[0]
            rate = _rate(stream.rate)
            left = int(max_s * rate) + 1
            resampler = av.AudioResampler(format="fltp", rate=rate)
            for frame in container.decode(stream):
                for block in resampler.resample(frame):
                    blocks.append(block.to_ndarray().T)
                    left -= len(blocks[-1])
                if left <= 0:
                    break
    except (av.FFmpegError, IndexError) as error:  # IndexError: a film without sound
        reason = getattr(error, "strerror", None) or "there is no sound in it"
        raise _Unreadable(reason) from error
    return _mixed(blocks) if blocks else np.zeros(0, np.float32), rate


def _mixed(blocks: list[np.ndarray]) -> np.ndarray:
    """Blocks [n, channels] -> the mean of the channels [n], or the loudest one where they cancel each other."""
    means = [block.mean(axis=1) for block in blocks]
    own = sum(np.square(block, dtype=np.float64).sum(axis=0) for block in blocks)  # each channel's energy
    if sum(float(np.square(mean, dtype=np.float64).sum()) for mean in means) < MIXED * np.max(own):
        means = [block[:, int(np.argmax(own))] for block in blocks]
    return np.concatenate(means)


def _up_to_a_pause(samples: np.ndarray, rate: int) -> np.ndarray:
    """The samples without what follows the quietest moment of their last third."""
    frame = max(1, int(PAUSE_FRAME_S * rate))
    energies = np.square(samples[: len(samples) // frame * frame].reshape(-1, frame)).mean(axis=1)
    first = 2 * len(energies) // 3
    return samples[: (first + int(np.argmin(energies[first:])) + 1) * frame]


def _array(samples: Any) -> np.ndarray:
    """Samples as an array, from a tensor on any device too."""
    if hasattr(samples, "detach"):
        samples = samples.detach().cpu()
        samples = samples.float() if samples.is_floating_point() else samples  # numpy has no bfloat16
    try:
        return np.asarray(samples.numpy() if hasattr(samples, "numpy") else samples)
    except ValueError as exc:  # a ragged list
        raise InvalidReference(f"the samples are not an array: {exc}") from exc


def _mono(samples: np.ndarray) -> np.ndarray:
    """[n], [n, channels] or [channels, n], of a dtype with a known scale -> float32 [n]."""
    if samples.dtype.kind == "f":
        scaled = _float32(samples)
    elif samples.dtype in (np.int8, np.int16, np.int32):
        scaled = _float32(samples / -float(np.iinfo(samples.dtype).min))
    elif samples.dtype == np.int64 and (full := _full_scale(samples)):
        scaled = _float32(samples / full)
    elif samples.dtype == np.uint8:
        scaled = (_float32(samples) - 128) / 128
    else:
        raise InvalidReference(
            f"samples of type {samples.dtype} have no known scale: convert them to float32 in [-1, 1] or to int16"
        )
    if scaled.ndim > 1:
        scaled = np.atleast_1d(scaled.squeeze())
    if scaled.ndim == 2 and 0 < min(scaled.shape) <= MAX_CHANNELS:
        channels_last = scaled.shape[0] >= scaled.shape[1]  # the shorter axis is the channels
        scaled = _mixed([scaled if channels_last else scaled.T])
    if scaled.ndim != 1:
        raise InvalidReference(
            f"samples of shape {samples.shape} are not [n], [n, channels] or [channels, n] "
            f"of at most {MAX_CHANNELS} channels"
        )
    return scaled


def _full_scale(samples: np.ndarray) -> float | None:
    """The smallest full scale, of 16, 24 or 32 bits, that holds 64-bit integers."""
    low, high = (int(samples.min()), int(samples.max())) if samples.size else (0, 0)
    return next((full for full in (2.0**15, 2.0**23, 2.0**31) if -full <= low and high < full), None)


def _float32(samples: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes infinite, which is reported
        return np.asarray(samples, np.float32)


def _rate(rate: Any) -> int:
    if not isinstance(rate, _NUMBER) or isinstance(rate, bool):
        raise InvalidReference(f"the reference's sample rate must be a number of Hz, not a {type(rate).__name__}")
    if not MIN_RATE <= rate <= MAX_RATE or rate != int(rate):
        raise InvalidReference(f"the reference's sample rate must be {MIN_RATE} .. {MAX_RATE} Hz, not {rate}")
    return int(rate)


def _check_length(n: int, rate: int, min_s: float, max_s: float) -> None:
    if n == 0:
        raise InvalidReference("the reference audio is empty: record some seconds of the voice")
    if n < min_s * rate:
        raise InvalidReference(
            f"the reference audio lasts {n / rate:.3g} s, less than {min_s:g} s: "
            "5 to 12 seconds of clear speech are best"
        )
    if n > max_s * rate:
        raise InvalidReference(
            f"the reference audio is longer than {max_s:g} s, which is all that this voice takes: "
            f"cut out {min(5.0, max_s / 2):g} to {min(15.0, max_s):g} seconds of clear speech, with their transcript"
        )


def _check_level(samples: np.ndarray) -> None:
    finite = int(np.isfinite(samples).sum())
    if finite < samples.size:
        raise InvalidReference(
            f"{samples.size - finite:,} of {samples.size:,} reference samples are NaN or infinite: "
            "record or decode it again"
        )
    low, high = float(samples.min()), float(samples.max())
    if max(high, -low) > MAX_PEAK:
        raise InvalidReference(
            f"the reference's floats reach {max(high, -low):g}, far outside [-1, 1]: "
            "divide by full scale (32768 for 16-bit samples)"
        )
    if high - low < 2 * SILENT_PEAK:  # about its mean, so that a constant is silent too
        raise InvalidReference("the reference audio is silent: record it again at a higher level")


def _check_clarity(samples: np.ndarray, rate: int, bandwidth: float, contrast: float) -> None:
    """Only warns of a recording made by telephone where nothing is asked for: the engine may do well with it."""
    found = clarity(samples, rate)
    reaches = f"the reference audio has speech up to {found.bandwidth / 1000:.3g} kHz only"
    if found.contrast < contrast:  # first: noise hides what speech has up there
        raise InvalidReference(
            f"the reference audio is noisy: its speech stands {max(found.contrast, 0):.0f} dB above what is always "
            f"there, and this voice needs {contrast:g} dB to tell who speaks: record it with 16 bits a sample, "
            "in a quiet room and near the microphone, or choose a voice by its name"
        )
    if found.bandwidth < bandwidth:
        raise InvalidReference(
            f"{reaches}, as by telephone or at a low bit rate, and this voice needs {bandwidth / 1000:.3g} kHz to tell "
            "who speaks: record it anew with 16,000 samples a second or more, or choose a voice by its name"
        )
    if not bandwidth and 0 < found.bandwidth <= TELEPHONE:
        logger.warning(
            "%s, as by telephone: the voice imitated may be another's; record it with 16,000 samples a second or more",
            reaches,
        )
