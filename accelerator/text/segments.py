"""Text -> segments: a long text cut where a reader would breathe; nothing is lost, added or moved.

    text ──> cuts, each with its grade: PARAGRAPH > SENTENCE > CLAUSE > SPACE > CLUSTER
         ──> units: what lies between sentence ends; longer ones also at clause marks, spaces, grapheme clusters
         ──> segments: units packed so that their lengths are even and their ends natural

Sentences are found by sentencex (rules and abbreviations by language, one pass). The language is not known, so every
language compatible with script and function words is tried, and a sentence ends where all agree. A missed end makes a
segment a little longer; a wrong one would be heard.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Literal

from ..errors import InvalidOption
from .check import is_spoken

__all__ = ["Grade", "Segment", "speech_weight", "split"]


class Grade(IntEnum):
    """How natural it is to stop at a place."""

    CLUSTER = 0  # between any two characters as a reader sees them
    SPACE = 1
    CLAUSE = 2
    SENTENCE = 3
    PARAGRAPH = 4


PAUSE_S = {Grade.CLUSTER: 0.0, Grade.SPACE: 0.0, Grade.CLAUSE: 0.15, Grade.SENTENCE: 0.4, Grade.PARAGRAPH: 0.75}
_END_COST = {Grade.CLUSTER: 3.0, Grade.SPACE: 1.5, Grade.CLAUSE: 0.5, Grade.SENTENCE: 0.1, Grade.PARAGRAPH: 0.0}
_CROSSING_COST = 0.7  # of a paragraph's end within a segment
_HEADING_COST = 0.2  # the same after a heading, which belongs to what follows
_LONG_COST = 16.0  # being longer than comfortable weighs four times as much as being shorter
_SHORTEST = 10  # a limit below about two words makes no sense
_GRAINS = 16  # units of less than comfortable / _GRAINS are joined first, which bounds the work per character
_WINDOW = 2000  # characters sentencex sees at once: its time grows with the square of them in some scripts
_MARGIN = 200  # ends so close to a window's end are looked at again, with what follows

# Speech per character, in Latin letters. Rough, after what the same text takes in each script: speakers of different
# languages need about the same time for it (Coupé et al., Science Advances 5, 2019). Other letters weigh 1.
_WEIGHTS = {
    r"\p{Han}\p{Yi}": 3.0,
    r"\p{Hangul}": 2.5,
    r"\p{Hiragana}\p{Katakana}\p{Ethiopic}": 2.0,
    r"\p{Arabic}\p{Hebrew}\p{Syriac}\p{Thaana}": 1.3,  # short vowels are not written
}
_DIGIT_WEIGHT = 4.0  # 1945: nineteen forty-five
_GAP_WEIGHT = 1.0  # white space and marks after something spoken, however many
# Is read as one: 1,234.5 and, in groups, +1 (555) 123-4567 and 4111 1111 1111 1111
_NUMBER = r"\+?\(?\p{Sc}?\p{N}+(?:(?:[.,:-]|\)?[ \u00a0]\(?|\)-?)\p{N}+)*%?"
_NEAR = 80  # characters beside a place, among which a word is looked for
_BARE = r"[\p{Latin}\p{Greek}\p{Cyrillic}\p{Arabic}\p{Hebrew}\p{Inherited}\p{Common}]"  # their accents are not spoken

_LANGUAGES = {  # by script; sentence marks of all scripts are known to each, its abbreviations are not
    r"\p{Cyrillic}": ("ru", "uk", "bg"),
    r"\p{Greek}": ("el",),  # no other language: its question mark is a semicolon
    r"\p{Devanagari}": ("hi", "mr"),
}
_FUNCTION_WORDS = {  # of languages in Latin letters; words that one can hardly write without
    "en": "the a an of and to is in it i he she you was for on that with do no as at die not be",
    "de": "der die das den dem ein eine und ist war nicht er sie es ich zu mit von auf im am",
    "fr": "le les des un une et est à pas il elle je dans pour que qui du au",
    "es": "el los las un una y es no en del que se por con para lo al",
    "it": "il lo gli un una e è non che di della del in per con si al",
    "pt": "o os as um uma e é não do da em que no na para com se ao",
    "pl": "i w z na się nie jest to do że jak o po",
    "nl": "de het een en van niet ik je dat op te zijn met voor",
}


@dataclass(frozen=True)
class Segment:
    """A slice of the text, text[start : start + len(segment.text)], and the silence after it, in seconds.

    pause_s: None where the engine's own silence is to stay as it is. content: what an engine has made of it already
    (phonemes, say), for itself. phonemes: `text` is phonemes, of an engine that makes them of all of a text before it
    cuts, and does not tell of which words.
    """

    text: str
    pause_s: float | None
    start: int
    content: Any = None
    phonemes: bool = False


@dataclass(frozen=True)
class _Unit:
    """text[start:end], with something to speak in it, and how it ends."""

    start: int
    end: int
    grade: Grade
    heading: bool = False  # the end of a paragraph that has no mark, or a colon


Read = Callable[[str], str]


def split(
    text: str, *, comfortable: int = 200, longest: int = 400, first: int | None = None, read: Read | None = None
) -> list[Segment]:
    """Cut a text (already checked by `text.check_text`) into segments whose texts joined are the text itself.

    comfortable, longest: the length aimed at and never exceeded, in Latin letters' worth of speech: see
    `speech_weight`. first: the length aimed at for the first segment, so that its audio comes sooner. Sentences up to
    `longest` stay whole (the first one up to `first`); longer ones are cut at clause marks, else at white space, else
    between grapheme clusters. Each segment has a letter or digit to speak. Only a single grapheme cluster can weigh
    more than `longest`. Time grows linearly with the text.

    read: how the engine reads a text, if not by its letters ("$5" is "five dollars"); lengths are then those of the
    reading, and words that read differently apart than together ("$5 | million") are not separated at a space.
    Raises InvalidOption for lengths that make no sense.
    """
    if not _SHORTEST <= comfortable <= longest:
        raise InvalidOption(
            f"comfortable is {comfortable} and longest {longest}: {_SHORTEST} <= comfortable <= longest is needed"
        )
    if first is not None and first < _SHORTEST:
        raise InvalidOption(f"first is {first}: give at least {_SHORTEST}, or None")
    read = None if read is None else functools.cache(read)
    found = _split(text, comfortable, longest, first, read)
    return found if read is None else _bounded(found, comfortable, longest, read)


def _split(text: str, comfortable: float, longest: float, first: int | None, read: Read | None) -> list[Segment]:
    scale = _Scale(text) if read is None else _ReadScale(text, read)
    if scale.between(0, len(text)) <= min(comfortable, first or comfortable) and not _paragraph_ends(text):
        return [Segment(text, 0.0, 0)]  # nothing to decide
    units = _units(text, scale, comfortable, longest, first)
    packed = list(_pack(units, scale, comfortable, longest, first))
    starts = [0, *(unit.end for unit in packed)]
    pauses = [PAUSE_S[unit.grade] for unit in packed[:-1]] + [0.0]
    return [Segment(text[a:b], p, a) for (a, b), p in zip(itertools.pairwise(starts), pauses, strict=True)]


def _bounded(segments: Sequence[Segment], comfortable: float, longest: float, read: Read) -> list[Segment]:
    """The segments, with those cut again whose reading is longer than the sum of their words' readings."""
    bounded: list[Segment] = []
    for segment in segments:
        excess = len(read(segment.text).strip()) / longest
        cut = [segment] if excess <= 1 else _split(segment.text, comfortable / excess, longest / excess, None, read)
        if len(cut) > 1:
            cut = _bounded(cut, comfortable / excess, longest, read)
            cut = [replace(each, start=segment.start + each.start) for each in cut]
            cut[-1] = replace(cut[-1], pause_s=segment.pause_s)
        bounded += cut
    return bounded


