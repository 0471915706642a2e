"""What may be spoken: checks that refuse a text with a clear message, and never change one.

Text reaches the engine exactly as given. Normalising it (even to NFC) or stripping characters would make a wrapped
engine speak differently from the unwrapped one. Only what the engine cannot read, and would silently leave out, is
found here: it is refused, or on request left out and reported.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import InvalidInput, InvalidText

__all__ = [
    "MAX_CHARS",
    "UNSPEAKABLE",
    "Stretch",
    "Unread",
    "Unspeakable",
    "check_characters",
    "check_text",
    "is_spoken",
    "readable",
    "stretches",
]

MAX_CHARS = 100_000  # about two hours of speech; a megabyte is above it in every script

# Letters by category, though nothing can be seen or said: the Hangul fillers
_BLANK = frozenset("\u115f\u1160\u3164\uffa0")


def check_text(text: str, *, max_chars: int = MAX_CHARS) -> str:
    """The text itself, unchanged, when it has at least one letter or digit to speak.

    Emoji, any script and direction, combining marks and control characters may accompany it. Raises InvalidText: see
    `check_characters`, and for text without any letter or digit (empty, white space, punctuation, emoji).
    """
    check_characters(text, max_chars=max_chars)
    if not text.strip():
        raise InvalidText("the text is empty: give at least one word to speak")
    if not any(map(is_spoken, text)):
        raise InvalidText(f"the text has no letter or digit, so there is nothing to speak: {_shown(text)}")
    return text


Unspeakable = Literal["error", "skip"]
UNSPEAKABLE: tuple[Unspeakable, ...] = ("error", "skip")


@dataclass(frozen=True)
class Stretch:
    """text[start:end] of some text."""

    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    def __str__(self) -> str:
        """For messages."""
        return f"{_shown(self.text)} at position {self.start} (text[{self.start}:{self.end}])"


@dataclass(frozen=True)
class Unread:
    """What a voice cannot read in a text, in order.

    foreign: letters and digits, which would be lost. marks: anything else without a reading, which becomes a pause or
    nothing. speaks: what the voice can read, for messages.
    """

    foreign: tuple[Stretch, ...] = ()
    marks: tuple[Stretch, ...] = ()
    speaks: str = ""


def stretches(text: str, lacks: Callable[[str], bool]) -> tuple[Stretch, ...]:
    """The letters and digits for which `lacks` is true; runs with only spaces and marks in between are joined."""
    found: list[list[int]] = []  # [start, end]
    joined = False
    for place, char in enumerate(text):
        if not is_spoken(char):
            continue
        if not lacks(char):
            joined = False
        elif joined:
            found[-1][1] = place + 1
        else:
            found.append([place, place + 1])
            joined = True
    return tuple(Stretch(text[start:end], start) for start, end in found)


def readable(text: str, unread: Unread, unspeakable: Unspeakable) -> tuple[str, tuple[Stretch, ...]]:
    """The text to be spoken, and what is left out. Foreign stretches become spaces, so that positions stay valid.

    unspeakable: "error" refuses a text with anything foreign. Raises InvalidText then, and if nothing would be left.
    """
    if not unread.foreign:
        return text, unread.marks
    first, more = unread.foreign[0], len(unread.foreign) - 1
    named = f"{first}" + (f" and {more} more" if more else "")
    if unspeakable == "error":
        raise InvalidText(
            f"the text has what this voice cannot speak: {named}. It speaks {unread.speaks}: use another voice for "
            "that, or leave it out with unspeakable='skip'"
        )
    spoken, end = [], 0
    for stretch in unread.foreign:
        spoken += [text[end : stretch.start], " " * len(stretch.text)]
        end = stretch.end
    left = "".join([*spoken, text[end:]])
    if not any(map(is_spoken, left)):
        raise InvalidText(f"nothing of the text can be spoken by this voice, which speaks {unread.speaks}: {named}")
    return left, _in_order([*unread.foreign, *unread.marks])


def _in_order(found: Sequence[Stretch]) -> tuple[Stretch, ...]:
    return tuple(sorted(found, key=lambda stretch: stretch.start))


def is_spoken(char: str) -> bool:
    """Whether a character is a letter or digit of any script."""
    return unicodedata.category(char)[0] in "LN" and char not in _BLANK


def check_characters(
    text: str, *, max_chars: int = MAX_CHARS, what: str = "the text", error: type[InvalidInput] = InvalidText
) -> str:
    """The text itself, unchanged, when a tokenizer can take it; `what` names it in messages.

    Raises `error` for what is not a str, is longer than `max_chars`, has a surrogate (UTF-8 has no such code) or a NUL.
    NUL ends a string in C, so part of the text would be lost silently; other control characters are harmless.
    """
    if not isinstance(text, str):
        hint = ": decode it first, as in data.decode('utf-8')" if isinstance(text, (bytes, bytearray)) else ""
        raise error(f"{what} must be a str, not {type(text).__name__}{hint}")
    if len(text) > max_chars:
        raise error(f"{what} has {len(text):,} characters, more than {max_chars:,}: split it into several requests")
    if (at := text.find("\0")) >= 0:
        raise error(f"{what} has a NUL character at position {at}: remove it (is it binary data?)")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise error(
            f"{what} has half a character (surrogate U+{ord(text[exc.start]):04X}) at position {exc.start}: "
            "decode the original bytes again, or replace it with text.encode('utf-8', 'replace').decode()"
        ) from None
    return text


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
