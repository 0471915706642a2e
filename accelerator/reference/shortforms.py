"""Short forms, addresses and signs between letters -> words.

expanded("Dr. Lee, 5 Main St., a.b@x.com, C++ & R&D")
-> "doctor Lee, 5 Main street, ay dot b at x dot com, c plus plus and r and d"
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .capitals import spelled
from .numerals import MONTHS, cardinal, digits
from .pronounce import known

__all__ = ["expanded"]

_TITLES = {
    "Mr": "mister", "Mrs": "missus", "Ms": "miss", "Dr": "doctor", "Prof": "professor", "St": "saint", "Mt": "mount",
    "Gen": "general", "Gov": "governor", "Capt": "captain", "Lt": "lieutenant", "Sgt": "sergeant", "Rev": "reverend",
    "Ft": "fort", "Sen": "senator", "Rep": "representative", "Col": "colonel", "Maj": "major", "Hon": "honorable",
}  # fmt: skip
_STREETS = {
    "St": "street", "Dr": "drive", "Ave": "avenue", "Blvd": "boulevard", "Rd": "road", "Ln": "lane", "Hwy": "highway",
    "Pkwy": "parkway", "Sq": "square", "Apt": "apartment", "Bldg": "building",
}  # fmt: skip
_SHORTENED = {
    "etc": "et cetera", "Inc": "incorporated", "inc": "incorporated", "Ltd": "limited", "Co": "company",
    "Corp": "corporation", "Jr": "junior", "Sr": "senior", "vs": "versus", "Bros": "brothers",
    "approx": "approximately", "dept": "department", "Dept": "department", "est": "established", "Est": "established",
    "govt": "government", "Govt": "government", "tel": "telephone", "Tel": "telephone", "avg": "average",
    "Jan": "January", "Feb": "February", "Mar": "March", "Apr": "April", "Jun": "June", "Jul": "July", "Aug": "August",
    "Sep": "September", "Sept": "September", "Oct": "October", "Nov": "November", "Dec": "December", "Mon": "monday",
    "Tue": "tuesday", "Tues": "tuesday", "Wed": "wednesday", "Thu": "thursday", "Thurs": "thursday", "Fri": "friday",
}  # fmt: skip
_COUNTED = {"Fig": "figure", "fig": "figure", "Figs": "figures", "vol": "volume", "Vol": "volume", "pp": "pages",
            "p": "page", "Ch": "chapter", "ch": "chapter", "Sec": "section", "sec": "section", "Eq": "equation",
            "Art": "article", "art": "article", "ca": "about", "c": "about", "Pt": "part", "Ex": "example"}  # fmt: skip
_MEASURES = {"ft": "feet", "in": "inches", "oz": "ounces", "lb": "pounds", "lbs": "pounds", "hr": "hours",
             "hrs": "hours", "min": "minutes", "mins": "minutes", "sec": "seconds", "mi": "miles", "yd": "yards",
             "yr": "years", "yrs": "years", "tsp": "teaspoons", "tbsp": "tablespoons"}  # fmt: skip
_DAYS = {"Mon": "monday", "Tue": "tuesday", "Tues": "tuesday", "Wed": "wednesday", "Thu": "thursday",
         "Thurs": "thursday", "Fri": "friday", "Sat": "saturday", "Sun": "sunday"}  # fmt: skip
_SPAN = {**{name.title(): name for name in (*_DAYS.values(), *MONTHS)}, **_DAYS,
         **{name[:3].title(): name for name in MONTHS}}  # fmt: skip

# What names in the web and of files end with
_ENDINGS_TEXT = """
    com org net edu gov mil int info biz io dev app uk de fr eu ch nl pl ru jp cn ca au nz tv ai ly pdf txt doc
    docx xls xlsx ppt pptx csv json xml html htm py js ts md zip gz tar exe jpg jpeg png gif svg mp3 mp4 wav
    flac ogg yaml yml toml cpp java sh log ini cfg css php
"""
_ENDINGS = frozenset(_ENDINGS_TEXT.split())
_WEB = frozenset(("com", "org", "net", "co", "gov", "info", "biz", "tar", "zip", "app", "dev", "log"))
_SIGNS = {".": "dot", "@": "at", "/": "slash", ":": "colon", "-": "dash", "_": "underscore", "?": "question mark",
          "=": "equals", "&": "and", "#": "hash", "%": "percent", "+": "plus", "~": "tilde"}  # fmt: skip


def expanded(text: str) -> str:
    """The text without short forms that end in a point, addresses, and & + # @ / between letters."""
    for sign, rules in _RULES.items():
        if any(mark in text for mark in sign):
            for pattern, replace in rules:
                text = pattern.sub(replace, text)
    return text


