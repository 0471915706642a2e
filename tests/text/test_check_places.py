"""What cannot be spoken is told with its place in the text that the caller gave, whatever it is read as."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from accelerator import UniversalOptimizer
from accelerator.engines.base import Bound, Cloning
from accelerator.engines.reference.stages import ReferenceStages
from accelerator.errors import InvalidReference, InvalidText
from accelerator.reference.spoken import Stretch, read
from accelerator.text.check import Unread
from accelerator.text.segments import Segment
from tests.doubles import BareStages

RATE = 8_000


@pytest.mark.parametrize(
    ("text", "skipped"),
    [
        ("Well done 😀😀👍!", [(10, 11, "😀"), (12, 13, "👍")]),
        ("\uff03 is \uff0a", [(0, 1, "＃"), (5, 6, "＊")]),
        ("Note \u2217 one", [(5, 6, "∗")]),
        ("Say 你★好 to ★ him", [(11, 12, "★")]),
        ("One.\n\n- ★\r\n  \u2028two ♥", [(8, 9, "★"), (18, 19, "♥")]),
        ("\u2a74", [(0, 1, "⩴")]),
        ("Plain words, only.", []),
    ],
)
def test_signs_without_a_reading(text: str, skipped: list[tuple[int, int, str]]) -> None:
    assert list(read(text).skipped) == [Stretch(*each) for each in skipped]


def test_every_sign_is_found_where_it_is() -> None:
    for code in range(0x20000):
        if 0xD800 <= code < 0xE000:
            continue
        for each in read(f"so {chr(code)} so").skipped:
            assert each == Stretch(3, 4, chr(code)), hex(code)
    for code in range(0xE0000, sys.maxunicode, 97):
        assert all(each == (3, 4, chr(code)) for each in read(f"so {chr(code)} so").skipped), hex(code)


def test_what_is_of_another_script_leaves_the_rest_as_it_is_read() -> None:
    assert read("Say 你好 to 3 people").words == read("Say  to 3 people").words
    assert read("Now (你好) 5 more").words == read("Now (  ) 5 more").words


class Speaks(BareStages):
    """An adapter that is its engine and its stages, too, and reads as the voice in the box does."""

    name, sample_rate, options = "speaks", RATE, None
    cloning: Cloning | None = Cloning("useful", (0.1, 9.0))
    windows = ()
    unread = ReferenceStages.unread
    _words = staticmethod(read)

    def __init__(self, schedule: str) -> None:
        self.schedule = schedule

    def parts(self) -> Sequence[Any]:
        return ()

    def bind(self, calls: Any) -> Bound:
        return Bound(self, self)

    def release(self) -> bool:
        return False

    def original(self, request: Any) -> Any:
        raise AssertionError("not needed")

    def segments(self, request: Any, *, soon: bool) -> list[Segment]:
        return [Segment(request.text, 0.0, 0)]

    def encode(self, reference: Any) -> Any:
        return {}

    def generate(self, segment: Segment, voice: Any, job: Any, *, resume: Sequence[Any] = ()) -> Any:
        yield (np.full(800, 0.5, np.float32),)


TEXT = "Well ＃ done 🎉, say 你好 to him."
PLACES = [
    {"text": "＃", "start": 5, "end": 6},
    {"text": "🎉", "start": 12, "end": 13},
    {"text": "你好", "start": 19, "end": 21},
]
tone = (0.3 * np.sin(np.arange(RATE) / 9)).astype(np.float32), RATE


@pytest.mark.parametrize("schedule", ["batched", "pooled"])
def test_every_entry_tells_the_same_places(schedule: str) -> None:
    adapter: Any = Speaks(schedule)
    with UniversalOptimizer(None, adapter=adapter) as optimizer:
        stream = optimizer.stream(TEXT, unspeakable="skip")
        assert stream.metrics["skipped"] == PLACES, "known before it speaks"
        list(stream)
        answers = [optimizer.synthesize(TEXT, unspeakable="skip"), optimizer.synthesize(TEXT, tone, unspeakable="skip")]
        answers += optimizer.synthesize_batch([TEXT, TEXT], unspeakable="skip")
        answers.append(asyncio.run(optimizer.asynthesize(TEXT, unspeakable="skip")))
        assert [each.metrics["skipped"] for each in (*answers, SimpleNamespace(metrics=stream.metrics))] == [PLACES] * 6
        said = r"'你好' at position 19 \(text\[19:21\]\)\. It speaks English"
        for refused in (
            lambda: optimizer.synthesize(TEXT),
            lambda: optimizer.stream(TEXT),
            lambda: optimizer.synthesize_batch([TEXT]),
            lambda: asyncio.run(optimizer.asynthesize(TEXT)),
        ):
            with pytest.raises(InvalidText, match=said):
                refused()
        with pytest.raises(InvalidReference, match=r"cannot read, '你好' at position 19 \(text\[19:21\]\); it speaks"):
            optimizer.synthesize("Hello.", tone, TEXT)
    assert all(TEXT[each["start"] : each["end"]] == each["text"] for each in PLACES)  # type: ignore[misc]


def test_a_long_stretch_is_shown_short_and_told_whole() -> None:
    from accelerator.text.check import Stretch, readable

    foreign = Unread((Stretch("好" * 50, 7),), (), "English")
    shown = re.escape("好" * 37 + "...")
    with pytest.raises(InvalidText, match=rf"'{shown}' at position 7 \(text\[7:57\]\)"):
        readable("Hello, " + "好" * 50, foreign, "error")
