"""Where a text and a voice stand in an engine's method."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Optional, Union

import pytest

from accelerator import UniversalOptimizer
from tests.engines.plain import TONE


def first(text: Any, voice: Any = None) -> Any:
    return text, voice


def by_position(text: Any, voice: Any = None, /) -> Any:
    return text, voice


def behind(speaker: Any, words: Any) -> Any:
    return words, speaker


def behind_by_position(speaker: Any, words: Any, /) -> Any:
    return words, speaker


def named(voice_id: Any, style: Any = None, *, text: Any) -> Any:
    return text, voice_id


def another_first(style: Any = None, sentence: Any = "", speaker: Any = None) -> Any:
    return sentence, speaker


def any_of_them(*arguments: Any, voice: Any = None) -> Any:
    return arguments[0], voice


def anything(**options: Any) -> Any:
    return options["text"], options["voice"]


def whatever(*arguments: Any, **options: Any) -> Any:
    return arguments[0], options["voice"]


SIGNATURES = [first, by_position, behind, behind_by_position, named, another_first, any_of_them, anything, whatever]


@pytest.mark.parametrize("function", SIGNATURES)
def test_a_text_and_a_voice_stand_in_many_places(function: Any) -> None:
    said: list[Any] = []

    class Engine:
        tts = staticmethod(function)

    def speaks(*arguments: Any, **options: Any) -> Any:
        said.append(function(*arguments, **options))
        return TONE, 8000

    speaks.__wrapped__ = function  # type: ignore[attr-defined]  # so that it has its signature
    Engine.tts = staticmethod(speaks)  # type: ignore[assignment]
    for engine in (Engine(), speaks):
        UniversalOptimizer(engine).synthesize("Hello.", voice="Ana")
    assert said == [("Hello.", "Ana")] * 2


def counted(text: str, speaker_id: int) -> Any: ...


def counted_or_not(text: str, speaker_id: int | None = None) -> Any: ...


def counted_in_typing(text: str, speaker_id: Any = None) -> Any: ...


def counted_by_default(text, speaker_id=0) -> Any: ...  # type: ignore[no-untyped-def]


def named_in_words(text: str, speaker_id: str = "0") -> Any: ...


def either(text: str, speaker_id: Any = None) -> Any: ...


def unsaid(text, speaker_id=None) -> Any: ...  # type: ignore[no-untyped-def]


counted_in_typing.__annotations__["speaker_id"] = Optional[int]  # noqa: UP045  # not a string
either.__annotations__["speaker_id"] = Union[int, str]  # noqa: UP007
NUMBERS = [(each, 3) for each in (counted, counted_or_not, counted_in_typing, counted_by_default)]
NUMBERS += [(each, "3") for each in (named_in_words, either, unsaid)]


@pytest.mark.parametrize(("function", "expected"), NUMBERS)
def test_a_voices_number_is_a_number_where_voices_are_counted(function: Any, expected: Any) -> None:
    said: list[Any] = []

    def tts(text: str, speaker_id: Any = None) -> Any:
        said.append(speaker_id)
        return TONE, 8000

    tts.__wrapped__ = function  # type: ignore[attr-defined]
    UniversalOptimizer(SimpleNamespace(tts=tts)).synthesize("Hello.", voice="3")
    assert said == [expected]
    assert type(said[0]) is type(expected)
    UniversalOptimizer(SimpleNamespace(tts=tts)).synthesize("Hello.", voice="anna")
    assert said[1] == "anna"
