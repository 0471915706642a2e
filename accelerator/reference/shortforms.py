"""Short forms, addresses and signs between letters -> words.

expanded("Dr. Lee, 5 Main St., a.b@x.com, C++ & R&D")
-> "doctor Lee, 5 Main street, ay dot b at x dot com, c plus plus and r and d"
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .capitals import is_numbered, spelled
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
    "Pkwy": "parkway", "Sq": "square", "Apt": "apartment", "Bldg": "building", "Ct": "court", "Pl": "place",
}  # fmt: skip
_SHORTENED = {
    "etc": "et cetera", "Inc": "incorporated", "inc": "incorporated", "Ltd": "limited", "Co": "company",
    "Corp": "corporation", "Jr": "junior", "Sr": "senior", "vs": "versus", "Bros": "brothers",
    "approx": "approximately", "acct": "account", "Acct": "account",
    "dept": "department", "Dept": "department", "est": "established", "Est": "established",
    "govt": "government", "Govt": "government", "tel": "telephone", "Tel": "telephone", "avg": "average",
    "Jan": "January", "Feb": "February", "Mar": "March", "Apr": "April", "Jun": "June", "Jul": "July", "Aug": "August",
    "Sep": "September", "Sept": "September", "Oct": "October", "Nov": "November", "Dec": "December", "Mon": "monday",
    "Tue": "tuesday", "Tues": "tuesday", "Wed": "wednesday", "Thu": "thursday", "Thurs": "thursday", "Fri": "friday",
}  # fmt: skip
_COUNTED = {"Fig": "figure", "fig": "figure", "Figs": "figures", "vol": "volume", "Vol": "volume", "pp": "pages",
            "p": "page", "Ch": "chapter", "ch": "chapter", "Sec": "section", "sec": "section", "Eq": "equation",
            "Art": "article", "art": "article", "ca": "about", "c": "about", "Pt": "part", "Ex": "example",
            "Op": "opus", "op": "opus", "Pop": "population", "pop": "population",
            "Rev": "revision", "rev": "revision", "Ext": "extension", "ext": "extension"}  # fmt: skip
_MEASURES = {"ft": "feet", "in": "inches", "oz": "ounces", "lb": "pounds", "lbs": "pounds", "hr": "hours",
             "hrs": "hours", "min": "minutes", "mins": "minutes", "sec": "seconds", "mi": "miles", "yd": "yards",
             "yr": "years", "yrs": "years", "tsp": "teaspoons", "tbsp": "tablespoons"}  # fmt: skip
_SINGLE = {"ft": "foot", "in": "inch"} | {name: words.removesuffix("s") for name, words in _MEASURES.items()
                                          if name not in ("ft", "in")}  # fmt: skip
_DAYS = {"Mon": "monday", "Tue": "tuesday", "Tues": "tuesday", "Wed": "wednesday", "Thu": "thursday",
         "Thurs": "thursday", "Fri": "friday", "Sat": "saturday", "Sun": "sunday"}  # fmt: skip
_DIRECTIONS = {"N": "north", "S": "south", "E": "east", "W": "west"}
_SPAN = {**{name.title(): name for name in (*_DAYS.values(), *MONTHS)}, **_DAYS,
         **{name[:3].title(): name for name in MONTHS}}  # fmt: skip

# "Plan B. It works." has no initial: words that take a letter, and words that begin a sentence
_LETTERED_TEXT = """
    a an the in plan vitamin grade class type group team section part option appendix hepatitis exhibit gate terminal
    room block building line level zone schedule figure table column answer question item step category size drive
    letter unit apartment row deck wing point note channel model suite flat
"""
_LETTERED = frozenset(_LETTERED_TEXT.split())
_STARTERS_TEXT = """
    The A An It Its He She We They You I This That These Those There Then But And Or So If In On At As For What When
    Where Why How Who Is Are Was Were Do Does Did Not No Yes My Your His Her Our Their To From By With All Some Please
    Now Here Later Next
