"""Writing audio files: the formats, and one writer for all of them, chunk by chunk.

write_audio("out.mp3", audio, sample_rate)              # the suffix says the format
with AudioWriter("out.opus", sample_rate) as writer:    # the file is there when the block ends, or not at all
    writer.write(chunk)
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import os
import stat
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np

from ..errors import InvalidInput, InvalidOption
from ..installation import install_command
from .interrupts import uninterrupted

__all__ = ["FORMATS", "AudioWriter", "Format", "audio_format", "is_stream", "write_audio", "write_wav"]

Target = str | os.PathLike[str] | BinaryIO
_UNKNOWN = 0xFFFFFFFF  # the length in the header of a WAV file that is still being written, as ffmpeg has it
_BEST, _STREAM = ("VARIABLE", 0.0), ("CONSTANT", 0.5)  # MP3: about 70 and 80 kbit/s at 24 kHz
_STEM = 60  # characters of a file's name that its temporary name repeats


class _Encoder(Protocol):
    """Takes float32 [n] within [-1, 1] at the rate it was opened with, and writes it to its sink."""

    def write(self, samples: np.ndarray) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Format:
    """A kind of audio file. rates: the sample rates in Hz that it has, () for all; others are resampled to the next.

    WAV and FLAC hold 16-bit samples, which is enough for speech; FLAC's samples then equal WAV's.
    """

    name: str
    suffixes: tuple[str, ...]
    encoder: Callable[[_Sink, int], _Encoder]
    rates: tuple[int, ...] = ()
    needs: str = ""  # a package of the extra `formats`

    def rate_for(self, sample_rate: int) -> int:
        """The file's sample rate for audio of this one: the same, else the next higher, else the highest."""
        higher = [rate for rate in self.rates if rate >= sample_rate]
        return sample_rate if not self.rates else min(higher, default=max(self.rates))


class _Sink:
    """Where an encoder writes. A stream cannot seek back: a header that an encoder rewrites at the end is dropped.

    Errors wait for `flush`, because encoders in C that call `write` would swallow them.
    """

    def __init__(self, file: BinaryIO, *, stream: bool) -> None:
        self._file, self.stream = file, stream
        self._at = self._end = 0
        self._error: BaseException | None = None

    def write(self, data: Any) -> int:
        data = bytes(data)
        try:
            self._put(data)
        except BaseException as error:
            self._error = self._error or error
        self._at += len(data)
        self._end = max(self._end, self._at)
        return len(data)

    def _put(self, data: bytes) -> None:
        if self._at == self._end:
            self._file.write(data)
        elif not self.stream:
            self._file.seek(self._at)
            self._file.write(data)
            self._file.seek(self._end)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        """Make what was written visible to readers. Raises an earlier error of `write`."""
        if self._error is not None:
            raise self._error
        self._file.flush()


class _Mp3Stream(_Sink):
    """Drops the frame that LAME reserves for the length: in a stream it stays blank, and would be heard as a pause."""

    def _put(self, data: bytes) -> None:
        if self._end or any(data[4:]):
            super()._put(data)


class _Wav:
    """16-bit PCM. 1 / 32768 is one step, as in readers, so that 16-bit audio comes back exactly."""

    def __init__(self, sink: _Sink, sample_rate: int) -> None:
        self._sink, self._rate, self._bytes = sink, sample_rate, 0
        sink.write(self._header(_UNKNOWN, _UNKNOWN))

    def write(self, samples: np.ndarray) -> None:
        self._bytes += self._sink.write(_steps(samples).tobytes())

    def close(self) -> None:
        self._sink.seek(0)
        self._sink.write(self._header(min(self._bytes + 36, _UNKNOWN), min(self._bytes, _UNKNOWN)))

    def _header(self, riff: int, data: int) -> bytes:
        form = (b"fmt ", 16, 1, 1, self._rate, 2 * self._rate, 2, 16)
        return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", riff, b"WAVE", *form, b"data", data)


class _Soundfile:
    """Formats that libsndfile encodes. Lossy ones take the samples as floats."""

    def __init__(self, sink: _Sink, sample_rate: int, container: str, subtype: str) -> None:
        import soundfile

        if not soundfile.check_format(container, subtype):
            raise InvalidOption(f"the installed libsndfile cannot write {container} {subtype}: update soundfile")
        self._exact = subtype.startswith("PCM")
        quality: dict[str, Any] = {}
        if container == "MP3":  # without its first frame a variable bit rate leaves readers guessing the length
            quality = dict(zip(("bitrate_mode", "compression_level"), _STREAM if sink.stream else _BEST, strict=True))
        self._file = soundfile.SoundFile(sink, "w", sample_rate, 1, subtype, format=container, **quality)

    def write(self, samples: np.ndarray) -> None:
        self._file.write(_steps(samples) if self._exact else samples)

    def close(self) -> None:
        self._file.close()


