"""What single characters are read as: letters, digits and signs of any script, brought to the few that rules know.

    plain("Zürich – ½ ﬁne ４２ “α”")      -> 'Zurich –  1/2 fine 42 " alpha "'
    foreign("Say 你好 to him.")           -> (Stretch(4, 6, '你好'),)

Latin letters lose their accents or become the ASCII letters they are written with otherwise (ø, ß). A Greek letter by
itself is a symbol and has a name. Letters of other scripts have no reading for a voice that speaks English.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

__all__ = ["Stretch", "first_places", "foreign", "plain"]


class Stretch(NamedTuple):
    """A piece of a text: text[start:end]."""

    start: int
    end: int
    text: str


_READINGS = {
    **dict.fromkeys("“”„‟«»‹›″＂「」『』《》〈〉", '"'),
    **dict.fromkeys("‘’‚‛′ʼʹ´`＇ʻ", "'"),
    **dict.fromkeys("‐‑⁃−﹣－", "-"),
    **dict.fromkeys("―⸺⸻", "—"),
    **dict.fromkeys("•‣◦▪▫●○■□∙⦁․", ", "),
    **dict.fromkeys("。｡।॥።։۔", "."),
    **dict.fromkeys("、､،؛；︔", ","),
    **dict.fromkeys("·⋅・", ", "),
    **dict.fromkeys("\u115f\u1160\u3164\uffa0", ""),  # Hangul fillers: letters by category, though nothing is there
    **dict.fromkeys("؟⁇‽՞", "?"),
    **dict.fromkeys("¿¡", " "),
    **dict.fromkeys("【】〔〕〖〗", ","),
    "…": "...", "º": "°", "ª": "a", "⁄": "/", "∕": "/", "∗": "*", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE",
    "œ": "oe", "Œ": "OE", "ß": "ss", "ẞ": "SS", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "th", "Ð": "Th",
    "þ": "th", "Þ": "Th", "ħ": "h", "ı": "i", "ŋ": "ng", "Ŋ": "Ng", "ĸ": "k", "ŧ": "t", "ſ": "s", "ƒ": "f",
    "ə": "e", "Ə": "E", "©": " copyright ", "®": " registered ", "™": " trademark ", "§": " section ",
    "¶": " paragraph ", "№": " number ", "℠": " service mark ", "∞": " infinity ", "∑": " sum ", "∫": " integral ",
    "∂": " partial ", "∈": " in ", "→": " to ", "¬": " not ", "∴": " therefore ", "\u2126": "Ω", "¼": " 1/4",
    "½": " 1/2", "¾": " 3/4",
}  # fmt: skip
_RAISED = re.compile(r"(?:(?<=[0-9)])|(?<=\b[A-Za-z]))([⁺⁻]?)([⁰¹²³⁴⁵⁶⁷⁸⁹]+)")  # behind words they are notes
_LATIN = re.compile(r"LATIN (?:SMALL|CAPITAL) LETTER ([A-Z]{1,2})(?: WITH .*)?")
_SAME = frozenset("€£¥₩₹₽₺₫₪₱₴₦₿×÷±≈≤≥≠√∝‰°–—µΩ²³¢") | set(map(chr, range(128)))


def plain(text: str) -> str:
    """The text in ASCII, signs that rules know (`_SAME`) and, as they are, characters that have no reading."""
    text = text.replace("`", "'")
    if text.isascii():
        return text
    text = re.sub(r"(?<=\d)( ?)μ(?=[A-Za-z]\b)", r"\1µ", text)  # the Greek letter for the sign of micro
    text = _RAISED.sub(_power, text)
    text = re.sub(r"(?:(?<=\d)|(?<=\b[A-Za-z])) ?[·⋅] ?(?=\d|[A-Za-z]\b)", "×", text).translate(_TABLE)
    text = re.sub(r"(?<!\d)(?<!\d )Ω", " omega ", text)  # ohms are counted
    return re.sub(r"µ(?![A-Za-z])", " mu ", text)


def foreign(text: str) -> tuple[Stretch, ...]:
    """The stretches whose letters a reader of English cannot read, with the digits and marks that stand in them."""
    if text.isascii():
        return ()
    kinds = text.translate(_KINDS)
    if "f" not in kinds and "gg" not in kinds:
        return ()
    kinds = re.sub("g{2,}", lambda word: "f" * len(word[0]), kinds)
    found = re.finditer("[dg]*(?:f[^r]*f|f)[dg]*", kinds)
    return tuple(Stretch(m.start(), m.end(), text[m.start() : m.end()]) for m in found)


def first_places(text: str, readings: set[str]) -> tuple[Stretch, ...]:
    """Where the text first has what is read as each of these characters, in order; nothing for what it has not."""
    found: dict[str, Stretch] = {}
    for place, char in enumerate(text):
        for each in readings.intersection(char.translate(_TABLE).lower()):
            found.setdefault(each, Stretch(place, place + 1, char))
    return tuple(dict.fromkeys(sorted(found.values())))


def _power(raised: re.Match[str]) -> str:
    """A square or a cube stays, since units have them; other powers as 10^-3."""
    if raised[0] in ("²", "³"):
        return raised[0]
    return f"^{'-' if raised[1] == '⁻' else ''}{unicodedata.normalize('NFKC', raised[2])}"


def _reading(char: str) -> str:
    """What stands for a character; itself if nothing does."""
    if char in _READINGS:
        return _READINGS[char]
    if char in _SAME:
        return char
    category = unicodedata.category(char)
    if char.isspace() or category in ("Zs", "Zl", "Zp"):
        return " "
    if category == "Nd":
        return str(unicodedata.digit(char))
    if category in ("Cf", "Mn", "Me"):  # joiners, direction, accents: they change a neighbour, or nothing
        return ""
    if name := _greek_name(char):
        return f" {name} "
    if letters := _LATIN.fullmatch(unicodedata.name(char, "")):
        return letters[1] if char.isupper() else letters[1].lower()
    other = unicodedata.normalize("NFKD", char)
    reading = "".join(map(_reading, other)) if other != char else char
    if not reading.strip() or any(c not in _SAME for c in reading):
        return char
    return f" {reading}" if "⁄" in other else reading


def _greek_name(char: str) -> str:
    """ "alpha" for α; empty for others, and for those with accents, which are of Greek words."""
    name = re.fullmatch(r"GREEK (?:SMALL|CAPITAL) LETTER (?:FINAL )?([A-Z]+)", unicodedata.name(char, ""))
    return {"lamda": "lambda"}.get(found := name[1].lower(), found) if name else ""


def _kind(char: str) -> str:
    """r: can be read, d: a digit, g: a Greek letter, f: a letter or number that cannot be read; else a space."""
    category = unicodedata.category(char)
    if category == "Nd":
        return "d"
    if _greek_name(char):
        return "g"
    if category[0] not in "LN" or not (reading := _reading(char)):
        return " "
    if unicodedata.name(char, "").startswith("GREEK"):  # with accents: a word's
        return "f"
    return "r" if any(c in _SAME for c in reading) or unicodedata.digit(char, None) is not None else "f"


class _Lazy(dict[int, str]):
    """A table for str.translate that is filled as characters are met: there are 150,000."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, code: int) -> str:
        return self.setdefault(code, self._function(chr(code)))  # type: ignore[operator]


_TABLE = _Lazy(_reading)
_KINDS = _Lazy(_kind)
