"""The corpus: flite's recorded voices speak the planned sentences, and a manifest tells each clip's sha256.

    DIR/corpus/clips/NNN/NNNNNN.wav   16 kHz, mono, 16 bits, as flite wrote it
    DIR/corpus/manifest.jsonl         one clip a line: its sentence, samples, sha256 of the samples
    DIR/corpus/audio.i16              all clips one after the other, for training to map into memory

A clip that is there is not made again, so an interrupted run just goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from ..errors import ReferenceEngineError
from ..flite import flite
from .pause import Pause
from .sentences import WORDNET, Sentence, plan

__all__ = ["SAMPLE_RATE", "SPEAKERS", "Clip", "Corpus", "make", "open_corpus"]

SPEAKERS = ("slt", "rms", "awb")  # CMU ARCTIC voices of the Debian package flite
SAMPLE_RATE = 16_000
_SECONDS_A_SENTENCE = 3.0  # a low guess: the plan is cut where the hours are reached


@dataclass(frozen=True)
class Clip(Sentence):
    """A spoken sentence; `start` is where it begins in `audio.i16`."""

    samples: int
    sha256: str
    start: int = 0

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE


@dataclass(frozen=True)
class Corpus:
    clips: tuple[Clip, ...]
    audio: np.ndarray  # int16, all clips

    def of(self, split: str) -> list[Clip]:
        return [clip for clip in self.clips if clip.split == split]

    def samples(self, clip: Clip) -> np.ndarray:
        """Float32 [n] in [-1, 1]."""
        return self.audio[clip.start : clip.start + clip.samples].astype(np.float32) / 32768


def make(
    work: Path,
    *,
    hours: float,
    processes: int = 2,
    seed: int = 0,
    pause: Pause | None = None,
    source: Path = WORDNET,
    expect: Path | None = None,
) -> Path:
    """Make the corpus and answer its manifest.

    Raises ReferenceEngineError if the clips are not those of the manifest `expect`.
    """
    pause = pause or Pause(None)
    folder = work / "corpus"
    clips: list[Clip] = []
    wanted, total = hours * 3600 * SAMPLE_RATE, 0
    sentences = plan(int(hours * 3600 / _SECONDS_A_SENTENCE) + 50, SPEAKERS, seed=seed, source=source)
    with ThreadPoolExecutor(processes) as pool:  # each thread waits for a flite process of its own
        for block in range(0, len(sentences), 64):
            pause.wait()
            for clip in pool.map(partial(_speak, folder), sentences[block : block + 64]):
                if total < wanted:
                    clips.append(Clip(**{**asdict(clip), "start": total}))
                    total += clip.samples
            if total >= wanted:
                break
    _write(folder / "manifest.jsonl", "".join(json.dumps(asdict(clip), sort_keys=True) + "\n" for clip in clips))
    if expect is not None and expect.read_bytes() != (folder / "manifest.jsonl").read_bytes():
        raise ReferenceEngineError(f"this corpus differs from {expect}: another flite, WordNet, seed or length")
    temporary = folder / "audio.i16.tmp"
    with temporary.open("wb") as file:
        for clip in clips:
            file.write(_read(_path(folder, clip)).tobytes())
    os.replace(temporary, folder / "audio.i16")
    return folder / "manifest.jsonl"


def open_corpus(work: Path) -> Corpus:
    """Map the finished corpus. Raises ReferenceEngineError if there is none."""
    folder = work / "corpus"
    if not (folder / "audio.i16").is_file():
        raise ReferenceEngineError(f"there is no corpus in {folder}: run the command `data` first")
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    clips = tuple(Clip(**json.loads(line)) for line in lines)
    return Corpus(clips, np.memmap(folder / "audio.i16", dtype=np.int16, mode="r"))


def _path(folder: Path, sentence: Sentence) -> Path:
    return folder / "clips" / sentence.name[:3] / f"{sentence.name}.wav"


def _read(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="int16")
    assert (rate, samples.ndim) == (SAMPLE_RATE, 1)
    return samples


def _speak(folder: Path, sentence: Sentence) -> Clip:
    path = _path(folder, sentence)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        flite(sentence.text, sentence.speaker, path)
    samples = _read(path)
    return Clip(**asdict(sentence), samples=samples.size, sha256=hashlib.sha256(samples.tobytes()).hexdigest())


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
