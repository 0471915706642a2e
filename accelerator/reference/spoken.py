"""Everyday English text -> the words a reader would say: lower case letters, apostrophes, and the marks , . ? !

    spoken("Dr. Lee paid $3.50 at 9:05 on 2024-03-01.")
    -> "doctor lee paid three dollars and fifty cents at nine oh five on march first, twenty twenty four."

A trained voice has read nothing else, so what it is given passes through here first. Numbers become words by `inflect`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any

__all__ = ["spoken"]

MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_WORDS = {
    "mr": "mister", "mrs": "missus", "ms": "miss", "dr": "doctor", "prof": "professor", "st": "saint", "jr": "junior",
    "sr": "senior", "vs": "versus", "etc": "et cetera", "e.g": "for example", "i.e": "that is", "approx": "about",
    "dept": "department", "est": "established", "inc": "incorporated", "ltd": "limited", "co": "company",
    "gen": "general", "gov": "governor", "capt": "captain", "lt": "lieutenant", "sgt": "sergeant", "rev": "reverend",
    "mt": "mount", "ft": "feet", "fig": "figure", "vol": "volume", "jan": "january", "feb": "february", "apr": "april",
    "aug": "august", "sept": "september", "oct": "october", "nov": "november", "dec": "december",
}  # fmt: skip
_UNITS = {
    "km": "kilometer", "m": "meter", "cm": "centimeter", "mm": "millimeter", "kg": "kilogram", "g": "gram",
    "mg": "milligram", "l": "liter", "ml": "milliliter", "mph": "mile per hour", "kph": "kilometer per hour",
    "s": "second", "ms": "millisecond", "min": "minute", "h": "hour", "hz": "hertz", "khz": "kilohertz",
    "mhz": "megahertz", "ghz": "gigahertz", "kb": "kilobyte", "mb": "megabyte", "gb": "gigabyte", "tb": "terabyte",
    "lb": "pound", "lbs": "pound", "oz": "ounce", "w": "watt", "kw": "kilowatt", "v": "volt",
}  # fmt: skip
_MONEY = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent"), "¥": ("yen", "sen")}
_SYMBOLS = {
    "&": " and ",
    "%": " percent",
    "@": " at ",
    "+": " plus ",
    "=": " equals ",
    "°C": " degrees celsius ",
    "°F": " degrees fahrenheit ",
    "°": " degrees ",
    "#": " number ",
}
_NUMBER = r"\d[\d,]*(?:\.\d+)?"


def spoken(text: str) -> str:
    """The words of `text`; empty if there is nothing to say."""
    text = unicodedata.normalize("NFC", text).replace("’", "'").replace("‘", "'")
    text = re.sub(r"\s+[-–—]+\s+|—|--+", ", ", text)
    for pattern, replace in _RULES:
        text = re.sub(pattern, replace, text)
    for symbol, words in _SYMBOLS.items():
        text = text.replace(symbol, words)
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    plain = re.sub(r"[;:()\[\]]", ",", plain)
    plain = re.sub(r"[^a-z',.?! ]+", " ", plain)
    plain = re.sub(r"(?<![a-z])'|'(?![a-z])", " ", plain)  # quotes, not apostrophes
    plain = re.sub(r"\s*([,.?!])[\s,.?!]*", lambda mark: _strongest(mark.group()) + " ", plain)
    return re.sub(r" +", " ", plain).lstrip(" ,.?!").rstrip(" ,")


def _strongest(marks: str) -> str:
    return next(mark for mark in "?!.," if mark in marks)


@cache
def _engine() -> Any:
    import inflect  # slow to import, and most texts have no numbers

    return inflect.engine()


def cardinal(digits: str) -> str:
    """ "1,234.5" -> "one thousand two hundred thirty four point five"; long strings of digits one by one."""
    whole, _, fraction = digits.replace(",", "").partition(".")
    if len(whole) > 12 or (len(whole) > 1 and whole[0] == "0"):
        return " ".join(_engine().number_to_words(digit) for digit in whole + fraction)
    words = _plain(_engine().number_to_words(whole, andword=""))
    return words + (" point " + " ".join(_engine().number_to_words(digit) for digit in fraction) if fraction else "")


def ordinal(digits: str) -> str:
    return _plain(_engine().number_to_words(_engine().ordinal(digits.replace(",", "")), andword=""))


def year(digits: str) -> str:
    """ "1905" -> "nineteen oh five"."""
    high, low = int(digits[:2]), int(digits[2:])
    if low == 0:
        return cardinal(digits) if high % 10 == 0 else f"{cardinal(str(high))} hundred"
    if high % 10 == 0 and low < 10:
        return cardinal(digits)
    return f"{cardinal(str(high))} {'oh ' if low < 10 else ''}{cardinal(str(low))}"


def _plain(words: str) -> str:
    return re.sub(r"[-,\s]+", " ", words).strip()


def _counted(digits: str, unit: str) -> str:
    return f"{cardinal(digits)} {unit if digits == '1' else _engine().plural(unit)}"


def _money(match: re.Match[str]) -> str:
    big, small = _MONEY[match[1]]
    whole, _, cents = match[2].partition(".")
    if match[3]:
        return f"{cardinal(match[2])} {match[3]} {_engine().plural(big)}"
    if len(cents) != 2:
        return _counted(match[2], big)
    parts = [_counted(whole, big)] if int(whole.replace(",", "")) or not int(cents) else []
    return " and ".join([*parts, *([_counted(str(int(cents)), small)] if int(cents) else [])])


def _clock(match: re.Match[str]) -> str:
    hour, minute, half = match[1], match[2], (match[3] or "").replace(".", "").lower()
    minutes = {"00": "" if half else "o'clock"}.get(
        minute, f"{'oh ' if minute[0] == '0' else ''}{cardinal(str(int(minute)))}"
    )
    return " ".join([cardinal(str(int(hour))), minutes, *half])


def _unit(match: re.Match[str]) -> str:
    unit = _UNITS[match[2].lower()]
    first, *rest = unit.split(" ", 1)
    return (
        " ".join([_counted(match[1], first), *rest]) if not unit.endswith("hertz") else f"{cardinal(match[1])} {unit}"
    )


def _fraction(match: re.Match[str]) -> str:
    top, bottom = int(match[1]), int(match[2])
    if not 2 <= bottom <= 20:
        return f"{cardinal(match[1])} over {cardinal(match[2])}"
    name = {2: "half", 4: "quarter"}.get(bottom) or ordinal(match[2])
    return f"{cardinal(match[1])} {name if top == 1 else {2: 'halves'}.get(bottom, name + 's')}"


def _capitals(match: re.Match[str]) -> str:
    """Initials are spelled; what can be read as a word is read."""
    word = match[0]
    return " ".join(word) if len(word) <= 3 or not re.search("[AEIOUY]", word) else word


_RULES: list[tuple[str, Callable[[re.Match[str]], str]]] = [
    (r"\b(\d{3})-(\d{3,4})(?:-(\d{4}))?\b", lambda m: ", ".join(" ".join(map(cardinal, g)) for g in m.groups() if g)),
    (r"\b(\d{4})-(\d\d)-(\d\d)\b", lambda m: f"{MONTHS[(int(m[2]) - 1) % 12]} {ordinal(str(int(m[3])))}, {year(m[1])}"),
    (r"\b(\d{1,2}):(\d\d)(?:\s?([aApP]\.?[mM]\b\.?))?", _clock),
    (r"([$£€¥])(\d[\d,]*(?:\.\d+)?)(?:\s(hundred|thousand|million|billion|trillion))?", _money),
    (r"(?i)\b(e\.g|i\.e)\b\.?", lambda m: _WORDS[m[1].lower()]),
    (r"(?i)\bno\.\s?(?=\d)", lambda m: "number "),
    (rf"(?i)\b({'|'.join(word for word in _WORDS if '.' not in word)})\.", lambda m: _WORDS[m[1].lower()]),
    (r"\b((?:[A-Za-z]\.){2,})", lambda m: " ".join(m[1].replace(".", ""))),
    (rf"\b({'|'.join(m.title() for m in MONTHS)})\s(\d{{1,2}})\b(?!:)", lambda m: f"{m[1]} {ordinal(m[2])}"),
    (r"(?i)\b(\d[\d,]*)(?:st|nd|rd|th)\b", lambda m: ordinal(m[1])),
    (r"\b(\d{1,3})/(\d{1,3})\b", _fraction),
    (rf"(?i)\b({_NUMBER})\s?({'|'.join(sorted(_UNITS, key=len, reverse=True))})\b", _unit),
    (r"(?<![\d,.])(1[1-9]\d\d|20\d\d)(?![\d]|,\d|\.\d)", lambda m: year(m[1])),
    (rf"(?:(?<=\s)|^)[-−](?={_NUMBER})", lambda m: "minus "),
    (_NUMBER, lambda m: f" {cardinal(m[0].rstrip(','))}{',' if m[0].endswith(',') else ''} "),
    (r"\b[A-Z]{2,5}\b", _capitals),
]  # fmt: skip