def speech_weight(text: str) -> float:
    """How long a text is when spoken, in Latin letters: an ideograph is 3, a Hangul syllable 2.5, a kana 2, a digit 4.

    White space and marks count 1 after each stretch of letters, so that plain English weighs about its length.
    """
    return _Scale(text).between(0, len(text))


class _Scale:
    """Cumulative weights: what lies between two places is one subtraction away."""

    def __init__(self, text: str) -> None:
        weights, speaking = [0.0], False
        for char in text:
            kind, weight = _weight(char)
            if kind == "mark":
                weight *= speaking  # on something that is not spoken itself
            elif kind == "letter":
                speaking = True
            else:
                weight, speaking = _GAP_WEIGHT * speaking, False
            weights.append(weight)
        self._sums = list(itertools.accumulate(weights))
        self._spoken = [0, *itertools.accumulate(map(is_spoken, text))]

    def apart(self, start: int, place: int, end: int) -> bool:
        """Whether the text before and after `place` is read apart as it is read together."""
        return True

    def between(self, start: int, end: int) -> float:
        return self._sums[end] - self._sums[start]

    def speaks(self, start: int, end: int) -> bool:
        """Whether there is a letter or digit."""
        return self._spoken[end] > self._spoken[start]

    def reach(self, start: int, weight: float) -> int:
        """The largest `place` for which text[start:place] weighs no more than `weight`."""
        return bisect.bisect_right(self._sums, self._sums[start] + weight) - 1


