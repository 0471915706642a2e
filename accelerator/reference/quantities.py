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
_SCALES = {"k": "thousand", "m": "million", "mm": "million", "mn": "million", "b": "billion", "bn": "billion",
           "t": "trillion", "tn": "trillion"}  # fmt: skip


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


def _slash_date(match: re.Match[str]) -> str:
    """03/14, Friday 3/14; 12/25 by itself may be a fraction, but none has a nought in front."""
    if not match[1] and "0" not in (match[2][0], match[3][0]):
        return match[0]
    return f"{match[1]}{MONTHS[int(match[2]) - 1]} {ordinal(match[3])}"


# --- Times ---


def _clock(match: re.Match[str]) -> str:
    counted = zip(match.groups(), ("hour", "minute", "second"), strict=True)
    hours, minutes, seconds = (f"{cardinal(str(int(n)))} {name}{'' if int(n) == 1 else 's'}" for n, name in counted)
    return f"{hours} {minutes} and {seconds}"


def _duration(match: re.Match[str]) -> str:
    """1h30m, 2h 15m 10s, 1m30s."""
    counted = zip(match.groups(), ("hour", "minute", "second"), strict=True)
    return " ".join(f"{cardinal(n)} {name}{'' if n == '1' else 's'}" for n, name in counted if n)


def _long_clock(match: re.Match[str]) -> str:
    """45:00 and 90:05, which no clock of a day shows."""
    minutes = cardinal(match[1])
    return f"{minutes} minutes" if match[2] == "0" else f"{minutes} oh {digits(match[2])}"


def _tens(match: re.Match[str]) -> str:
    """90s music, 60s and 70s; but "wait 30s" and "a 90s timer" are seconds."""
    before = re.search(r"[\w=:]* ?$", match.string[max(0, match.start() - 16) : match.start()])
    behind = re.match(r"[ -]?([a-z]*)", match.string[match.end() : match.end() + 16])
    word, noun = before[0].strip() if before else "", behind[1] if behind else ""
    decades = _OF_DECADES.fullmatch(word) or _STYLED.fullmatch(noun)
    timed = _TIMING.fullmatch(word) or _GOING_ON.fullmatch(noun)
    if _TIMERS.fullmatch(noun) or (timed and not decades):
        return match[0]
    return re.sub("([0-9]+)'?s", lambda tens: plural(cardinal(tens[1])), match[0])


# --- Telephone numbers, codes ---


def _in_groups(match: re.Match[str]) -> str:
    return ("plus " if match[0][0] == "+" else "") + ", ".join(map(digits, re.findall("[0-9]+", match[0])))


def _short_phone(match: re.Match[str]) -> str:
    """555-1234; but 500-1000 is a range."""
    first, last = int(match[1]), int(match[2])
    if match[1][0] != "0" and first % 50 == 0 and last % 100 == 0 and first < last:
        return f"{match[1]} to {match[2]}"
    return _in_groups(match)


def _dialled(match: re.Match[str]) -> str:
    """Call 5551234567, Tel. 030 123456: in its groups, or as in America if it has ten digits."""
    number = re.sub("[^0-9]", "", match[3])
    if len(number) < 7 and number not in ("911", "999", "112"):
        return match[0]
    if match[3].isdigit() and len(number) == 10:
        return f"{match[1]}{match[2]}{digits(number[:3])}, {digits(number[3:6])}, {digits(number[6:])}"
    return f"{match[1]}{match[2]}" + ", ".join(map(digits, re.findall("[0-9]+", match[3])))


def _zip(match: re.Match[str]) -> str:
    return f"{match[1]} {digits(match[2])}" + (f", {digits(match[3])}" if match[3] else "")


def _address(match: re.Match[str]) -> str:
    host, _, bits = match[0].partition("/")
    return " dot ".join(map(digits, host.split("."))) + (f" slash {cardinal(bits)}" if bits else "")


def _one_after_another(code: str) -> str:
    return " ".join("ay" if char in "aA" else digits(char) if char.isdigit() else char.lower() for char in code)


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


