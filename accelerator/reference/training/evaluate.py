"""How good a voice is, on sentences of the corpus that it has never seen, against flite's own clips (see `measures`).

`accelerator bench quality` measures the same of a finished voice, without a corpus, and at each precision.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..engine import ReferenceEngine
from ..errors import ReferenceEngineError
from ..measures import Recogniser, Speakers, scored, summarise, words
from ..weights import load_weights
from .codec import trained_codec
from .corpus import SPEAKERS, Clip, Corpus, open_corpus
from .pause import Pause
from .tokens import encode

__all__ = ["audible", "evaluate", "held_out"]

_KNOWN_CLIPS = 60  # of each speaker, that say what it sounds like
_REFERENCE_SECONDS = (3.0, 6.0)


def evaluate(
    work: Path,
    *,
    sentences: int = 120,
    system: str = "flite",
    voice: Path | None = None,
    by_reference: bool = False,
    seed: int = 0,
    pause: Pause,
) -> dict[str, Any]:
    """Score a system ("flite", "codec", "voice"), write DIR/evaluation-SYSTEM.json and answer its summary.

    by_reference: the voice is given held-out clips of the speakers to imitate instead of their names. Raises
    ReferenceEngineError without corpus, model or recogniser.
    """
    torch.set_num_threads(1)
    corpus = open_corpus(work)
    recogniser = Recogniser()
    speak = _speaker_of(system, work, corpus, voice, by_reference, seed)
    known = {s: [c for c in corpus.of("train") if c.speaker == s][:_KNOWN_CLIPS] for s in SPEAKERS}
    speakers = Speakers({s: [corpus.samples(c) for c in clips] for s, clips in known.items()})
    scores = []
    for clip in held_out(corpus, sentences, recogniser.knows, seed):
        pause.wait()
        what = {"name": clip.name, "speaker": clip.speaker, "text": clip.text}
        scores.append(
            scored(audible(speak(clip)), corpus.samples(clip), **what, recognise=recogniser, speakers=speakers)
        )
    summary = summarise(scores, seed)
    text = json.dumps({"system": system, **summary, "scores": [asdict(score) for score in scores]}, indent=1)
    name = f"evaluation-{system}{'-by-reference' if by_reference else ''}.json"
    (work / name).write_text(text + "\n", encoding="utf-8")
    return summary


def held_out(corpus: Corpus, count: int, known: Callable[[str], bool], seed: int = 0) -> list[Clip]:
    """Held-out clips of at least four words, all of which the recogniser knows."""
    fit = [c for c in corpus.of("heldout") if len(words(c.text)) >= 4 and known(c.text)]
    if len(fit) < count:
        raise ReferenceEngineError(f"there are {len(fit)} held-out sentences that fit, not {count}: make more data")
    chosen = np.random.default_rng(seed).permutation(len(fit))[:count]
    return [fit[i] for i in sorted(chosen)]


def audible(audio: np.ndarray) -> np.ndarray:
    """At least a tenth of a second, so that a voice that says nothing can be judged."""
    return np.concatenate((audio, np.zeros(max(0, 1600 - audio.size), dtype=np.float32)))


def _speaker_of(
    system: str, work: Path, corpus: Corpus, voice: Path | None, by_reference: bool, seed: int
) -> Callable[[Clip], np.ndarray]:
    if system == "flite":
        return corpus.samples
    if system == "codec":
        codec = trained_codec(work, unfinished=True)

        def through(clip: Clip) -> np.ndarray:
            codes = torch.from_numpy(encode(codec, corpus.samples(clip)))[None]
            with torch.inference_mode():
                return codec.decode(codes)[0, codec.config.lag :].numpy()

        return through
    engine = ReferenceEngine(*load_weights(voice or work / "voice.safetensors"))
    if not by_reference:
        return lambda clip: engine.synthesize(clip.text, speaker=clip.speaker, seed=seed)[0]

    def imitate(clip: Clip) -> np.ndarray:
        low, high = _REFERENCE_SECONDS
        fit = [c for c in corpus.of("heldout") if c.speaker == clip.speaker and low < c.seconds < high and c != clip]
        other = fit[int(clip.sha256[:8], 16) % len(fit)]
        return engine.synthesize(clip.text, corpus.samples(other), other.text, seed=seed)[0]

    return imitate