"""
_STARTERS = frozenset(_STARTERS_TEXT.split())

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
    return _address(match) if ending and ending[1].lower() in _ENDINGS else match[0]


def _dotted(match: re.Match[str]) -> str:
    """U.S., Ph.D.: initials. a.m. is read with its number."""
    letters = match[0].replace(".", "")
    if letters.lower() in ("am", "pm") and re.search(r"\d ?$", match.string[max(0, match.start() - 2) : match.start()]):
        return match[0].lower()
    behind = match.string[match.end() : match.end() + 6]
    ended = re.match(r" (?:The|They|He|She|It|We|But|And|This|That|In|You)\b", behind)
    return spelled(letters) + ("." if ended else "")


def _initials(match: re.Match[str]) -> str:
    """J. R. R. Tolkien, Mr. A. Smith, E. coli: the points end no sentence."""
    letters, name = match[1], match[2]
    before = re.search(r"(\w+)[^\w.?!]{1,2}$", match.string[max(0, match.start() - 24) : match.start()])
    word = before[1] if before else ""
    if len(letters) <= 3 and (word.lower() in _LETTERED or (letters[0] in "IVX" and is_numbered(word))):
        return match[0]
    if name in _STARTERS or (letters == "I. " and word.islower() and word not in _TITLES.values()):
        return match[0]
    return f"{spelled(re.sub('[^A-Z]', '', letters))} {name}"


def _street(match: re.Match[str]) -> str:
    """5 N. Main St, Springfield."""
    side = f"{_DIRECTIONS[match[2]]} " if match[2] else ""
    return f"{match[1]}{side}{match[3]}{_STREETS[match[4]]}"


_MONTHS = "|".join(name[:3].title() for name in MONTHS)
_Replace = str | Callable[[re.Match[str]], str]
_TABLE: dict[str, list[tuple[str, _Replace]]] = {
    "-–": [(rf"\b({_any(_SPAN)}) ?[-–] ?({_any(_SPAN)})\b", lambda m: f"{_SPAN[m[1]]} to {_SPAN[m[2]]}")],
    "@": [(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+", _address), (r"@", " at ")],
    "/.": [
        (r"(?<=\d-)([a-z]+)\.(?=\d)", r"\1 dot "),
        (r"\b(?:https?|ftp)://[^\s<>\"]+|\bwww\.[^\s<>\"]+|(?<![^\s(])(?:~|\.{0,2})/[\w.-]+(?:/[\w.-]*)+", _address),
        (r"(?<![\w./@-])[A-Za-z0-9][\w-]*(?:\.[A-Za-z0-9][\w-]*)+(?:/[^\s<>\"]*)?", _name),
    ],
    ".": [
        (r"\b[Ee]\.\s?g\.", "for example "),
        (r"\b[Ii]\.\s?e\.", "that is "),
        (r"\ba\.k\.a\.", "also known as"),
        (r"\bet al\.", "and others"),
        (r"\bp\.a\.", "per annum"),
        (r"(?<![A-Za-z_])(?:[A-Za-z]\.){2,}", _dotted),
        (r"(?<=[Pp])h\.D\.?", "hD"),
        (rf"\b({_any(_COUNTED)})\. ?(?=\d|[IVX]+\b)", lambda m: _COUNTED[m[1]] + " "),
        (
            rf"(?:(?<![\d.,/]1)(?<=\b1)|(?<=\b1/\d)) ?({_any(_SINGLE)})\.(?!\w)",
            lambda m: " " + _stopped(m, _SINGLE[m[1]]),
        ),
        (rf"(?<=\d) ?({_any(_MEASURES)})\.(?!\w)", lambda m: " " + _stopped(m, _MEASURES[m[1]])),
        (r"\b(\d[\w-]* (?:[A-Z]\w+ ){1,3})(St|Dr)\.", lambda m: m[1] + _stopped(m, _STREETS[m[2]])),
        (r"((?:[A-Z][a-z]+|\dth|\dst|\dnd|\drd) )(St|Dr)\.(?! [A-Z])", lambda m: m[1] + _STREETS[m[2]]),
        (r"\b(Ave|Blvd|Rd|Ln|Hwy|Pkwy|Sq|Apt|Bldg)\.", lambda m: _stopped(m, _STREETS[m[1]])),
        (rf"\b({_any(_TITLES)})\. ?(?=[A-Z])", lambda m: _TITLES[m[1]] + " "),
        (r"(?<=\d )([NSEW])\. (?=[A-Z][a-z]|\d+(?:st|nd|rd|th)\b)", lambda m: _DIRECTIONS[m[1]] + " "),
        (r"(?<![\w.'&/@-])((?:[A-Z]\. ?){1,5})(?<= )([A-Z][a-z']+|[a-z]+)", _initials),
        (r"\b(Mr|Mrs|Ms|Dr|Prof)\.", lambda m: _TITLES[m[1]]),
        (rf"\b({_any(_SHORTENED)})\.", _shortened),
    ],
    "trednylq": [
        (
            rf"\b(\d+[A-Za-z]? )(?:([NSEW]) )?((?:[A-Z]\w+ |\d+(?:st|nd|rd|th) ){{1,3}})({_any(_STREETS)})\b(?![.'])",
            _street,
        ),
        (r"()()((?:[A-Z][a-z]+|\dth|\dst|\dnd|\drd) )(St|Ave|Blvd|Rd|Hwy|Pkwy)\b(?![.']| [A-Z])", _street),
    ],
    "0123456789": [
        (
            rf"\b({_any(_DAYS)})(?=,? (?:\d\d?(?::| ?[ap]\.?m\b|/\d|st\b|nd\b|rd\b|th\b)|(?:{_MONTHS})[a-z]*\.? \d))",
            lambda m: _DAYS[m[1]],
        ),
    ],
    "rst": [(r"\b(Mr|Mrs|Ms|Dr|Prof|St|Mt) (?=[A-Z])", lambda m: _TITLES[m[1]] + " ")],
    "&": [
        (r"\b([A-Z]{1,3})\s?&\s?([A-Z]{1,3})(?![A-Za-z])", lambda m: f"{spelled(m[1])} and {spelled(m[2])}"),
        (r"&(?:&|amp;)?", " and "),
    ],
    "+": [(r"\b([A-Z])\+\+", lambda m: f"{spelled(m[1])} plus plus"), (r"(?<![\w.])\+(?=[A-Za-z])|\+(?!\d)", " plus ")],
    "#": [
        (r"\b([A-G])#", lambda m: f"{spelled(m[1])} sharp"),
        (r"#(?=\d)", " number "),
        (r"#(?=[A-Za-z])", " hashtag "),
    ],
    "/": [
        (r"\bw/o\b", "without"),
        (r"\bw/", "with "),
        (r"\bb/c\b", "because"),
        (r"\by/y\b", "year over year"),
    ],
    "Y": [(r"\bYoY\b", "year over year")],
    "=": [(r"!=", "≠"), (r"(?<![=\w]=)(?<!=)==(?!=)", "="), (r"<=(?!=)", "≤"), (r"(?<![=-])>=", "≥")],
    "'": [(r"(?<!\w)'?[nN]'(?= ?[A-Za-z])", "and "), (r"(?<!\w)'em\b", "them")],
}
_RULES = {sign: [(re.compile(pattern), replace) for pattern, replace in rules] for sign, rules in _TABLE.items()}
