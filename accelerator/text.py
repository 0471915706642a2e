"""What may be spoken: checks that refuse a text with a clear message, and never change one.

Text reaches the engine exactly as given. Normalising it (even to NFC) or stripping characters would make a wrapped
engine speak something else than the same engine alone.
"""

from __future__ import annotations

import unicodedata

from .errors import InvalidInput, InvalidText

__all__ = ["MAX_CHARS", "check_characters", "check_text", "is_spoken"]

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


def is_spoken(char: str) -> bool:
    """Whether a character is a letter or digit of any script."""
    return unicodedata.category(char)[0] in "LN" and char not in _BLANK


def check_characters(
    text: str, *, max_chars: int = MAX_CHARS, what: str = "the text", error: type[InvalidInput] = InvalidText
) -> str:
    """The text itself, unchanged, when a tokenizer can take it; `what` names it in messages.

    Raises `error` for what is not a str, is longer than `max_chars`, has a surrogate (UTF-8 has no such code) or a NUL.
    NUL ends a string in C, so part of the text would be lost without a word; other control characters are harmless.
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
