"""What is written in capitals -> words, or the names of letters; and Roman numerals.

    capitals("DO NOT ask the FBI for Henry VIII's MBA") -> "do not ask the f b i for Henry the eighth's m b ay"

A letter is its own name, but for A: "a" by itself is the article, so that the letter is written "ay".
"""

from __future__ import annotations

import re

from .numerals import cardinal, ordinal
from .pronounce import known

__all__ = ["capitals", "is_numbered", "spelled"]

# Words short enough to be taken for initials
_SHORT_TEXT = """
    act add age ago aid aim air all and any are arm art as ask at ate bad bag ban bar bat be bed bet big bit box
    boy bug bus but buy by bye can cap car cat cow cry cup cut dad day did die dig do dog dry due ear eat egg
    end eye far fat few fit fix fly for fun gas get go got gun guy had has hat he her hey hi him his hit hot how
    ice if ill in ink is its jet job joy key kid lab law lay leg let lie lip lot low mad man map max may me men met
    mix mom mud my net new no nor not now nut odd of off oh oil old on one or our out own ox pan pay pen pet pig
    pin pop pot put ram ran rat raw red rid rom row run sad sat saw say sea see set sex she shy sim sin sir sit
    six sky so son sub sun tap tax ten the tie tin tip to toe too top toy try two up use van via war was wax way
    we wet who why win wow yes yet you zip zoo it us am id
"""
_SHORT = frozenset(_SHORT_TEXT.split())
_ALSO_INITIALS = frozenset(("it", "us", "am", "id"))  # words only among words in capitals
_READ = {"ok": "okay", "jpeg": "jay peg", "covid": "covid", "phds": "p h d's", "wwi": "world war one",
         "wwii": "world war two"}  # fmt: skip
_NUMBERED_TEXT = """
    War Chapter Part Act Scene Volume Book Phase Title Section Article Type Level Class Stage Appendix Figure
    Table Unit Grade Tier Group Division Vol Episode Season Round Step Schedule Annex Bowl Mark Category Form
    Corps Quadrant Factor
"""
_NUMBERED = frozenset(_NUMBERED_TEXT.split())
_RULERS_TEXT = """
    Henry Louis Elizabeth George Charles Edward James William Richard Philip Francis Frederick Catherine Mary
    Alexander Nicholas Peter Paul John Pius Benedict Leo Gregory Innocent Clement Napoleon Ramses Ferdinand
    Leopold Wilhelm Christian Gustav Ivan Darius Ptolemy Robert Albert Victor Umberto Alfonso Pedro Haakon Olav
    Carl Christina Juan Felipe Margaret Anne Isabella Xerxes Artaxerxes Tutmose Mehmed Suleiman Selim Urban
    Boniface David Kenneth Harald Sigismund Rudolf Otto Maximilian Joseph Charlemagne Theodosius Constantine
"""
_RULERS = frozenset(_RULERS_TEXT.split())
_NOT_NUMBERED_TEXT = """
    A An The And Or Of In On At To By My Your Our Their His Her If As So With For From
"""
_NOT_NUMBERED = frozenset(_NOT_NUMBERED_TEXT.split())

_CAPITALS = re.compile(r"\b(?:A|[A-Z]{2,}s?|[A-Za-z]*[a-z][A-Z][A-Za-z]*)(?![A-Za-z])('s)?")
_ROMAN = re.compile(r"\b([A-Za-z][a-z]+) (X[LC]|L?X{0,3})(IX|IV|V?I{0,3})\b(?<! )('s)?")
_CENTURY = re.compile(r"\b[IVX]+(?= centur(?:y|ies)\b)")
_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}


def capitals(text: str) -> str:
    """The text with its initials and Roman numerals read; other capitals stay. As long as the text, about."""
    if text.islower():
        return text
    text = _CENTURY.sub(lambda century: ordinal(str(_value(century[0]))), text)
    return _CAPITALS.sub(_read, _ROMAN.sub(_numbered, text))


def spelled(letters: str) -> str:
    """ "AI" -> "ay i"."""
    return " ".join("ay" if letter in "Aa" else letter.lower() for letter in letters)


def is_numbered(word: str) -> bool:
    """Whether a capital behind the word may be a Roman numeral: War I, Henry V."""
    return word in _RULERS or word in _NUMBERED