def _money_range(match: re.Match[str]) -> str:
    """$5K-10K, $1–2M, $3-5 billion, $1.50-2.50; a scale behind the second number may be the first one's, too."""
    country, sign, first, small, joint, again, last, large = match.groups()
    small, large = (scale and _SCALES.get(scale.lower(), scale) for scale in (small, large))
    if not large and (again or joint == " to "):
        return match[0]  # $20-$30: each has its own sign
    if not large and re.search(r"\.\d\d$", f"{first} {last}"):
        return f"{country or ''}{sign}{first} to {country or ''}{sign}{last}"
    name = f"{_COUNTRIES[country]} {CURRENCIES[sign][1]}" if country else CURRENCIES[sign][1]
    return " ".join(filter(None, (first, small, "to", last, large, name)))


def _scaled_range(match: re.Match[str]) -> str:
    """5K-10K, 5-10M."""
    first, small, last, large = match.groups()
    return " ".join(filter(None, (first, small and _SCALES[small.lower()], "to", last, _SCALES[large.lower()])))


def _per(match: re.Match[str]) -> str:
    """$3.99/lb, 5 miles/hour, 10 requests/s: what stands behind the slash, as a unit of which there is one."""
    units = library().lexicon.units
    unit = units.get(match[2])
    if unit and match[1].lstrip(" 0123456789,.") in units:
        return match[0]  # the library's
    name = unit.singular if unit else _PER.get(match[2], match[2])
    if not unit and name not in _PER.values():
        return match[0]
    return f"{match[1]} per {name}"


def _range(match: re.Match[str]) -> str:
    return f"{match[1]} to {match[2]}"


def _rising(match: re.Match[str]) -> str:
    """ "10 - 20" is a range; "20 - 10" is the library's, which subtracts."""
    first, last = (float(number.replace(",", "")) for number in match.groups())
    return f"{match[1]} to {match[2]}" if first < last else match[0]


def _over(match: re.Match[str]) -> str:
    """Halves to twentieths and hundredths have names; 80/20, 20/20 and 10/10 are no fractions."""
    if match[1] == match[2] and match[1] not in ("20", "50"):
        return f"{match[1]} out of {match[2]}"
    if int(match[1]) + int(match[2]) == 100 or match[1] == match[2]:
        return f"{cardinal(match[1])} {cardinal(match[2])}"
    return match[0] if int(match[2]) <= 20 or match[2] == "100" else f"{match[1]} over {match[2]}"


def _part_of_unit(match: re.Match[str]) -> str:
    """1/2 tsp, 1 1/2 lb."""
    whole, top, bottom, symbol = match.groups()
    unit = library().lexicon.units[symbol]
    if whole:
        return f"{fraction(whole, top, bottom)} {unit.plural}"
    return f"{top}/{bottom} {unit.singular}"


def _angle(match: re.Match[str]) -> str:
    """40° 26' 46"."""
    seconds = f" {match[3]} seconds" if match[3] else ""
    return f"{match[1]} degrees {match[2]} minutes{seconds}"


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
_PARTED = "kg|g|oz|lbs?|tsp|tbsp|gal|ml|l|L|km|m|mi|ft|yd|hrs?|h|min"  # of which one takes a half
_SCALE = r"(?: ?([kKmMbBT]|MM|mm|mn|bn|tn|thousand|million|billion|trillion)\b)"
_PER = {name: name for name in (
    "second", "minute", "hour", "day", "night", "week", "month", "quarter", "year", "person", "page", "unit", "user",
    "head", "item", "square foot", "foot", "inch", "yard", "mile", "meter", "gallon", "liter", "ounce", "pound", "kilo",
    "share", "barrel", "dose", "serving", "slice", "piece", "game", "seat", "ticket", "capita",
)} | {"mo": "month", "wk": "week", "d": "day", "sqft": "square foot", "sec": "second", "hrs": "hour",
      "bbl": "barrel", "pp": "person", "in": "inch"}  # fmt: skip
