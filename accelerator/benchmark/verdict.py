"""From what was heard of two voices to a verdict on the second: sentence by sentence, with 95 % intervals.

A voice passes where its word error rate is at most half a point above the original's and its DNSMOS at most 0.03 below,
each with the far end of the interval of the paired differences. It fails where an interval lies beyond its bar as a
whole. Otherwise more sentences are needed to know.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

__all__ = ["ENOUGH", "LESS_OPINION", "MORE_ERRORS", "Figure", "Heard", "Verdict", "compare", "spoken_words", "verdict"]

MORE_ERRORS = 0.005  # of the words
LESS_OPINION = -0.03  # of DNSMOS, from 1 to 5
ENOUGH = 200  # sentences: without a difference in n of them, up to 3 / n of all may still have one
_FEWEST = 20  # of fewer a bootstrap says too little of their spread to condemn anything

Figure = tuple[float, float, float]  # the value, and the ends of its 95 % interval
Verdict = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True)
class Heard:
    """One sentence. transcripts, errors: of each recogniser; opinion: DNSMOS; similarity: to the original, -1 to 1."""

    text: str
    words: int
    transcripts: Mapping[str, str]
    errors: Mapping[str, int]
    opinion: float
    similarity: float | None = None


def spoken_words(text: str) -> list[str]:
    """What is compared: words in small letters without punctuation; a letter of a script without spaces is a word."""
    letters = []
    for letter in unicodedata.normalize("NFKC", text).casefold():
        if letter in "'’":  # "don't" is a word, and recognisers write both
            continue
        if unicodedata.category(letter)[0] in "PSZC":
            letters.append(" ")
        else:
            letters.append(f" {letter} " if _has_no_spaces(letter) else letter)
    return "".join(letters).split()


def compare(ours: Sequence[Heard], original: Sequence[Heard] | None, seed: int = 0) -> dict[str, Any]:
    """The figures of a voice, and where there is an original `more`: those of the differences to it."""
    recognisers = list(ours[0].errors)
    counted = np.array([[*(s.errors[r] for r in recognisers), s.words, s.opinion] for s in ours], np.float64)
    found = _figures(counted, recognisers, seed)
    found["similarity"] = None
    if original is None:
        return {**found, "more": None}
    theirs = np.array([[*(s.errors[r] for r in recognisers), 0, s.opinion] for s in original], np.float64)
    alike = [s.similarity for s in ours if s.similarity is not None]
    if alike:
        found["similarity"] = _interval(np.array(alike)[:, None], lambda rows: float(rows.mean()), seed)
    return {**found, "more": _figures(counted - theirs, recognisers, seed)}


def verdict(more: Mapping[str, Any], sentences: int) -> Verdict:
    """On the differences that `compare` found; the first recogniser's errors count."""
    _, errors_low, errors_high = next(iter(more["word_error_rate"].values()))
    _, opinion_low, opinion_high = more["opinion"]
    if sentences >= _FEWEST and (errors_low > MORE_ERRORS or opinion_high < LESS_OPINION):
        return "fail"
    if sentences >= ENOUGH and errors_high <= MORE_ERRORS and opinion_low >= LESS_OPINION:
        return "pass"
    return "undecided"


def _figures(table: np.ndarray, recognisers: Sequence[str], seed: int) -> dict[str, Any]:
    """table: rows of errors by each recogniser, words, opinion."""

    def rate(column: int) -> Callable[[np.ndarray], float]:
        return lambda rows: float(rows[:, column].sum() / rows[:, -2].sum())

    return {
        "word_error_rate": {name: _interval(table, rate(i), seed) for i, name in enumerate(recognisers)},
        "opinion": _interval(table, lambda rows: float(rows[:, -1].mean()), seed),
    }


def _interval(table: np.ndarray, figure: Callable[[np.ndarray], float], seed: int) -> Figure:
    from ..reference.measures import bootstrap

    return bootstrap(table, figure, seed)


def _has_no_spaces(letter: str) -> bool:
    """Whether it is of Chinese, Japanese, Thai, Lao, Khmer or Burmese."""
    name = unicodedata.name(letter, "")
    return name.startswith(("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"))