def _read(match: re.Match[str]) -> str:
    genitive = match[1] or ""
    word = match[0].removesuffix(genitive)
    if word == "A":
        return ("a's" if genitive else "ay") if genitive or _is_letter(match) else "a"
    if not word.rstrip("s").isupper():
        return _mixed(word) + genitive
    several = word[-1] == "s"
    read = _initials(word.rstrip("s"), among=_among_capitals(match))
    if several and " " not in read:
        return f"{read}s{genitive}"
    ending = "'s" if several or genitive else ""
    return (read.removesuffix("ay") + "a" if ending and read.endswith(" ay") else read) + ending


def _initials(word: str, *, among: bool) -> str:
    """Read, if it is a word; spelled otherwise. among: other words in capitals."""
    lower = word.lower()
    if lower in _READ:
        return _READ[lower]
    return lower if _is_word(lower, among) else spelled(word)


def _is_word(lower: str, among: bool) -> bool:
    vowel = re.search("[aeiouy]", lower) is not None
    if len(lower) == 1:
        return False
    if len(lower) <= 3:
        return (lower in _SHORT and (among or lower not in _ALSO_INITIALS)) or (among and vowel and known(lower))
    return vowel and (known(lower) or among or len(lower) > 5)


def _is_shouted(word: str) -> bool:
    """Whether a word in capitals is no initials, so that its neighbours may be words, too."""
    lower = word.lower()
    if not word.isupper() or len(word) < 2:
        return False
    return lower in _SHORT - _ALSO_INITIALS if len(word) <= 3 else _is_word(lower, False)


def _neighbours(match: re.Match[str]) -> tuple[str, str]:
    text = match.string
    before = re.search(r"([A-Za-z']+)[^A-Za-z']{1,3}$", text[max(0, match.start() - 24) : match.start()])
    after = re.match(r"[^A-Za-z']{1,3}([A-Za-z']+)", text[match.end() : match.end() + 24])
    return before[1] if before else "", after[1] if after else ""


def _among_capitals(match: re.Match[str]) -> bool:
    before, after = _neighbours(match)
    return (before, match[0]) == ("I", "AM") or any(map(_is_shouted, (before, after)))


def _is_letter(match: re.Match[str]) -> bool:
    """Whether an A is the letter: in the middle of a sentence, or with no noun behind it."""
    before, after = _neighbours(match)
    behind = match.string[match.end() : match.end() + 2]
    if not re.match(r" [A-Za-z'\"(]", behind) or re.fullmatch("is|was|equals|or|and|to|through", after):
        return True
    if any(map(_is_shouted, (before, after))):
        return False
    starts = re.search(r"(?:^|[.?!:;\"(\n—–-])['\" ]*$", match.string[max(0, match.start() - 4) : match.start()])
    return not starts and not (before.istitle() and after.istitle())


def _mixed(word: str) -> str:
    """iPhone, YouTube, PhDs, PostgreSQL."""
    lower = word.lower()
    if lower in _READ:
        return _READ[lower]
    if known(lower):
        return lower
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", word)
    return " ".join(_initials(part, among=False) if part.isupper() else part.lower() for part in parts)


def _numbered(match: re.Match[str]) -> str:
    """A numeral behind a name: "the eighth" of a ruler, and a number of what is counted."""
    word, numeral, genitive = match[1], match[2] + match[3], match[4] or ""
    if not numeral or word in _NOT_NUMBERED or word.lower() == "size":
        return match[0]
    single = len(numeral) == 1
    value = str(_value(numeral))
    if word.title() in _NUMBERED and (word[0].isupper() or not single):
        return f"{word} {cardinal(value)}{genitive}"
    behind = match.string[match.end() : match.end() + 9]
    if word in _RULERS and (numeral != "I" or genitive or re.match(r"$|[.,;:?!)]| (?:of|was|and|is|became)\b", behind)):
        return f"{word} the {ordinal(value)}{genitive}"
    if single or word[0].islower():
        return match[0]
    return f"{word} {cardinal(value)}{genitive}"


def _value(numeral: str) -> int:
    values = [_VALUES[letter] for letter in numeral]
    return sum(-v if v < after else v for v, after in zip(values, [*values[1:], 0], strict=True))