# Of 30s, seconds or a decade: what stands behind seconds, and in front of decades; what decades have; and what stands
# in front of seconds and behind them if nothing else decides
_TIMERS = re.compile(
    "timers?|timeouts?|delays?|clips?|videos?|countdowns?|intervals?|pauses?|breaks?|limits?|windows?|ads?|spots?|loops?"
    "|sprints?|planks?|exposures?|cooldown|samples?|recordings?|waits?|later|ago|left|remaining|apart|faster|slower"
)
_OF_DECADES = re.compile("(?i:his|her|their|my|your|our|its|the|early|mid|late|low|high|upper)")
_STYLED = re.compile(
    "music|hits?|songs?|kids?|pop|rock|movies?|films?|fashion|nostalgia|style|sitcoms?|bands?|party|parties|themed?|tv"
    "|disco|metal|punk|rap|synth|retro|vibes?|look|shows?|cartoons?|babies|child|children|sound|era|classics?|cars?"
)
_TIMING = re.compile(
    "(?i:wait(?:ed|ing|s)?|for|in|after|within|every|tak(?:es?|en|ing)|took|last(?:s|ed|ing)?|rest|hold|cook|heat|boil"
    "|stir|sleep|pause|timer|timeout|plank|sprint|about|another|than|to|at|is|was|are|by|under|over|only|just|next|first"
    "|around|almost|nearly|roughly|max|min|minutes?|mins?|m|[0-9]+m?|.*[=:])"
)
_GOING_ON = re.compile(
    "long|of|max|min|each|per|more|before|until|then|straight|or|on|off|rest|at|to|for|after|between|without|with"
)
_MEASURED = r"[kKMGT]?B|[kcm]?m|kg|ml|Hz|W|mb|gb|px"  # numbers with these are no years

