"""What has digits or signs of arithmetic -> words.

    quantities("$1.5M in 2019–2023") -> "one point five million dollars in twenty nineteen to twenty twenty-three"

The library `normt2s` reads numbers, money, units, times and sums. The rules here bring what it would misread into forms
that it reads, or into words: dates, years, telephone numbers, ranges, codes (docs/voice.md has what it gets right by
itself).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from .numerals import CURRENCIES, MONTHS, cardinal, digits, fraction, library, ordinal, plural, year

__all__ = ["quantities"]

_COUNTRIES = {"US": "u s", "A": "australian", "AU": "australian", "C": "canadian", "CA": "canadian",
              "NZ": "new zealand", "HK": "hong kong", "S": "singapore", "NT": "taiwan"}  # fmt: skip
_CODES = {"USD": "dollars", "EUR": "euros", "GBP": "pounds", "JPY": "yen", "CHF": "swiss francs", "CNY": "yuan",
          "INR": "rupees", "CAD": "canadian dollars", "AUD": "australian dollars", "SEK": "swedish kronor"}  # fmt: skip
_SCALES = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion", "t": "trillion",
           "tn": "trillion"}  # fmt: skip


def quantities(text: str) -> str:
    """The text without digits and signs of arithmetic. What stands for nothing stays as it is."""
    if not _SIGNS.search(text):
        return text
    for signs, rules in _RULES:
        if any(sign in text for sign in signs):
            for pattern, replace in rules:
                text = pattern.sub(replace, text)
    text = library().normalize(text)
    text = re.sub(r"\ba m\b", "ay m", text)  # the letter, not the article
    text = re.sub(rf"[{''.join(_LEFT)}]", lambda sign: f" {_LEFT[sign[0]]} ", text)
    return re.sub(r"[0-9]+", lambda rest: f" {cardinal(rest[0])} ", text)


# --- Dates ---


def _numeric_date(match: re.Match[str]) -> str:
    """Month first, unless points are between or that cannot be."""
    month, day = int(match[1]), int(match[3])
    if month > 12 or match[2] == ".":
        month, day = day, month
    number = match[4] if len(match[4]) == 4 else f"{20 if match[4] < '50' else 19}{match[4]}"
    return _date(match, month, day, number)


def _iso_date(match: re.Match[str]) -> str:
    return _date(match, int(match[3]), int(match[4]), match[1])


def _date(match: re.Match[str], month: int, day: int, number: str) -> str:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    return f"{MONTHS[month - 1]} {ordinal(str(day))}, {year(number)}"


def _month(name: str) -> str:
    return next(month for month in MONTHS if month.startswith(name[:3].lower()))


def _month_day(match: re.Match[str]) -> str:
    """May 5, May 5-7, 2024."""
    if not 1 <= int(match[2]) <= 31:
        return match[0]
    last = f" to {ordinal(match[3])}" if match[3] else ""
    return f"{_month(match[1])} {ordinal(match[2])}{last}" + (f", {year(match[4])}" if match[4] else "")


def _day_month(match: re.Match[str]) -> str:
    """5 May 2024, 5th of May."""
    if not 1 <= int(match[1]) <= 31:
        return match[0]
    month, day = _month(match[3]), ordinal(match[1])
    return (f"{day} of {month}" if match[2] else f"{month} {day}") + (f" {year(match[4])}" if match[4] else "")


def _clock(match: re.Match[str]) -> str:
    counted = zip(match.groups(), ("hour", "minute", "second"), strict=True)
    hours, minutes, seconds = (f"{cardinal(str(int(n)))} {name}{'' if int(n) == 1 else 's'}" for n, name in counted)
    return f"{hours} {minutes} and {seconds}"


# --- Telephone numbers, codes ---


def _in_groups(match: re.Match[str]) -> str:
    return ("plus " if match[0][0] == "+" else "") + ", ".join(map(digits, re.findall("[0-9]+", match[0])))


def _short_phone(match: re.Match[str]) -> str:
    """555-1234; but 500-1000 is a range."""
    first, last = int(match[1]), int(match[2])
    if match[1][0] != "0" and first % 50 == 0 and last % 100 == 0 and first < last:
        return f"{match[1]} to {match[2]}"
    return _in_groups(match)


def _zip(match: re.Match[str]) -> str:
    return f"{match[1]} {digits(match[2])}" + (f", {digits(match[3])}" if match[3] else "")


def _address(match: re.Match[str]) -> str:
    return " dot ".join(map(digits, match[0].split(".")))


def _letters_digits(match: re.Match[str]) -> str:
    """MP3, A4, B2B, F-16, COVID-19: letters, then a number, perhaps letters again."""
    before, after = ("ay" if letters in ("a", "A") else letters for letters in (match[1], match[3]))
    return f"{before} {cardinal(match[2])} {after}".rstrip()


# --- Money, years, ranges ---


def _money(match: re.Match[str]) -> str:
    """$1.5M, US$5; others are the library's."""
    country, sign, amount, scale = match.groups()
    if not scale and not country:
        return match[0]
    scale = f"{_SCALES.get(scale.lower(), scale)} " if scale else ""
    name = CURRENCIES[sign][0 if amount == "1" and not scale else 1]
    return f"{amount} {scale}{_COUNTRIES[country] + ' ' if country else ''}{name}"


