"""Measures of speech, each of which can be wrong in its own way: words understood, spectrum, speaker.

- word error rate: pocketsphinx (an independent recogniser, offline), over all words
- mel-cepstral distortion in dB between two clips, along their best alignment (Kubichek 1993, dynamic time warping)
- speaker: whether a clip lies nearer to the right speaker's clips than to any other's, by mean and spread of cepstra

Intervals are 95 % percentiles of a bootstrap over sentences. Samples are float32 [n] at 16 kHz.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .errors import ReferenceEngineError
from .spectra import log_mel

__all__ = [
    "SAMPLE_RATE",
    "Recogniser",
    "Score",
    "Speakers",
    "bootstrap",
    "cepstra",
    "distortion",
    "errors",
    "scored",
    "summarise",
    "words",
]

SAMPLE_RATE = 16_000
_CEPSTRA = 13


@dataclass(frozen=True)
class Score:
    """One utterance. `words` of `text`, of which `errors` were not `heard`; distortion in dB."""

    name: str
    speaker: str
    text: str
    heard: str
    words: int
    errors: int
    distortion: float
    nearest: str


def scored(
    audio: np.ndarray,
    original: np.ndarray,
    *,
    name: str,
    speaker: str,
    text: str,
    recognise: Callable[[np.ndarray], str],
    speakers: Speakers,
) -> Score:
    """Judge `audio`, which should say `text` in `speaker`'s voice, as `original` does."""
    heard = recognise(audio)
    return Score(
        name=name,
        speaker=speaker,
        text=text,
        heard=heard,
        words=len(words(text)),
        errors=errors(words(text), heard.split()),
        distortion=distortion(cepstra(audio), cepstra(original)),
        nearest=speakers.nearest(audio),
    )


def summarise(scores: Sequence[Score], seed: int = 0, draws: int = 1) -> dict[str, Any]:
    """Each figure as (value, low, high). draws: scores of a sentence, which follow each other."""
    table = np.array([[s.errors, s.words, s.distortion, s.nearest == s.speaker] for s in scores], dtype=np.float64)
    table = table.reshape(-1, draws, table.shape[1])  # what belongs to a sentence is drawn together
    return {
        "sentences": len(table),
        "word_error_rate": bootstrap(table, lambda rows: rows[..., 0].sum() / rows[..., 1].sum(), seed),
        "distortion_db": bootstrap(table, lambda rows: rows[..., 2].mean(), seed),
        "right_speaker": bootstrap(table, lambda rows: rows[..., 3].mean(), seed),
    }


def bootstrap(
    table: np.ndarray, figure: Callable[[np.ndarray], float], seed: int = 0, rounds: int = 1000
) -> tuple[float, float, float]:
    """(figure, its 2.5 % and its 97.5 % percentile) over rows drawn with replacement."""
    random = np.random.default_rng(seed)
    drawn = [figure(table[random.integers(0, len(table), len(table))]) for _ in range(rounds)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return round(float(figure(table)), 4), round(float(low), 4), round(float(high), 4)


class Recogniser:
    """Samples -> words, by pocketsphinx. Raises ReferenceEngineError where it is not installed."""

    def __init__(self) -> None:
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise ReferenceEngineError("there is no pocketsphinx, the recogniser") from error
        self._decoder = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")

    def __call__(self, audio: np.ndarray) -> str:
        quiet = np.zeros(SAMPLE_RATE // 4, dtype=np.float32)
        samples = (np.concatenate((quiet, audio, quiet)).clip(-1, 1) * 32767).astype(np.int16)
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), no_search=False, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return " ".join(words(found.hypstr)) if found else ""

    def knows(self, text: str) -> bool:
        """Whether every word of the text is in its dictionary: what it cannot say is not a voice's error."""
        return all(self._decoder.lookup_word(word) is not None for word in words(text))


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower())


def errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """Words replaced, lost and added (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, start=1):
        last, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            last, row[j] = row[j], min(last + (word != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def cepstra(audio: np.ndarray) -> np.ndarray:
    """Mel cepstra without the level [T, 13], of windows of 32 ms every 8 ms, silence at both ends cut off."""
    mel = log_mel(torch.from_numpy(audio)[None], bands=40, n_fft=512, sample_rate=SAMPLE_RATE)[0].numpy().T  # [T, 40]
    loud = np.flatnonzero(mel.mean(1) > mel.mean(1).max() - 6)
    mel = mel[loud[0] : loud[-1] + 1]
    steps = np.arange(40) + 0.5
    basis = np.cos(np.pi / 40 * np.outer(np.arange(1, _CEPSTRA + 1), steps)) * np.sqrt(2 / 40)  # orthonormal DCT
    return mel @ basis.T


def distortion(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean distance in dB along the best monotonic alignment of cepstra [T, 13] and [S, 13]."""
    scale = 20 / np.log(10) / np.sqrt(40)  # orthonormal cepstra of 40 natural logarithms -> RMS over bands, in dB
    costs = np.sqrt(((ours[:, None] - theirs[None]) ** 2).sum(2)) * scale
    before = [(0.0, 0)] + [(math.inf, 0)] * costs.shape[1]  # (cost, steps) of the best path to each cell of a row
    for row in costs.tolist():
        now = [(math.inf, 0)]
        for j, cost in enumerate(row):
            total, steps = min(before[j], before[j + 1], now[j])
            now.append((total + cost, steps + 1))
        before = now
    total, steps = before[-1]
    return total / steps


class Speakers:
    """Known voices, from a few clips of each."""

    def __init__(self, clips: Mapping[str, Sequence[np.ndarray]]) -> None:
        clouds = {speaker: np.stack([_embedding(clip) for clip in own]) for speaker, own in clips.items()}
        self._centres = {speaker: cloud.mean(0) for speaker, cloud in clouds.items()}
        self._spread = np.sqrt(np.mean([cloud.var(0) for cloud in clouds.values()], axis=0)) + 1e-6

    def nearest(self, audio: np.ndarray) -> str:
        """The speaker whose centre is nearest, in units of the spread within speakers."""
        own = _embedding(audio)
        return min(self._centres, key=lambda s: float(np.linalg.norm((own - self._centres[s]) / self._spread)))


def _embedding(audio: np.ndarray) -> np.ndarray:
    """A voice in 26 numbers: mean and logarithm of the spread of each cepstrum."""
    c = cepstra(audio)
    return np.concatenate((c.mean(0), np.log(c.std(0) + 1e-3)))
