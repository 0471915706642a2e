"""Everyday English text -> the words a reader would say: lower case letters, apostrophes, and the marks , . ? !

    spoken("Dr. Lee paid $3.50 at 9:05 on 2024-03-01.")
    -> "doctor lee paid three dollars and fifty cents at nine oh five on march first, twenty twenty four."

A trained voice has read nothing else, so what it is given passes through here first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .capitals import capitals
from .characters import Stretch, first_places, foreign, plain
from .quantities import quantities
from .shortforms import expanded

__all__ = ["Reading", "Stretch", "read", "spoken"]


@dataclass(frozen=True)
class Reading:
    """How a text is read.

    words: lower case letters, apostrophes and the marks , . ? ! only; empty if there is nothing to say.
    skipped: the characters that have no reading (emoji, drawings, control characters), each once, where the text has
        it first. What is read as a space or a pause (white space, brackets, dashes, quotes) or changes its neighbour is
        none.
    foreign: the stretches of the text that are left out since their letters are of scripts that an English voice
        cannot read, in order, with the digits and marks within.
    """

    words: str
    skipped: tuple[Stretch, ...] = ()
    foreign: tuple[Stretch, ...] = ()


def spoken(text: str) -> str:
    """The words of `text`; empty if there is nothing to say."""
    return read(text).words


def read(text: str) -> Reading:
    """How `text` is read. Takes any str, in time that grows as its length."""
    stretches = foreign(text)
    known = text if not stretches else _without(text, stretches)
    text = _breaks(plain(known))
    text = capitals(quantities(expanded(text)))
    text = re.sub(r"(?<!\.)\.{2,} ?(?=[a-z])", ", ", text).lower()  # a pause, and no end
    text = re.sub(r" [-–—]+ |—|--+", ", ", text)
    unread = set(re.findall(r"[^a-z0-9',.?!;:()\[\] \"/–-]", text))
    return Reading(_marked(text), first_places(known, unread) if unread else (), stretches)


def _without(text: str, stretches: tuple[Stretch, ...]) -> str:
    """With as many spaces instead, so that places stay."""
    left, end = [], 0
    for stretch in stretches:
        left += [text[end : stretch.start], " " * len(stretch.text)]
        end = stretch.end
    return "".join([*left, text[end:]])


def _breaks(text: str) -> str:
    """On one line: an empty line ends a sentence, and an item of a list is a phrase."""
    if "\n" in text or "\r" in text:
        text = re.sub(r"[ \t\r]*\n[ \t\r]*\n\s*", ". ", text)
        text = re.sub(r"\n[ \t]*(?:[-*–] |(?=\d{1,3}[.)] |, ))", ", ", text)
    return " ".join(text.split())


def _marked(text: str) -> str:
    """With the marks that are read, one at a time."""
    text = re.sub(r"[;:()\[\]]", ",", text)
    text = re.sub(r"[^a-z',.?! ]+", " ", text)
    text = re.sub(r"(?<![a-z])'|'(?![a-z])", " ", text)  # quotes, not apostrophes
    text = re.sub(r" +", " ", text)
    text = re.sub(r" ?[,.?!][ ,.?!]*", lambda marks: _strongest(marks.group()) + " ", text)
    return text.lstrip(" ,.?!").rstrip(" ,")


def _strongest(marks: str) -> str:
    return next(mark for mark in "?!.," if mark in marks)