class _Aac:
    """AAC in MPEG-4, by PyAV. A stream is cut into fragments, as its index cannot come after it."""

    def __init__(self, sink: _Sink, sample_rate: int) -> None:
        import av

        fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if sink.stream else {}
        self._av: Any = av
        self._rate, self._at = sample_rate, 0
        self._container: Any = av.open(sink, "w", format="ipod", options=fragments)
        self._stream: Any = self._container.add_stream("aac", rate=sample_rate, layout="mono")
        self._stream.bit_rate = 4 * sample_rate  # bits a second: 96,000 at 24 kHz

    def write(self, samples: np.ndarray) -> None:
        frame = self._av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = self._rate, self._at
        self._at += len(samples)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        if self._at:
            self._container.mux(self._stream.encode(None))
        self._container.close()


def _soundfile(container: str, subtype: str) -> Callable[[_Sink, int], _Encoder]:
    return lambda sink, sample_rate: _Soundfile(sink, sample_rate, container, subtype)


_OPUS = (8_000, 12_000, 16_000, 24_000, 48_000)
_MPEG = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
FORMATS = {
    format.name: format
    for format in (
        Format("wav", (".wav", ".wave"), _Wav),
        Format("flac", (".flac",), _soundfile("FLAC", "PCM_16")),
        Format("mp3", (".mp3",), _soundfile("MP3", "MPEG_LAYER_III"), _MPEG),
        Format("ogg", (".ogg", ".oga"), _soundfile("OGG", "VORBIS")),
        Format("opus", (".opus",), _soundfile("OGG", "OPUS"), _OPUS),
        Format("m4a", (".m4a",), _Aac, _MPEG, needs="av"),
    )
}
"""Name -> format: WAV, FLAC, MP3, Vorbis and Opus in Ogg, and AAC in MPEG-4 (which needs the extra `formats`)."""


def audio_format(target: Target, name: str | None = None) -> Format:
    """The format called `name`, or else that of the target's suffix; WAV for a file object, pipe or device.

    Raises InvalidOption, which lists the formats, for an unknown name or suffix, and for a format whose package is not
    installed.
    """
    format = _named(target, name)
    if format.needs and importlib.util.find_spec(format.needs) is None:
        raise InvalidOption(f"{format.name} needs the package {format.needs}: {install_command('formats')}")
    return format


def _named(target: Target, name: str | None) -> Format:
    there = "the formats are " + ", ".join(FORMATS)
    if name is not None:
        if name.lower() not in FORMATS:
            raise InvalidOption(f"there is no audio format {name!r}: {there}")
        return FORMATS[name.lower()]
    if not isinstance(target, (str, os.PathLike)):
        return FORMATS["wav"]
    suffix = Path(target).suffix.lower()
    for format in FORMATS.values():
        if suffix in format.suffixes:
            return format
    if is_stream(Path(target)):
        return FORMATS["wav"]
    what = f"the suffix {suffix!r} names no audio format" if suffix else "the name has no suffix that says the format"
    raise InvalidOption(f"{str(target)!r} cannot be written: {what}; {there}, by suffix or by name")