_TABLE: list[tuple[str, list[tuple[str, _Replace]]]] = [
    ("-", [(r"(?<![\w.,-])-(?=\.\d)", "-0")]),
    ("x", [(r"\b0x([0-9a-fA-F]{1,16})\b", lambda m: f"zero x {_one_after_another(m[1])}")]),
    ("eE", [(r"(?<![\w.,])(\d+(?:\.\d+)?)[eE]([+-]?)(\d{1,3})(?![\w.]\d|\w)",
             lambda m: f"{m[1]}×10^{m[2].strip('+')}{int(m[3])}")]),
    ("xX*", [(r"(?<=\d) ?[xX*] ?(?=10(?:\^|-\d))", "×")]),
    ("×", [(r"(?<=×10)-(?=\d)", "^-")]),
    (",", [  # 1.234,56 and 1,5 as in Europe, 1,00,000 as in India, and lists
        (r"(?<![\d.,])\d{1,2}(?:,\d\d)+,\d{3}(?![\d,])", lambda m: m[0].replace(",", "")),
        (r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d\d?)(?![.,]?\d)", lambda m: f"{m[1].replace('.', '')}.{m[2]}"),
        (rf"(?<![\d.,])(\d+),(\d\d?)(?= ?[a-zA-Z%°{_MONEY}])(?! (?:or|and) \d)", r"\1.\2"),
        (r"(?<![\d.,])\d\d?(?:,\d\d?)+(?![\d.,]*\d)", lambda m: m[0].replace(",", ", ")),
    ]),
    ("'", [(r"(?<=\d)'(?=\d{3}(?!\d))", "")]),
    ("T", [(r"(?<=-\d\d)T(?=\d\d:\d\d)", " ")]),
    ("/-.", [
        (rf"(?<![\w/.-]){_Y}([-/.])(\d\d?)\2(\d\d?)(?![\w/-]|\.\d)", _iso_date),
        (rf"(?<![\w/.-])(\d\d?)([-/.])(\d\d?)\2{_Y}(?![\w/-]|\.\d)", _numeric_date),
        (r"(?<![\w/.-])(\d\d?)(/)(\d\d?)/(\d\d)(?![\w/-]|\.\d)", _numeric_date),
        (r"(?<![\w/.-])()(0[1-9]|1[0-2])/(0[1-9]|[12]\d|3[01])(?![\w/-]|\.\d)", _slash_date),
        (rf"\b((?i:{_WEEKDAYS}),? )([1-9]|1[0-2])/([12]\d|3[01]|[1-9])(?![\w/-]|\.\d)", _slash_date),
    ]),
    ("JFMASOND", [
        (rf"\b{_MONTH} (\d\d?){_NTH}?(?: ?[-–] ?(\d\d?){_NTH}?)?(?:,? {_Y})?(?![\w:/%-]|[.,]\d)", _month_day),
        (rf"(?<![\w.:/-])(\d\d?){_NTH}?( of)? {_MONTH}(?!\w)(?:,? {_Y}(?!\w))?", _day_month),
    ]),
    ("DRPFNK", [
        (rf"(?<!\w)({'|'.join(_CODES)}) ?({_N})(?!\w)", lambda m: f"{m[2]} {_CODES[m[1]]}"),
        (rf"(?<!\w)Rs\.? ?({_N})(?!\w)", r"\1 rupees"),
        (rf"(?<=\d) ?({'|'.join(_CODES)})(?!\w)", lambda m: f" {_CODES[m[1]]}"),
    ]),
    ("/", [
        (r"(?<![\w/])(9/11|24/7(?:/365)?)(?![\w/])", lambda m: " ".join(map(cardinal, m[1].split("/")))),
        (rf"([{_MONEY}] ?{_N}|(?<!\w){_N} ?(?:[{_MONEY}]|[a-zA-Z]+))"
         r"/(sq ft|[a-zA-Z]+[²³]?)(?![\w²³])(?:\.(?=,? [a-z]))?", _per),
        (r"(?<=\d)/(month|mo|year|yr|week|day|hour|hr|person|night|page|unit)\b", r" per \1"),
        (rf"(?<![\w.,])([{_MONEY}] ?{_N})/(?=\d)", r"\1 per "),
        (r"(?<=\d)/ea\b(?:\.(?=,? [a-z]))?", " each"),
        (r"(?<=\b[Pp]age )(\d+)/(\d+)\b", r"\1 of \2"),
        (rf"(?<![\w.,/])(?:(\d{{1,4}}) )?(\d\d?)/(\d\d?) ?({_PARTED})(?!\w)", _part_of_unit),
        (r"(?<![\w.,/])(\d{1,4}) (\d\d?)/(\d\d?)(?![\w/])", lambda m: fraction(*m.groups())),
        (r"(?<![\w.,/])(\d{1,4})/(\d{2,4})(?![\w/]|[.,]\d)", _over),
    ]),
    ("+", [(r"(?<![\w.-])\+1([2-9]\d\d)(\d{3})(\d{4})(?!\w)", r"+1 \1 \2 \3")]),
    ("+", [(r"(?<![\w.-])\+\d{1,3}(?:[ .-]?\(?\d{1,5}\)?){2,6}(?![\w-])", _in_groups)]),
    ("-.", [
        (r"(?<![\w.-])(?:1[ .-])?\(?\d{3}\)?[ .-]?\d{3}[.-]\d{4}(?![\w-])", _in_groups),
        (r"(?<![\w.-])\d{3}-\d\d-\d{4}(?![\w-])", _in_groups),
        (rf"(?<![\w.{_MONEY}-])(\d{{3}})-(\d{{4}})(?![\w%-])", _short_phone),
        (r"(?<![\w.-])\d+(?:-\d+){3,}(?![\w-])", _in_groups),
        (r"(?<![\w.-])1-(8\d\d)-(?=[A-Z])", lambda m: f"one, {digits(m[1])} "),
        (r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?:/\d\d?)?(?!\w|\.\d)", _address),
        (r"\b[vV]\.?(?=\d+\.\d)", "version "),
    ]),
    (" ", [
        (r"(?<![\w.-])(?:\d{4}[ -]){3}\d{4}(?![\w-])", _in_groups),
        (r"(?<![\w.-])(?:\(?0\d{2,4}\)?(?: \d{3,4}){2}|0\d{4} \d{6}|00\d\d(?: \d{2,5}){2,5})(?![\w-])", _in_groups),
        (r"(?<![\w.,-])(?:1 )?(?:[2-9]\d\d|\([2-9]\d\d\)) \d{3} \d{4}(?![\w,-]|\.\d)", _in_groups),
        (r"\b([Zz][Ii][Pp]|[Cc]ode|[Pp][Ii][Nn]|[Ee]xt\.|[Ee]xtension|[Ee]nding in)"
         r"(:? (?:is )?)(\d{3,8})(?![\w,-])",
         lambda m: f"{m[1]}{m[2]}{digits(m[3])}"),
        (r"\b((?i:call|dial|text|fax|phone|telephone|tel|ph|mobile|cell))([.:]? (?:us at |at )?)"
         r"(\(?\d[\d ()-]{1,17}\d)(?![\w,-]|\.\d)", _dialled),
        (r"\b([A-Z]{2}),? (\d{5})(?:-(\d{4}))?(?![\w,-])", _zip),
        (r"\b[Nn]os?\.? (?=\d)", "number "),
    ]),
    (_MONEY, [
        (rf"(?<=[{_MONEY}])(?=\.\d)", "0"),
        (rf"(?<!\w)({'|'.join(_COUNTRIES)})?([{_MONEY}]) ?({_N}){_SCALE}?( ?[-–] ?| to )([{_MONEY}])? ?({_N})(?!-?\d)"
         rf"{_SCALE}?(?![\w/-])", _money_range),
        (rf"(?<!\w)({'|'.join(_COUNTRIES)})?([{_MONEY}]) ?({_N}){_SCALE}?", _money),
        (r"(?<=\d) ?\$(?![\w$])", " dollars"),
    ]),
    ("kKMB", [(rf"(?<![\w.,-])({_N})([kKMB])?[-–]({_N})([kKMB]|[bm]n)\b", _scaled_range)]),
    ("0123456789", [
        (r"\bFY(?=(?:20)?\d\d\b)", "FY "),
        (r"(?<![\w.'-])([A-Za-z]{2,})(?=\d+(?:\.\d+)+(?!\w))", r"\1 "),
        (r"(?<![\w.'-])([A-Za-z]{1,2}|[A-Z]{1,6})(\d{1,4})([A-Za-z]{0,2})(?![\w'])", _letters_digits),
    ]),
    ("-", [
        (r"(?<![\w.'-])([A-Z][A-Za-z]{0,6})-(\d{1,4})([A-Z]?)(?![\w-]|\.\d)", _letters_digits),
        (r"\b([Nn]oon|[Mm]idnight)[-–](?=\d)", r"\1 to "),
        (r"(?<![\w.])([A-Za-z]+)-(?=\d)", r"\1 "),
    ]),
    ("'", [
        (r"(?<=\d0s)[-–](?='?\d0s\b)", " to "),
        (r"(?<!\w)'([1-9]0)s\b", lambda m: plural(cardinal(m[1]))),
        (r"(?<!\w)'00s\b", "two thousands"),
        (r"(?<!\w)'(\d\d)[-–]'(\d\d)(?![\w'])", lambda m: f"{year(m[1])} to {year(m[2])}"),
        (r"(?<!\w)'(\d\d)(?![\w'])", lambda m: year(m[1])),
        (r"(?<![\w.])(\d{1,3})° ?(\d\d?)'(?: ?(\d\d?)(?:\"|''))?", _angle),
        (r"\b(\d\d?)'(?: ?(\d\d?)(?:\"|'')?)?(?![\w'])", _feet),
    ]),
    ("hms", [
        (r"(?<![\w.,])(\d\d?)h ?([0-5]?\d)(?:m(?: ?([0-5]?\d)s)?|min)?\b", _duration),
        (r"(?<![\w.,])()(\d\d?)m ?([0-5]?\d)s\b", _duration),
    ]),
    ("s", [  # decades and other plurals; else seconds
        (r"(?<=\d0s)[-–](?=(?:\d\d)?\d0s\b)", " to "),
        (rf"(?<!\w){_Y}(?<=0)'?s\b", lambda m: plural(year(m[1]))),
        (r"(?<![\w.,:])00s\b", "two thousands"),
        (rf"(?<![\w.,:{_MONEY}-])(?:[2-9]0'?s(?: to | and | or |, ))*[2-9]0'?s\b", _tens),
        (r"(?<![\w.,])10s(?= of\b)", "tens"),
    ]),
    ("-–/", [(rf"(?<![\w.,/{_MONEY}-]){_Y}[-–/](\d\d|{_Y})(?![\w/-]|[.,]\d)",
              lambda m: f"{year(m[1])} to {year(m[2])}")]),
    ("1", [(r"\b([Ii]n|[Ss]ince|[Uu]ntil|[Bb]efore|[Aa]fter) (10[1-9]\d)(?=$|[.;:!?)]|,(?!\d)| (?:and|the|by|when)\b)",
            lambda m: f"{m[1]} {year(m[2])}")]),
    ("12", [
        (rf"(?<![\w.,:/{_MONEY}+-])(1[1-9]\d\d|20\d\d)('s)?"
         rf"(?![\w:/°%'×^²³{_MONEY}]|[.,]\d| ?(?:{_MEASURED})\b| ?[€%×]| ?[+=<>×÷±-] ?\d)",
         lambda m: year(m[1]) + (m[2] or "")),
    ]),
    ("s", [
        (rf"(?<![\w.,{_MONEY}-])1(0?0?(?:,?000)*)s\b(?<=00s)",
         lambda m: cardinal(f"1{m[1].replace(',', '')}").removeprefix("one ") + "s"),
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
        (r"(?<![\d:.])(2[5-9]|[3-9]\d|\d{3}):0(\d)(?![\d:])", _long_clock),
        (r"(?<![\d:.])((?:00?|1[3-9]|2\d):\d\d) ?([ap])\.?m\b\.?", r"\1 \2 m"),
    ]),
    ("=", [(r"(?<=\d)-(?=\d+ ?=)", " minus ")]),
    ("–", [(r"(?<![\w.,–-])–(?=\.?\d)", "-")]),
    ("–", [(rf"(?<![\w.,-])([{_MONEY}]?\d[\d,.:]*{_UNIT}) ?–+ ?(?=[{_MONEY}]?\d)", r"\1 to ")]),
    ("-", [
        (rf"(?<![\w.,-])([{_MONEY}]?\d[\d,.:]*{_UNIT})-([{_MONEY}]?\d[\d,.:]*)(?!\w*-\d)", _range),
        (rf"(?<![+=×÷-] )(?<![\w.,-])({_N}) - ({_N})(?! ?[=+×÷-])", _rising),
        (rf"(?<=\d{_NTH})[-–](?=\d+{_NTH}\b)", " to "),
        (r"(?<=\d)-(?=[A-Za-z])", " "),
    ]),
    (":", [(r"(?<![\d:.])(?:00?|24):00(?![\d:]|\.\d)(?: a m\b| hours\b)?", "midnight")]),
    ("aA", [(r"(?<![\w.,])(\d{1,3})[aA]\b(?!\.)", lambda m: f"{cardinal(m[1])} ay")]),
    ("i", [(r"(?<=\d) ?(ft|feet|foot) (\d\d?) ?in\b", r" \1 \2 inches")]),
    ("LMk", [
        (r"(?<=\d) L\b", " l"),
        (r"(?<=\d)MM?\b", " million"),
        (r"(?<!\b[48])(?<=\d)k\b", " thousand"),
    ]),
    ("x", [(r"(?<=\d) ?x ?(?=\d)", " by ")]),
    ("~", [(rf"(?<!\S)~ ?(?=[{_MONEY}]?\d)", "about ")]),
    ("<>", [
        (rf"(?<![^\s(])<(?=[{_MONEY}]?\d)", "less than "),
        (rf"(?<![^\s(])>(?=[{_MONEY}]?\d)", "more than "),
    ]),
]  # fmt: skip
_RULES = [(signs, [(re.compile(pattern, re.ASCII), replace) for pattern, replace in rules]) for signs, rules in _TABLE]
