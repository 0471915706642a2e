"""How good a voice is, on sentences it has never seen: words understood, spectrum, speaker. Each with its uncertainty.

- word error rate: pocketsphinx (an independent recogniser, offline), over all words; flite's own is the yardstick
- mel-cepstral distortion in dB against flite's own clip, along the best alignment (Kubichek 1993, dynamic time warping)
- speaker: whether the clip lies nearer to the right speaker's clips than to any other's, by mean and spread of cepstra

Intervals are 95 % percentiles of a bootstrap over sentences. Samples are float32 [n] at 16 kHz.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..engine import ReferenceEngine
from ..errors import ReferenceEngineError
from ..weights import load_weights
from .codec import lag, trained_codec
from .corpus import SAMPLE_RATE, SPEAKERS, Clip, Corpus, open_corpus
from .pause import Pause
from .spectra import log_mel
from .tokens import encode
from .voice import SPEAKER_TOKENS

__all__ = ["Score", "bootstrap", "cepstra", "distortion", "errors", "evaluate", "held_out", "recogniser"]

_CEPSTRA = 13


@dataclass(frozen=True)
class Score:
    name: str
    speaker: str
    text: str
    heard: str
    words: int
    errors: int
    distortion: float
    nearest: str


def evaluate(
    work: Path, *, sentences: int = 120, system: str = "flite", voice: Path | None = None, seed: int = 0, pause: Pause
) -> dict[str, Any]:
    """Score a system ("flite", "codec", "voice"), write DIR/evaluation-SYSTEM.json and answer its summary.

    Sentences already scored are not scored again. Raises ReferenceEngineError without corpus, model or recogniser.
    """
    torch.set_num_threads(1)
    corpus = open_corpus(work)
    recognise, known = recogniser()
    speak = _speaker_of(system, work, corpus, voice, seed)
    centres = speaker_centres(corpus)
    scores = []
    for clip in held_out(corpus, sentences, known, seed):
        pause.wait()
        original, audio = corpus.samples(clip), speak(clip)
        heard = recognise(audio)
        scores.append(
            Score(
                name=clip.name,
                speaker=clip.speaker,
                text=clip.text,
                heard=heard,
                words=len(_words(clip.text)),
                errors=errors(_words(clip.text), heard.split()),
                distortion=distortion(cepstra(audio), cepstra(original)),
                nearest=nearest(audio, centres),
            )
        )
    summary = summarise(scores, seed)
    text = json.dumps({"system": system, **summary, "scores": [asdict(score) for score in scores]}, indent=1)
    (work / f"evaluation-{system}.json").write_text(text + "\n", encoding="utf-8")
    return summary


def summarise(scores: Sequence[Score], seed: int = 0) -> dict[str, Any]:
    """Each figure as (value, low, high)."""
    table = np.array([[s.errors, s.words, s.distortion, s.nearest == s.speaker] for s in scores], dtype=np.float64)
    return {
        "sentences": len(scores),
        "word_error_rate": bootstrap(table, lambda rows: rows[:, 0].sum() / rows[:, 1].sum(), seed),
        "distortion_db": bootstrap(table, lambda rows: rows[:, 2].mean(), seed),
        "right_speaker": bootstrap(table, lambda rows: rows[:, 3].mean(), seed),
    }


def bootstrap(
    table: np.ndarray, figure: Callable[[np.ndarray], float], seed: int = 0, rounds: int = 1000
) -> tuple[float, float, float]:
    """(figure, its 2.5 % and its 97.5 % percentile) over rows drawn with replacement."""
    random = np.random.default_rng(seed)
    drawn = [figure(table[random.integers(0, len(table), len(table))]) for _ in range(rounds)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return round(float(figure(table)), 4), round(float(low), 4), round(float(high), 4)


def held_out(corpus: Corpus, count: int, known: Callable[[str], bool], seed: int = 0) -> list[Clip]:
    """Held-out clips of at least four words, all of which the recogniser knows: what it cannot say is not our error."""
    fit = [c for c in corpus.of("heldout") if len(_words(c.text)) >= 4 and all(map(known, _words(c.text)))]
    if len(fit) < count:
        raise ReferenceEngineError(f"there are {len(fit)} held-out sentences that fit, not {count}: make more data")
    chosen = np.random.default_rng(seed).permutation(len(fit))[:count]
    return [fit[i] for i in sorted(chosen)]


def recogniser() -> tuple[Callable[[np.ndarray], str], Callable[[str], bool]]:
    """(samples -> words, whether a word is in the dictionary). Raises ReferenceEngineError without pocketsphinx."""
    try:
        from pocketsphinx import Decoder
    except ImportError as error:
        raise ReferenceEngineError("there is no pocketsphinx: pip install tts-accelerator[training]") from error
    decoder = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")

    def recognise(audio: np.ndarray) -> str:
        quiet = np.zeros(SAMPLE_RATE // 4, dtype=np.float32)
        samples = (np.concatenate((quiet, audio, quiet)).clip(-1, 1) * 32767).astype(np.int16)
        decoder.start_utt()
        decoder.process_raw(samples.tobytes(), no_search=False, full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return " ".join(_words(found.hypstr)) if found else ""

    return recognise, lambda word: decoder.lookup_word(word) is not None


def _words(text: str) -> list[str]:
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
    total = np.full((costs.shape[0] + 1, costs.shape[1] + 1), np.inf)
    steps = np.zeros(total.shape)
    total[0, 0] = 0
    for i in range(costs.shape[0]):
        for j in range(costs.shape[1]):
            before = min(((total[i, j], i, j), (total[i, j + 1], i, j + 1), (total[i + 1, j], i + 1, j)))
            total[i + 1, j + 1] = before[0] + costs[i, j]
            steps[i + 1, j + 1] = steps[before[1:]] + 1
    return float(total[-1, -1] / steps[-1, -1])


def _embedding(audio: np.ndarray) -> np.ndarray:
    """A voice in 26 numbers: mean and logarithm of the spread of each cepstrum."""
    c = cepstra(audio)
    return np.concatenate((c.mean(0), np.log(c.std(0) + 1e-3)))


def speaker_centres(corpus: Corpus, clips: int = 60) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(mean embedding of each speaker's training clips, the spread within speakers)."""
    clouds = {
        speaker: np.stack([_embedding(corpus.samples(c)) for c in corpus.of("train") if c.speaker == speaker][:clips])
        for speaker in SPEAKERS
    }
    spread = np.sqrt(np.mean([cloud.var(0) for cloud in clouds.values()], axis=0)) + 1e-6
    return {speaker: cloud.mean(0) for speaker, cloud in clouds.items()}, spread