class _ReadScale(_Scale):
    """The same by an engine's reading: each word's reading is weighed, and spread evenly over its characters."""

    def __init__(self, text: str, read: Read) -> None:
        weights, spoken = [0.0] * (len(text) + 1), [0] * (len(text) + 1)
        self._text, self._read = text, read
        for match in re.finditer(r"\S+", text):
            word, (start, end) = match[0], match.span()
            if not (size := len(word) if word.isascii() and word.isalpha() and word.islower() else self._size(word)):
                continue
            voiced = [is_spoken(char) for char in word]
            weights[start + 1 : end + 1] = [size / len(word)] * len(word)
            spoken[start + 1 : end + 1] = voiced if any(voiced) else [1] * len(word)
            weights[min(end + 1, len(text))] += _GAP_WEIGHT
        self._sums, self._spoken = list(itertools.accumulate(weights)), list(itertools.accumulate(spoken))

    def apart(self, start: int, place: int, end: int) -> bool:
        # The words next to the place suffice: what changes a number's reading stands beside it.
        before = self._text[max(start, place - _NEAR) : place].split()
        behind = self._text[place : min(end, place + _NEAR)].split()
        if not before or not behind:
            return True
        together, *apart = (self._read(each).split() for each in (f"{before[-1]} {behind[0]}", before[-1], behind[0]))
        return together == [*apart[0], *apart[1]]

    def _size(self, word: str) -> int:
        return len(self._read(word).strip())


@functools.lru_cache(maxsize=4096)
def _weight(char: str) -> tuple[Literal["letter", "mark", "gap"], float]:
    """What a character is, digits being letters, and its weight."""
    if char.isascii():
        return ("letter", _DIGIT_WEIGHT if char.isdigit() else 1.0) if char.isalnum() else ("gap", 0.0)
    if _pattern(r"\p{M}").match(char):
        return "mark", 0.0 if _pattern(_BARE).match(char) else 1.0  # vowel signs of South Asia are spoken
    if not is_spoken(char):
        return "gap", 0.0
    if _pattern(r"\p{Nd}").match(char):
        return "letter", _DIGIT_WEIGHT
    return "letter", next((w for scripts, w in _WEIGHTS.items() if _pattern(f"[{scripts}]").match(char)), 1.0)


# Cuts


@functools.cache
def _pattern(expression: str) -> Any:
    import regex  # on use: a short text needs none of it

    return regex.compile(expression)


# ASCII marks only before white space: 3,000 and 10:30 are numbers. Closing marks and the white space go along.
_CLAUSE = (
    r"(?:[,;:…)\]–-](?=[\p{Pe}\p{Pf}\"']*\s)|[—،؛、，；：﹐﹔﹕၊፣፤፥፦]|\.\.\.)[\p{Pe}\p{Pf}\"']*\s*"
    r"|\s(?=[(\[–—])"
)
# Every script's full stops but those that need the library's judgement; Tibetan's are no terminals for Unicode
_FULL_STOP = (
    r"(?V1)[\p{Sentence_Terminal}།༎--[.!?၊]](?!\p{Nd})[\p{Sentence_Terminal}།༎…]*[\p{Pe}\p{Pf}\"']*\s*"  # V1: has --
)
_QUOTES = r"[\p{Ps}\p{Pe}\p{Pi}\p{Pf}\"'`]"
_BEFORE_NUMBER = r"(?:(?<!\p{L})\p{L}{1,4}\.[^\S\r\n]+|．)$"
_OPENING = r"[\p{Ps}\p{Pi}\"'¿¡„‚]+$"


