"""What an arm of `peers` is, what it is opened with, and the recordings that engines imitate there."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..audio.files import write_wav
from ..errors import EngineError

__all__ = ["SAID", "Arm", "Cloning", "Given", "Peers", "package", "recording", "version"]

RECORDED_S = 10.0
SAID = "Ah."  # a transcript: nothing depends on what is in it
_RATE = 16_000  # of recordings


class Arm(Protocol):
    """about: what it is, in a line. Samples are float32 [n] at sample_rate."""

    @property
    def about(self) -> str: ...

    @property
    def sample_rate(self) -> int: ...

    def whole(self, text: str) -> np.ndarray: ...

    def stream(self, text: str, *, raw: bool) -> Iterator[np.ndarray]:
        """raw: not brought to full scale."""
        ...


class Cloning(Arm, Protocol):
    """An arm that speaks as `recording(scratch)`."""

    def encode(self, path: Path, said: str) -> None:
        """Do what is done once for a recording, of which nothing is known yet. said: its transcript, if it has one."""
        ...


@dataclass(frozen=True, kw_only=True)
class Given:
    """What an arm is opened with.

    frames: of a text at most, where weights may be random and never end. threads, cache_dir, proof: of ours.
    """

    checkpoint: Path
    scratch: Path
    voice: str | None = None
    frames: int | None = None
    threads: int | None = None
    cache_dir: Path | None = None
    proof: Any = "strict"

    @property
    def cores(self) -> int:
        """Threads of peers that take a number."""
        from ..hardware import detect

        return self.threads or detect().usable_cores


@dataclass(frozen=True)
class Peers:
    """arms: by name, how each is opened. raw: the option of a request to ours by which sentences keep their level;
    None where an engine never changes it. random: writes a checkpoint with random weights into a folder, for an engine
    that can be measured without a trained one. cloning: whether arms are `Cloning`; they are so large that one at a
    time is in memory."""

    arms: Mapping[str, Callable[[Given], Arm]]
    raw: Mapping[str, Any] | None = None
    random: Callable[[Path], None] | None = None
    cloning: bool = False


def recording(scratch: Path, number: int = 0) -> Path:
    """A file of ten seconds of a voice: vibrating harmonics under noise, in syllables; another one for each number."""
    path = scratch / f"voice-{number}.wav"
    if not path.is_file():
        t = np.arange(int(RECORDED_S * _RATE)) / _RATE
        phase = 2 * np.pi * ((110 + 7 * number) * t + 1.5 * np.sin(3 * t))
        voiced = sum(np.sin(k * phase) / (3 + k) for k in range(1, 60)) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))
        audio = 0.2 * voiced + 0.001 * np.random.default_rng(number).standard_normal(len(t))
        write_wav(path, audio.astype(np.float32), _RATE)
    return path


def package(module: str, name: str, load: Callable[[str], Any] = importlib.import_module) -> Any:
    """A peer's module. Raises EngineError."""
    try:
        return load(module)
    except ImportError as error:
        raise EngineError(f"not measured, as {name} cannot be imported ({error}): pip install {name}") from error


def version(name: str) -> str:
    return importlib.metadata.version(name)