def _range(match: re.Match[str]) -> str:
    return f"{match[1]} to {match[2]}"


def _rising(match: re.Match[str]) -> str:
    """ "10 - 20" is a range; "20 - 10" is the library's, which subtracts."""
    first, last = (float(number.replace(",", "")) for number in match.groups())
    return f"{match[1]} to {match[2]}" if first < last else match[0]


def _over(match: re.Match[str]) -> str:
    """Halves to twentieths and hundredths have names."""
    return match[0] if int(match[2]) <= 20 or match[2] == "100" else f"{match[1]} over {match[2]}"


def _feet(match: re.Match[str]) -> str:
    return f"{match[1]} foot {match[2]}" if match[2] else f"{match[1]} feet"


# --- The rules, in order: signs of which a text must have one, and what is replaced then ---

_Replace: TypeAlias = "str | Callable[[re.Match[str]], str]"

_MONEY = "".join(CURRENCIES)
_LEFT = {sign: names[1] for sign, names in CURRENCIES.items()}  # signs without a number
_LEFT |= {"%": "percent", "°": "degrees", "²": "squared", "³": "cubed", "¢": "cents"}
_SIGNS = re.compile(rf"[0-9{_MONEY}×÷±≈≤≥≠√∝‰°²³%=+<>¢]")  # without one of these there is nothing to do
_N = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?"
_Y = r"(1[0-9]{3}|20[0-9]{2})"
_NTH = r"(?:st|nd|rd|th)"
_MONTH = (
    "(January|February|March|April|May|June|July|August|September|October|November|December"
    r"|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?)"
)
_WEEKDAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
_UNIT = r"(?: ?[ap]\.?m\.?|[%°]C?| ?[kcm]?m| ?kg)?"  # of the first number of a range
_MEASURED = r"[kKMGT]?B|[kcm]?m|kg|ml|Hz|W|mb|gb|px"  # numbers with these are no years