def _units(text: str, scale: _Scale, comfortable: float, longest: float, first: int | None) -> list[_Unit]:
    """The text as units that each have something to speak and weigh at most `longest`.

    Small ones are joined, so that a bounded number of units makes a segment.
    """
    clusters = {match.end() for match in _pattern(r"\X").finditer(text)}
    numbers = (match.span() for match in _pattern(_NUMBER).finditer(text))
    in_numbers = {i for a, b in numbers if scale.between(a, b) <= longest for i in range(a + 1, b)}
    limits = [longest if first is None else min(first, longest)]  # of the current sentence: the first one has its own

    def between(
        start: int, end: int, cuts: Callable[[str], Iterable[int]], kind: Grade = Grade.SENTENCE
    ) -> Iterator[tuple[int, int]]:
        """text[start:end] cut at places that split no cluster; in a sentence, nor what must be read together."""
        places = {start + place for place in cuts(text[start:end])}
        inner = sorted(place for place in places if start < place < end and place in clusters)
        if kind in (Grade.CLAUSE, Grade.SPACE):
            inner = [place for place in inner if place not in in_numbers]
        if kind is Grade.SPACE:
            inner = [place for place in inner if scale.apart(start, place, end)] or inner
        return itertools.pairwise([start, *inner, end])

    def cut(start: int, end: int, grade: Grade, finer: Sequence[Any]) -> Iterator[_Unit]:
        """The unit cut in the first of the `finer` ways that finds a place, and each part again in the other ways."""
        if scale.between(start, end) <= limits[0] or not finer:
            yield _Unit(start, end, grade)
            return
        (kind, cuts), *rest = finer
        if kind is Grade.SPACE and scale.between(start, end) <= longest:
            yield _Unit(start, end, grade)  # for a first segment no clause is torn
            return
        for a, b in between(start, end, cuts, kind):
            yield from cut(a, b, grade if b == end else kind, rest)

    def by_cluster(part: str) -> Iterator[int]:
        weights, place = _Scale(part), 0
        numbers = [match.span() for match in _pattern(_NUMBER).finditer(part)]
        inside = {i for a, b in numbers if weights.between(a, b) <= comfortable for i in range(a + 1, b)}
        ends = [match.end() for match in _pattern(r"\X").finditer(part) if match.end() not in inside]
        while (near := bisect.bisect_right(ends, weights.reach(place, comfortable))) < len(ends):
            place = ends[near - 1] if near and ends[near - 1] > place else ends[near]  # at least one cluster
            yield place

    finer = (
        (Grade.SENTENCE, lambda part: _sentence_ends(_pattern(_QUOTES).sub(" ", part), part)),
        (Grade.CLAUSE, _clause_ends),
        (Grade.SPACE, lambda part: (match.end() for match in _pattern(r"\s+").finditer(part))),
        (Grade.CLUSTER, by_cluster),
    )
    found: list[_Unit] = []
    begin = 0
    for end in [*(end for end in _paragraph_ends(text) if end in clusters), len(text)]:
        for a, b in between(begin, end, lambda paragraph: _sentence_ends(paragraph, paragraph)):
            found += cut(a, b, Grade.PARAGRAPH if b == end else Grade.SENTENCE, finer)
            if scale.speaks(0, b):
                limits[0] = longest
        found[-1] = replace(found[-1], heading=_is_heading(text[begin:end]))
        begin = end
    return _join_small(found, scale, comfortable / _GRAINS, longest)


def _paragraph_ends(text: str) -> list[int]:
    """The end of each white space with an empty line, between two paragraphs."""
    ends = []
    for match in re.finditer(r"\s+", text):
        lines = match[0].replace("\r\n", "\n")
        if (sum(map(lines.count, "\n\r\x0b\x0c\x85\u2028")) > 1 or "\u2029" in lines) and 0 < match.end() < len(text):
            ends.append(match.end())
    return ends


def _is_heading(paragraph: str) -> bool:
    last = paragraph.rstrip()[-1:]
    return last in (":", "：") or (last != "" and is_spoken(last))


def _clause_ends(part: str) -> Iterator[int]:
    for match in _pattern(_CLAUSE).finditer(part):
        yield match.end()


