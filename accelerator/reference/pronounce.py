"""Words -> the sounds they are spoken with, one character each, from the CMU Pronouncing Dictionary.

    pronounced("the cat, by mistral.") -> "JC TB4, GF VQ241CU."

Sounds are the dictionary's 39 (ARPAbet without stress) in the capitals, digits and marks of `SYMBOLS`. A word that is
not in the dictionary stays in its letters, which a voice learns to read, too: see `training.language_model`.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path

__all__ = ["PHONES", "SYMBOLS", "known", "pronounced", "write_dictionary"]

PHONES = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH", "K",
    "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
SYMBOLS = dict(zip(PHONES, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@#$", strict=True))
_FILE = "pronunciations.txt.gz"


def pronounced(words: str, *, spell: Callable[[str], bool] | None = None) -> str:
    """The words of `spoken.spoken` as sounds; what is between them stays. spell: which known words to leave."""
    dictionary = _dictionary()

    def sounds(match: re.Match[str]) -> str:
        word = match.group()
        return word if spell is not None and spell(word) else dictionary.get(word, word)

    return re.sub(r"[a-z]+(?:'[a-z]+)*", sounds, words)


def known(word: str) -> bool:
    """Whether the dictionary has a word, in lower case."""
    return word in _dictionary()


@cache
def _dictionary() -> dict[str, str]:
    """Word -> symbols."""
    packed = files(__package__).joinpath("voices", _FILE).read_bytes()
    lines = gzip.decompress(packed).decode("ascii").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def write_dictionary(source: Path, target: Path) -> int:
    """Pack a dictionary of lines `word P H O N E S`; the first pronunciation of a word counts. How many words."""
    entries: dict[str, str] = {}
    for line in source.read_text(encoding="utf-8").splitlines():
        word, *phones = line.split()
        if re.fullmatch(r"[a-z]+(?:'[a-z]+)*", word):
            entries.setdefault(word, "".join(SYMBOLS[phone] for phone in phones))
    text = "".join(f"{word} {symbols}\n" for word, symbols in sorted(entries.items()))
    target.write_bytes(gzip.compress(text.encode("ascii"), 9, mtime=0))
    return len(entries)