_TABLE: list[tuple[str, list[tuple[str, _Replace]]]] = [
    ("-", [(r"(?<![\w.,-])-(?=\.\d)", "-0")]),
    (",", [  # 1.234,56 and 1,5 as in Europe, 1,00,000 as in India, and lists
        (r"(?<![\d.,])\d{1,2}(?:,\d\d)+,\d{3}(?![\d,])", lambda m: m[0].replace(",", "")),
        (r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d\d?)(?![.,]?\d)", lambda m: f"{m[1].replace('.', '')}.{m[2]}"),
        (rf"(?<![\d.,])(\d+),(\d\d?)(?= ?[a-zA-Z%°{_MONEY}])", r"\1.\2"),
        (r"(?<![\d.,])\d\d?(?:,\d\d?)+(?![\d.,]*\d)", lambda m: m[0].replace(",", ", ")),
    ]),
    ("'", [(r"(?<=\d)'(?=\d{3}(?!\d))", "")]),
    ("T", [(r"(?<=-\d\d)T(?=\d\d:\d\d)", " ")]),
    ("/-.", [
        (rf"(?<![\w/.-]){_Y}([-/.])(\d\d?)\2(\d\d?)(?![\w/-]|\.\d)", _iso_date),
        (rf"(?<![\w/.-])(\d\d?)([-/.])(\d\d?)\2{_Y}(?![\w/-]|\.\d)", _numeric_date),
        (r"(?<![\w/.-])(\d\d?)(/)(\d\d?)/(\d\d)(?![\w/-]|\.\d)", _numeric_date),
    ]),
    ("JFMASOND", [
        (rf"\b{_MONTH} (\d\d?){_NTH}?(?: ?[-–] ?(\d\d?){_NTH}?)?(?:,? {_Y})?(?![\w:/%-]|[.,]\d)", _month_day),
        (rf"(?<![\w.:/-])(\d\d?){_NTH}?( of)? {_MONTH}(?!\w)(?:,? {_Y}(?!\w))?", _day_month),
    ]),
    ("DRPFNK", [
        (rf"(?<!\w)({'|'.join(_CODES)}) ?({_N})(?!\w)", lambda m: f"{m[2]} {_CODES[m[1]]}"),
        (rf"(?<=\d) ?({'|'.join(_CODES)})(?!\w)", lambda m: f" {_CODES[m[1]]}"),
    ]),
    ("/", [
        (r"(?<![\w/])(9/11|50/50|24/7)(?![\w/])", lambda m: " ".join(map(cardinal, m[1].split("/")))),
        (r"(?<=\d)/(month|mo|year|yr|week|day|hour|hr|person|night|page|unit)\b", r" per \1"),
        (r"(?<![\w.,/])(\d{1,4}) (\d\d?)/(\d\d?)(?![\w/])", lambda m: fraction(*m.groups())),
        (r"(?<![\w.,/])(\d{1,4})/(\d{2,4})(?![\w/]|[.,]\d)", _over),
    ]),
    ("+", [(r"(?<![\w.-])\+\d{1,3}(?:[ .-]?\(?\d{1,5}\)?){2,6}(?![\w-])", _in_groups)]),
    ("-.", [
        (r"(?<![\w.-])(?:1[ .-])?\(?\d{3}\)?[ .-]?\d{3}[.-]\d{4}(?![\w-])", _in_groups),
        (r"(?<![\w.-])\d{3}-\d\d-\d{4}(?![\w-])", _in_groups),
        (rf"(?<![\w.{_MONEY}-])(\d{{3}})-(\d{{4}})(?![\w%-])", _short_phone),
        (r"(?<![\w.-])\d+(?:-\d+){3,}(?![\w-])", _in_groups),
        (r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)", _address),
        (r"\b[vV]\.?(?=\d+\.\d)", "version "),
    ]),
    (" ", [
        (r"(?<![\w.-])(?:\d{4}[ -]){3}\d{4}(?![\w-])|(?<![\w.-])0\d{2,4}(?: \d{3,4}){2}(?![\w-])", _in_groups),
        (r"\b([Zz][Ii][Pp]|[Cc]ode|[Pp][Ii][Nn]|[Ee]xt\.|[Ee]xtension)(:? (?:is )?)(\d{3,8})(?![\w,-])",
         lambda m: f"{m[1]}{m[2]}{digits(m[3])}"),
        (r"\b([A-Z]{2}),? (\d{5})(?:-(\d{4}))?(?![\w,-])", _zip),
        (r"\b[Nn]os?\.? (?=\d)", "number "),
    ]),
    (_MONEY, [
        (rf"(?<=[{_MONEY}])(?=\.\d)", "0"),
        (rf"(?<!\w)({'|'.join(_COUNTRIES)})?([{_MONEY}]) ?({_N})"
         r"(?: ?([kKmMbBT]|mn|bn|tn|thousand|million|billion|trillion)\b)?", _money),
        (r"(?<=\d) ?\$(?![\w$])", " dollars"),
        (rf"([{_MONEY}]) ?({_N})[-–](\d[\d,.]*\b)", lambda m: f"{m[2]} to {m[3]} {CURRENCIES[m[1]][1]}"),
    ]),
    ("0123456789", [
        (r"(?<![\w.'-])([A-Za-z]{1,2}|[A-Z]{1,6})(\d{1,4})([A-Za-z]{0,2})(?![\w'])", _letters_digits),
    ]),
    ("-", [
        (r"(?<![\w.'-])([A-Z][A-Za-z]{0,6})-(\d{1,4})([A-Z]?)(?![\w-]|\.\d)", _letters_digits),
        (r"(?<![\w.])([A-Za-z]+)-(?=\d)", r"\1 "),
    ]),
    ("'", [
        (r"(?<!\w)'([1-9]0)s\b", lambda m: plural(cardinal(m[1]))),
        (r"(?<!\w)'(\d\d)(?![\w'])", lambda m: year(m[1])),
        (r"\b(\d\d?)'(?: ?(\d\d?)(?:\"|'')?)?(?![\w'])", _feet),
    ]),
    ("s", [  # decades and other plurals; else seconds
        (r"(?<=\d{4}s)[-–](?=\d{4}s)", " to "),
        (rf"(?<!\w){_Y}(?<=0)'?s\b", lambda m: plural(year(m[1]))),
        (r"\b([Hh]is|[Hh]er|[Tt]heir|[Mm]y|[Yy]our|[Oo]ur|[Ii]ts|[Tt]he|[Ee]arly|[Mm]id|[Ll]ate)([ -])([2-9]0)'?s\b",
         lambda m: f"{m[1]}{m[2]}{plural(cardinal(m[3]))}"),
    ]),
    ("-–/", [(rf"(?<![\w.,/{_MONEY}-]){_Y}[-–/](\d\d|{_Y})(?![\w/-]|[.,]\d)",
              lambda m: f"{year(m[1])} to {year(m[2])}")]),
    ("12", [
        (rf"(?<![\w.,:/{_MONEY}+-])(1[1-9]\d\d|20\d\d)('s)?"
         rf"(?![\w:/°%'×^²³{_MONEY}]|[.,]\d| ?(?:{_MEASURED})\b| ?[€%×]| ?[+=<>×÷±-] ?\d)",
         lambda m: year(m[1]) + (m[2] or "")),
    ]),
    ("s", [
        (rf"(?<![\w.,{_MONEY}-])10(0+)s\b", lambda m: cardinal(f"10{m[1]}").removeprefix("one ") + "s"),
        (rf"(?<![\w.,{_MONEY}-])(\d{{3,}}|[01])'?s\b", lambda m: plural(cardinal(m[1]))),
        (r"(?<=\d)s\b", " s"),
    ]),
    (".", [  # two points, since the library takes one
        (rf"(?<=\d) ?([ap])\.?m\.(?= (?!{_WEEKDAYS}|{_MONTH})[A-Z][a-z']| [AI] )", r" \1m.."),
        (r"(?<![\w.])\.(\d+)", lambda m: f"point {digits(m[1])}"),
    ]),
    (":", [
        (r"(?<![\d:])(\d\d?):(\d\d):(\d\d)(?![\d:])", _clock),
        (r"(?<![\d:.])(\d{1,4}):(\d|\d{3,})(?![\d:])", _range),
    ]),
    ("=", [(r"(?<=\d)-(?=\d+ ?=)", " minus ")]),
    ("–", [(r"(?<![\w.,–-])–(?=\.?\d)", "-")]),
    ("–", [(rf"(?<![\w.,-])([{_MONEY}]?\d[\d,.:]*{_UNIT}) ?–+ ?(?=[{_MONEY}]?\d)", r"\1 to ")]),
    ("-", [
        (rf"(?<![\w.,-])([{_MONEY}]?\d[\d,.:]*{_UNIT})-([{_MONEY}]?\d[\d,.:]*)(?!\w*-\d)", _range),
        (rf"(?<![+=×÷-] )(?<![\w.,-])({_N}) - ({_N})(?! ?[=+×÷-])", _rising),
        (r"(?<=\d)-(?=[A-Za-z])", " "),
    ]),
    ("aA", [(r"(?<![\w.,])(\d{1,3})[aA]\b(?!\.)", lambda m: f"{cardinal(m[1])} ay")]),
    ("i", [(r"(?<=\d) ?(ft|feet|foot) (\d\d?) ?in\b", r" \1 \2 inches")]),
    ("LMk", [
        (r"(?<=\d) L\b", " l"),
        (r"(?<=\d)M\b", " million"),
        (r"(?<!\b[48])(?<=\d)k\b", " thousand"),
    ]),
    ("x", [(r"(?<=\d) ?x ?(?=\d)", " by ")]),
    ("~", [(r"(?<!\S)~ ?(?=\d)", "about ")]),
]  # fmt: skip
_RULES = [(signs, [(re.compile(pattern, re.ASCII), replace) for pattern, replace in rules]) for signs, rules in _TABLE]
