"""A long text in phrases short enough to be spoken in one breath, cut where a reader would pause.

phrases("One. Two, and a long rest of the sentence.", longest=20) -> ["One. Two,", "and a long rest of", ...]
"""

from __future__ import annotations

import re

__all__ = ["phrases"]

_DIGIT = "(?:zero|oh|one|two|three|four|five|six|seven|eight|nine)"
_NUMBER = rf"\b(?:plus )?{_DIGIT}(?:,? {_DIGIT}){{3,}}\b"  # a telephone's, say, digit by digit


def phrases(text: str, longest: int) -> list[str]:
    """The phrases, of at most `longest` UTF-8 bytes (unless a single character has more). Nothing is lost but spaces.

    Ends of sentences are preferred to commas, these to spaces, these to places in a number that is read digit by digit,
    and these to a cut within a word. Pieces that fit together stay together.
    """
    ends, commas, spaces = r"(?<=[.?!])(\s+)", r"(?<=,)(\s+)", r"(\s+)"
    whole = [f"{_NUMBER}|{place}" for place in (commas, spaces)]
    return _cut(text.strip(), longest, (ends, *whole, commas, spaces, r"(?s)(?<=.)()(?=.)"))


def _cut(text: str, longest: int, breaks: tuple[str, ...]) -> list[str]:
    if _size(text) <= longest or not breaks:
        return [text] if text else []
    pieces: list[str] = []
    end = 0
    found = (match for match in re.finditer(breaks[0], text) if match[1] is not None)
    for match in [*found, None]:
        part = text[end : match.start() if match else len(text)]
        end = match.end() if match else len(text)
        glue = "" if len(breaks) == 1 else " "
        if pieces and _size(pieces[-1] + glue + part) <= longest:
            pieces[-1] += glue + part
        else:
            pieces.append(part)
    return [finer for piece in pieces for finer in _cut(piece, longest, breaks[1:])]


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