class AudioWriter:
    """Writes mono audio to a file chunk by chunk; used in a `with` block.

    A path keeps its old content until `close`: meanwhile the audio is written to `partial`, beside it. A pipe, a device
    or a file object gets a stream, whose header does not have the length (an `io.BytesIO` gets a file). Samples
    are clipped to [-1, 1], and resampled where the format lacks the rate.
    Raises InvalidOption for a format that is unknown or not installed, InvalidInput for audio that is not one channel
    of finite numbers, or no audio at all in a format other than WAV, OSError for the path.
    """

    def __init__(self, target: Target, sample_rate: int, format: str | None = None) -> None:
        self._format = audio_format(target, format)
        self._path: Path | None = None
        self.partial: Path | None = None
        self._owned = isinstance(target, (str, os.PathLike))
        self._file = self._open(Path(target)) if isinstance(target, (str, os.PathLike)) else target
        stream = self.partial is None and not isinstance(target, io.BytesIO)
        self._sink = (_Mp3Stream if stream and self._format.name == "mp3" else _Sink)(self._file, stream=stream)
        self._resampler: Any = None
        self._encoder: _Encoder | None = None
        try:
            self._start(sample_rate)
        except BaseException:
            self.discard()
            raise

    @property
    def format(self) -> str:
        """The name of the file's format."""
        return self._format.name

    def _open(self, path: Path) -> BinaryIO:
        if is_stream(path):
            return open(path, "wb")
        self._path = path.resolve()  # a link stays; its target is replaced
        if self._path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        stem, suffix = self._path.stem[:_STEM], self._path.suffix[:_STEM]
        self.partial = self._path.with_name(f"{stem}.{uuid.uuid4().hex[:8]}.partial{suffix}")
        return open(self.partial, "xb")

    def _start(self, sample_rate: int) -> None:
        rate = self._format.rate_for(sample_rate)
        if rate != sample_rate:
            import soxr

            self._resampler = soxr.ResampleStream(sample_rate, rate, 1, dtype="float32", quality="HQ")
        self._encoder = self._format.encoder(self._sink, rate)
        self._sink.flush()
        self._empty = self._format.name != "wav"

    def write(self, audio: np.ndarray) -> None:
        """Append audio [n], or an array with further axes of length 1."""
        samples = _checked(audio)
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        self._encode(samples)

    def _encode(self, samples: np.ndarray) -> None:
        assert self._encoder is not None, "nothing is written after close()"
        if len(samples):
            self._empty = False
            with uninterrupted():
                self._encoder.write(np.clip(samples, -1.0, 1.0))
        self._sink.flush()

    def close(self) -> None:
        """Finish the file and give it its name."""
        try:
            self._finish()
            if self.partial is not None and self._path is not None:
                os.replace(self.partial, self._path)
        except BaseException:
            self.discard()
            raise

    def keep(self) -> Path | None:
        """Finish what is there without publishing it: the path of a complete shorter file, None for a stream."""
        self._finish()
        return self.partial

    def _finish(self) -> None:
        if self._resampler is not None:
            self._encode(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        if self._empty:  # readers take such a file for damaged or endless
            raise InvalidInput(f"there is no audio to write: {self._format.name} holds one sample at least")
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            with uninterrupted():
                encoder.close()
        self._sink.flush()
        if self.partial is not None:
            os.fsync(self._file.fileno())
        if self._owned:
            self._file.close()

    def discard(self) -> None:
        """Stop, and remove what was written; the path keeps its old content."""
        encoder, self._encoder = self._encoder, None
        with contextlib.suppress(Exception):  # the caller reports what went wrong before
            if encoder is not None:
                encoder.close()
        with contextlib.suppress(OSError):
            if self._owned:
                self._file.close()
        if self.partial is not None:
            self.partial.unlink(missing_ok=True)

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def write_audio(target: Target, audio: np.ndarray, sample_rate: int, format: str | None = None) -> None:
    """Write mono audio [n] in the format of the target's suffix, or in `format`: see `FORMATS`.

    A path gets the whole file or keeps its old content. A file object is written to and left open; without a `format`
    it gets WAV. Samples are clipped to [-1, 1]. Raises as `AudioWriter` does.
    """
    _checked(audio)  # before anything is opened
    if isinstance(target, (str, os.PathLike)) and not is_stream(Path(target)):
        with AudioWriter(target, sample_rate, format) as writer:
            writer.write(audio)
        return
    whole = io.BytesIO()  # so that its header has the length
    with AudioWriter(whole, sample_rate, audio_format(target, format).name) as writer:
        writer.write(audio)
    if isinstance(target, (str, os.PathLike)):
        with open(target, "wb") as file:
            file.write(whole.getvalue())
    else:
        target.write(whole.getvalue())


def write_wav(target: Target, audio: np.ndarray, sample_rate: int) -> None:
    """`write_audio` of 16-bit WAV, whatever the target is called."""
    write_audio(target, audio, sample_rate, "wav")


def is_stream(path: Path) -> bool:
    """Whether a path exists that no file can replace: a pipe, a device, or a descriptor's name."""
    if os.path.abspath(path).startswith(("/dev/", "/proc/")):
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _checked(audio: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes infinite, which is reported
        samples = np.asarray(audio, np.float32)
    if samples.size != max(samples.shape, default=1):
        raise InvalidInput(f"a mono audio file needs audio of shape [n], not {samples.shape}")
    if not np.isfinite(samples).all():
        raise InvalidInput("the audio has NaN or infinite samples, which an audio file cannot hold")
    return samples.reshape(-1)


def _steps(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2")
