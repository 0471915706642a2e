"""A check that PyTorch fails too is retired, and no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from accelerator.audio.checks import check_audio
from accelerator.errors import BadOutput
from accelerator.metrics import Meter, measuring
from accelerator.parts.part import Part
from accelerator.pipeline.fallback import MAX_FAILURES, Route
from accelerator.pipeline.selection import Choice


def _never_silent(audio: np.ndarray) -> None:
    if not audio.any():
        raise BadOutput("silent")


LOUD, SILENT, BROKEN = np.full(16_000, 1.5), np.zeros(32_000), np.full(16_000, np.nan)


def checked_route(answer: np.ndarray, pytorch: np.ndarray, *, generator: bool = False) -> tuple[Route, list[str]]:
    """A route whose two implementations answer so, and who was called."""
    called: list[str] = []

    def implementation(name: str, audio: np.ndarray) -> Any:
        def once(**_: Any) -> np.ndarray:
            called.append(name)
            return audio

        def items(**_: Any) -> Iterator[np.ndarray]:
            yield once()

        return items if generator else once

    part = Part(
        "decoder",
        "decode",
        implementation("pytorch", pytorch),
        lambda call: 1.0,
        check=lambda audio: check_audio(audio, 16_000),
        streams=generator,
    )
    return Route(part, lambda _: Choice(implementation("part", answer), "")), called


@pytest.mark.parametrize("generator", [False, True])
@pytest.mark.parametrize(("audio", "check"), [(LOUD, "clipped"), (SILENT, "silent")])
def test_a_check_that_pytorch_fails_too_is_retired(
    audio: np.ndarray, check: str, generator: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is worse off: an engine that is loud by itself is not run twice at every request."""
    route, called = checked_route(audio, audio, generator=generator)
    ask = (lambda: list(route()).pop()) if generator else route
    meters = [Meter() for _ in range(4)]
    for meter in meters:
        with measuring(meter):
            np.testing.assert_array_equal(ask(), audio)
    assert called == ["part", "pytorch", "part", "part", "part"]
    assert [len(meter.result()["fallback"]) for meter in meters] == [1, 0, 0, 0], "what happened once is said once"
    assert list(route.status()["retired_checks"]) == [check]
    json.dumps(route.status())
    assert route.status()["precision"], "no failure of the part's: it is still there"
    assert sum("not checked any more" in record.message for record in caplog.records) == 1


def test_what_pytorch_does_better_is_still_checked() -> None:
    """Three loud answers to PyTorch's quiet ones switch the part off, as ever."""
    route, called = checked_route(LOUD, LOUD / 3)
    for _ in range(MAX_FAILURES + 1):
        np.testing.assert_array_equal(route(), LOUD / 3)
    assert called == ["part", "pytorch"] * MAX_FAILURES + ["pytorch"]
    assert route.status()["retired_checks"] == {}


def test_what_no_engine_means_is_never_retired() -> None:
    """NaN from both, or one silent and the other loud: both are run each time."""
    for answer, pytorch in [(BROKEN, BROKEN), (SILENT, LOUD), (LOUD, SILENT), (LOUD, BROKEN)]:
        route, called = checked_route(answer, pytorch)
        for _ in range(MAX_FAILURES + 1):
            route()
        assert called == ["part", "pytorch"] * (MAX_FAILURES + 1)
        assert route.status()["retired_checks"] == {}


def test_a_retired_check_leaves_the_others() -> None:
    """An engine that clips is still caught when its export answers with NaN."""
    answers = [LOUD, BROKEN]
    part = Part("d", "decode", lambda: LOUD, lambda call: 1.0, check=lambda audio: check_audio(audio, 16_000))
    route = Route(part, lambda _: Choice(lambda: answers[0], ""))
    route()
    del answers[0]
    np.testing.assert_array_equal(route(), LOUD)
    assert route._failures == 1