def nearest(audio: np.ndarray, centres: tuple[dict[str, np.ndarray], np.ndarray]) -> str:
    """The speaker whose centre is nearest, in units of the spread."""
    own = _embedding(audio)
    return min(centres[0], key=lambda speaker: float(np.linalg.norm((own - centres[0][speaker]) / centres[1])))


def _speaker_of(system: str, work: Path, corpus: Corpus, voice: Path | None, seed: int) -> Callable[[Clip], np.ndarray]:
    if system == "flite":
        return corpus.samples
    if system == "codec":
        codec = trained_codec(work, unfinished=True)

        def through(clip: Clip) -> np.ndarray:
            codes = torch.from_numpy(encode(codec, corpus.samples(clip)))[None]
            with torch.inference_mode():
                return codec.decode(codes)[0, lag(codec.config) :].numpy()

        return through
    engine = ReferenceEngine(*load_weights(voice or work / "voice.safetensors"))
    return lambda clip: by_name(engine, clip.text, clip.speaker, seed)


def by_name(engine: ReferenceEngine, text: str, speaker: str, seed: int) -> np.ndarray:
    """What the engine says when the speaker is chosen by name; float32 [n], at least a tenth of a second."""
    prompt = engine.encode_text(text)
    name = np.zeros((len(prompt), 1), dtype=np.int64)
    name[0] = SPEAKER_TOKENS[speaker]
    frames = list(engine.generate(np.concatenate((prompt[:, :1], name, prompt[:, 1:]), axis=1), seed=seed))
    codes = np.stack(frames, axis=1)[1:] if frames else np.zeros((len(prompt) - 1, 3), dtype=np.int64)
    return engine.decode(codes)[lag(engine.config.codec) :]