def _any(words: dict[str, str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


def _stopped(match: re.Match[str], words: str) -> str:
    """The words, with the point if it seems to end the sentence, too."""
    behind = match.string[match.end() : match.end() + 2]
    return words + "." if re.match(r"\s[A-Z\"]", behind) else words


def _shortened(match: re.Match[str]) -> str:
    words = _SHORTENED[match[1]]
    return words if words.lower() in MONTHS else _stopped(match, words)


def _address(match: re.Match[str]) -> str:
    token = match[0].rstrip(".,;:!?)'\"")
    end = match[0][len(token) :]
    parts = re.findall(r"[A-Za-z]+|\d+|.", token)
    return " ".join(map(_address_part, parts)) + end


def _address_part(part: str) -> str:
    if part.isdigit():
        return cardinal(part) if len(part) <= 2 else digits(part)
    if not part.isalpha():
        return _SIGNS.get(part, part)
    lower = part.lower()
    if lower in _WEB or (known(lower) and re.search("[aeiouy]", lower) and len(part) > 2):
        return lower
    return lower if len(part) > 3 and re.search("[aeiouy]", lower) else spelled(part)


def _name(match: re.Match[str]) -> str:
    """example.com, report.pdf; not a full stop without a space behind it."""
    ending = re.search(r"\.([A-Za-z0-9]+)(?:/|$)", match[0].split("/")[0])
    return _address(match) if ending and ending[1] in _ENDINGS else match[0]


def _dotted(match: re.Match[str]) -> str:
    """U.S., Ph.D.: initials. a.m. is read with its number."""
    letters = match[0].replace(".", "")
    if letters.lower() in ("am", "pm"):
        return match[0]
    behind = match.string[match.end() : match.end() + 6]
    ended = re.match(r" (?:The|They|He|She|It|We|But|And|This|That|In|You)\b", behind)
    return spelled(letters) + ("." if ended else "")


_Replace = str | Callable[[re.Match[str]], str]
_TABLE: dict[str, list[tuple[str, _Replace]]] = {
    "-–": [(rf"\b({_any(_SPAN)}) ?[-–] ?({_any(_SPAN)})\b", lambda m: f"{_SPAN[m[1]]} to {_SPAN[m[2]]}")],
    "@": [(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+", _address), (r"@", " at ")],
    "/.": [
        (r"\b(?:https?|ftp)://[^\s<>\"]+|\bwww\.[^\s<>\"]+|(?<![^\s(])(?:~|\.{0,2})/[\w.-]+(?:/[\w.-]*)+", _address),
        (r"(?<![\w./@-])[A-Za-z0-9][\w-]*(?:\.[A-Za-z0-9][\w-]*)+(?:/[^\s<>\"]*)?", _name),
    ],
    ".": [
        (r"\b[Ee]\.\s?g\.", "for example "),
        (r"\b[Ii]\.\s?e\.", "that is "),
        (r"\ba\.k\.a\.", "also known as"),
        (r"\bet al\.", "and others"),
        (r"\b(?:[A-Za-z]\.){2,}", _dotted),
        (r"(?<=[Pp])h\.D\.?", "hD"),
        (rf"\b({_any(_COUNTED)})\. ?(?=\d|[IVX]+\b)", lambda m: _COUNTED[m[1]] + " "),
        (rf"(?<=\d) ?({_any(_MEASURES)})\.(?!\w)", lambda m: " " + _stopped(m, _MEASURES[m[1]])),
        (r"\b(\d[\w-]* (?:[A-Z]\w+ ){1,3})(St|Dr)\.", lambda m: m[1] + _stopped(m, _STREETS[m[2]])),
        (r"((?:[A-Z][a-z]+|\dth|\dst|\dnd|\drd) )(St|Dr)\.(?! [A-Z])", lambda m: m[1] + _STREETS[m[2]]),
        (r"\b(Ave|Blvd|Rd|Ln|Hwy|Pkwy|Sq|Apt|Bldg)\.", lambda m: _stopped(m, _STREETS[m[1]])),
        (rf"\b({_any(_TITLES)})\. ?(?=[A-Z])", lambda m: _TITLES[m[1]] + " "),
        (r"\b(Mr|Mrs|Ms|Dr|Prof)\.", lambda m: _TITLES[m[1]]),
        (rf"\b({_any(_SHORTENED)})\.", _shortened),
    ],
    "rst": [(r"\b(Mr|Mrs|Ms|Dr|Prof|St|Mt) (?=[A-Z])", lambda m: _TITLES[m[1]] + " ")],
    "&": [
        (r"\b([A-Z]{1,3})\s?&\s?([A-Z]{1,3})(?![A-Za-z])", lambda m: f"{spelled(m[1])} and {spelled(m[2])}"),
        (r"&(?:amp;)?", " and "),
    ],
    "+": [(r"\b([A-Z])\+\+", lambda m: f"{spelled(m[1])} plus plus"), (r"(?<![\w.])\+(?=[A-Za-z])|\+(?!\d)", " plus ")],
    "#": [
        (r"\b([A-G])#", lambda m: f"{spelled(m[1])} sharp"),
        (r"#(?=\d)", " number "),
        (r"#(?=[A-Za-z])", " hashtag "),
    ],
    "/": [(r"\bw/o\b", "without"), (r"\bw/", "with ")],
    "'": [(r"(?<!\w)'?[nN]'(?= ?[A-Za-z])", "and "), (r"(?<!\w)'em\b", "them")],
}
_RULES = {sign: [(re.compile(pattern), replace) for pattern, replace in rules] for sign, rules in _TABLE.items()}
