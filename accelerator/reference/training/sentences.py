"""The sentences of the corpus, the same for the same seed: dictionary prose and templates, as plain spoken words.

WordNet's example sentences and definitions bring natural grammar and a vocabulary of tens of thousands of words; the
templates bring what people ask a voice to say: numbers, dates, times, prices, questions, greetings, small talk.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import ReferenceEngineError
from ..spoken import spoken
from .everyday import templates

__all__ = ["SPLITS", "WORDNET", "Sentence", "plan", "wordnet"]

WORDNET = Path("/usr/share/wordnet")  # Debian package wordnet-base
SPLITS = {"heldout": 0.04, "valid": 0.02}  # shares; the rest is for training
_SHORTEST, _LONGEST = 8, 150  # characters
_LONGER = 0.35  # how often one more sentence follows in the same breath
_MIX = {"example": 0.45, "definition": 0.2, "template": 0.35}


@dataclass(frozen=True)
class Sentence:
    """`text` is already plain words. `name` is unique, and another's as soon as the text changes."""

    name: str
    kind: str
    split: str
    speaker: str
    text: str


def plan(count: int, speakers: tuple[str, ...], *, seed: int = 0, source: Path = WORDNET) -> list[Sentence]:
    """`count` different sentences over the speakers in turn. A longer plan begins with the shorter one's sentences.

    A text's split follows from its own hash, so that it can never be in two of them. Raises ReferenceEngineError
    without WordNet.
    """
    if not (source / "data.noun").is_file():
        raise ReferenceEngineError(f"there is no WordNet in {source}: install the Debian package wordnet-base")
    streams = {
        "example": _shuffled(wordnet("example", source), seed),
        "definition": _shuffled(wordnet("definition", source), seed + 1),
        "template": templates(seed + 2),
    }
    order = random.Random(seed + 3)
    kinds, weights = list(_MIX), list(_MIX.values())
    seen: set[str] = set()
    chosen: list[Sentence] = []
    while len(chosen) < count:
        kind = order.choices(kinds, weights)[0]
        pieces = [_ended(next(streams[kind], None) or next(streams["template"]))]
        while order.random() < _LONGER:
            pieces.append(_ended(next(streams[order.choices(kinds, weights)[0]], "")))
        text = " ".join(pieces).strip()
        if not _SHORTEST <= len(text) <= _LONGEST or " " not in text or text in seen:
            continue
        seen.add(text)
        speaker = speakers[len(chosen) % len(speakers)]
        chosen.append(Sentence(f"{len(chosen):06d}-{_digest(text).hex()[:8]}", kind, _split(text), speaker, text))
    return chosen


def _ended(raw: str) -> str:
    text = spoken(raw)
    return text if text[-1:] in (".", "?", "!", "") else f"{text}."


def _split(text: str) -> str:
    place = int.from_bytes(_digest(text)[:4], "big") / 2**32
    for split, share in SPLITS.items():
        if place < share:
            return split
        place -= share
    return "train"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _shuffled(texts: Iterable[str], seed: int) -> Iterator[str]:
    kept = list(texts)
    random.Random(seed).shuffle(kept)
    return iter(kept)


def wordnet(kind: str, source: Path = WORDNET) -> Iterator[str]:
    """All example sentences ("example"), or all definitions, of WordNet's four files."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (source / f"data.{part}").read_text(encoding="latin-1").splitlines():
            if line.startswith("  ") or " | " not in line:  # the licence on top
                continue
            gloss = line.split(" | ", 1)[1]
            quoted = re.findall(r'"([^"]+)"', gloss)
            if kind == "example":
                yield from (text.replace("`", "'") for text in quoted)
            elif definition := re.sub(r"\([^)]*\)", "", gloss.split('"')[0]).split(";")[0].replace("`", "'").strip():
                yield definition
