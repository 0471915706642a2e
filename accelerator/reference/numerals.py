"""Numbers in digits -> words, by the library `normt2s`."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from normt2s import Normalizer

__all__ = ["CURRENCIES", "MONTHS", "cardinal", "digits", "fraction", "library", "ordinal", "plural", "year"]

MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
CURRENCIES = {
    "$": ("dollar", "dollars"), "£": ("pound", "pounds"), "€": ("euro", "euros"), "¥": ("yen", "yen"),
    "₹": ("rupee", "rupees"), "₩": ("won", "won"), "₽": ("ruble", "rubles"), "₺": ("lira", "lira"),
    "₫": ("dong", "dong"), "₪": ("shekel", "shekels"), "₱": ("peso", "pesos"), "₴": ("hryvnia", "hryvnias"),
    "₦": ("naira", "naira"), "₿": ("bitcoin", "bitcoins"),
}  # fmt: skip
_UNITS = {  # what the library lacks, or gets wrong
    "mph": "mile per hour|miles per hour", "kph": "kilometer per hour|kilometers per hour",
    "rpm": "revolution per minute|revolutions per minute", "fps": "frame per second|frames per second",
    "kbps": "kilobit per second|kilobits per second", "Mbps": "megabit per second|megabits per second",
    "Gbps": "gigabit per second|gigabits per second", "kb": "kilobyte|kilobytes", "mb": "megabyte|megabytes",
    "gb": "gigabyte|gigabytes", "tb": "terabyte|terabytes", "hr": "hour|hours", "hrs": "hour|hours",
    "mins": "minute|minutes", "sec": "second|seconds", "secs": "second|seconds", "yrs": "year|years",
    "KG": "kilogram|kilograms", "Kg": "kilogram|kilograms", "KM": "kilometer|kilometers",
    "tsp": "teaspoon|teaspoons", "tbsp": "tablespoon|tablespoons", "gal": "gallon|gallons", "ha": "hectare|hectares",
    "hz": "hertz|hertz", "khz": "kilohertz|kilohertz", "mhz": "megahertz|megahertz", "ghz": "gigahertz|gigahertz",
    "mpg": "mile per gallon|miles per gallon", "dpi": "dot per inch|dots per inch",
    "psi": "pound per square inch|pounds per square inch", "ppm": "part per million|parts per million",
    "bps": "basis point|basis points", "sq ft": "square foot|square feet", "sq mi": "square mile|square miles",
    "sq m": "square meter|square meters", "fl oz": "fluid ounce|fluid ounces",
    "v": "volt|volts", "w": "watt|watts", "kw": "kilowatt|kilowatts", "¢": "cent|cents",
}  # fmt: skip
_LONGEST = 15  # digits of a number that is not read digit by digit


@cache
def library() -> Normalizer:
    """The library's reader of English, with the currencies and units that it lacks."""
    made = Normalizer("en")
    made.lexicon.abbreviations.clear()  # "fig." is a fruit, too: see `shortforms`
    for sign, words in CURRENCIES.items():
        if sign not in made.lexicon.currencies:
            made.add_currency(sign, words)
    for symbol, forms in _UNITS.items():
        made.add_unit(symbol, *forms.split("|"))
    made.add_symbol("≈", "approximately")
    return made


def _english() -> Any:
    return library().lang


def cardinal(number: str) -> str:
    """ "1234" -> "one thousand two hundred thirty-four"; long ones, and those with a nought in front, as digits."""
    if len(number) > _LONGEST or (len(number) > 1 and number[0] == "0"):
        return digits(number)
    return str(_english().cardinal(int(number)))


def ordinal(number: str) -> str:
    """ "22" -> "twenty-second"."""
    return str(_english().ordinal(int(number)))


def digits(number: str) -> str:
    """Digit by digit; what is between digits is left out."""
    return str(_english().digits(re.sub(r"[^0-9]", "", number)))


def year(number: str) -> str:
    """ "1905" -> "nineteen oh five"; two digits, as behind a dash, as "oh five"."""
    if len(number) == 4:
        return str(_english().year(int(number)))
    return f"oh {digits(number[1])}" if number[0] == "0" else cardinal(number)


def fraction(whole: str, top: str, bottom: str) -> str:
    """ "2", "3", "4" -> "two and three quarters"."""
    return str(_english().mixed_fraction(int(whole), int(top), int(bottom)))


def plural(words: str) -> str:
    """ "nineteen ninety" -> "nineteen nineties"."""
    if words.endswith("y"):
        return words[:-1] + "ies"
    return words + ("es" if words.endswith("x") else "s")