def _sentence_ends(text: str, original: str) -> set[int]:
    """Where sentences end: after the white space, before opening quotes that follow.

    `text` is searched; `original` is the same text, position by position, before its quotes were hidden.
    """
    # White space of several bytes makes sentencex 1.0 slice within a character and panic.
    plain = _pattern(r"[^\S\n ]").sub(" ", text)
    ends = {match.end() for match in _pattern(_FULL_STOP).finditer(text)}
    start = 0
    while start < len(plain):
        window = plain[start : start + _WINDOW]
        last = start + len(window) == len(plain)
        found = _agreed_ends(window)
        keep = [start + end for end in found if last or end <= len(window) - _MARGIN]
        ends.update(keep)
        start = len(plain) if last else max([*keep, start + _WINDOW // 2])
    blanks = [match.span() for match in re.finditer(r"\s+", text)]
    for end in list(ends):  # white space is never a part of its own
        begun = bisect.bisect_right(blanks, (end, len(text))) - 1
        if begun >= 0 and end < blanks[begun][1]:
            ends.remove(end)
            ends.add(blanks[begun][1])
    return {_before_opening(original, end) for end in ends if not _goes_on(original, end)}


def _agreed_ends(window: str) -> set[int]:
    """Ends of sentences in all languages that a text like this may be in."""
    import sentencex

    agreed: set[int] | None = None
    for language in _languages(window):
        try:
            found = {item["end_index"] for item in sentencex.get_sentence_boundaries(language, window)}
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # a bug in its Rust code is no reason to lose a request
                raise
            continue
        agreed = found if agreed is None else agreed & found
    return agreed or set()


def _languages(window: str) -> Sequence[str]:
    """English and the languages whose script or function words occur in the text; all of them if none do."""
    for script, languages in _LANGUAGES.items():
        if len(_pattern(script).findall(window)) > len(window) / 4:
            return languages
    words = set(_pattern(r"\p{Latin}+").findall(window.lower()))
    if not words:
        return ["en"]
    own = _own_words()
    unclear = not any(words & some for some in own.values())
    return [language for language in own if language == "en" or unclear or words & own[language]]


@functools.cache
def _own_words() -> dict[str, frozenset[str]]:
    """Function words by language, without those that English has too ("die" does not suggest German)."""
    english = frozenset(_FUNCTION_WORDS["en"].split())
    own = {language: frozenset(words.split()) - english for language, words in _FUNCTION_WORDS.items()}
    return {**own, "en": english}


def _before_opening(text: str, end: int) -> int:
    """The place moved before quotes and brackets that open what follows: `Yes. “` ends after the space."""
    opening = _pattern(_OPENING).search(text, max(0, end - 8), end)
    if opening and opening.start() and text[opening.start() - 1].isspace():
        return int(opening.start())
    return end


def _goes_on(text: str, end: int) -> bool:
    """Whether a sentence continues nevertheless: 「…。」と, or a number after a short word, Ch. 3."""
    if text[end - 1 : end] in ("」", "』"):
        return _pattern(r"\p{Hiragana}").match(text, end) is not None
    number = text[end : end + 1].isdigit()
    return number and _pattern(_BEFORE_NUMBER).search(text, max(0, end - 12), end) is not None


def _join_small(units: Iterable[_Unit], scale: _Scale, least: float, longest: float) -> list[_Unit]:
    """Units of less than `least`, and those with nothing to speak, joined to the neighbour that they fit better."""
    joined: list[_Unit] = []
    for unit in units:
        if joined:
            before = joined[-1]
            mute = not scale.speaks(unit.start, unit.end) or not scale.speaks(before.start, before.end)
            small = min(scale.between(u.start, u.end) for u in (before, unit)) < least
            fits = scale.between(before.start, unit.end) <= longest
            if mute or (small and fits and before.grade <= unit.grade and before.heading >= unit.heading):
                joined[-1] = replace(unit, start=before.start)
                continue
        joined.append(unit)
    return joined


# Packing


def _pack(
    units: Sequence[_Unit], scale: _Scale, comfortable: float, longest: float, first: int | None
) -> Iterator[_Unit]:
    """Units joined into segments with the least total cost: uneven lengths and unnatural ends cost."""
    best = [0.0] * (len(units) + 1)
    came = [0] * (len(units) + 1)
    for end in range(1, len(units) + 1):
        best[end], crossings = float("inf"), 0.0
        for start in range(end - 1, -1, -1):
            weight = scale.between(units[start].start, units[end - 1].end)
            if weight > longest and start < end - 1:
                break
            if start < end - 1 and units[start].grade is Grade.PARAGRAPH:
                crossings += _HEADING_COST if units[start].heading else _CROSSING_COST
            aim = first if first is not None and start == 0 else comfortable
            cost = best[start] + _cost(weight, aim) + crossings
            if end < len(units):
                cost += _END_COST[units[end - 1].grade]
            if cost < best[end]:
                best[end], came[end] = cost, start
    ends = [len(units)]
    while ends[-1]:
        ends.append(came[ends[-1]])
    for start, end in itertools.pairwise(reversed(ends)):
        yield replace(units[end - 1], start=units[start].start)


def _cost(weight: float, aim: float) -> float:
    """The cost of a segment's length: 0 at the aim, 1 at length 0."""
    off = weight / aim - 1
    return off * off * (_LONG_COST if off > 0 else 1.0)
