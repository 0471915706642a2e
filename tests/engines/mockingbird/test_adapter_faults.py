"""Parts that fail at any point: the speech is complete, and is the engine's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from accelerator import UniversalOptimizer
from accelerator.engines.mockingbird import MockingBird, MockingBirdAdapter
from tests.engines.mockingbird.test_adapter import spoken

TEXT = "hello there"


class Failing(MockingBirdAdapter):
    """One of its parts answers `good` times and then fails; a loop counts its blocks."""

    broken, good = "vocoder", 0

    def parts(self) -> Any:
        return [self._broken(part) if part.name == self.broken else part for part in super().parts()]

    def _broken(self, part: Any) -> Any:
        def failing(load: Any) -> Any:
            def loaded(paths: Any, options: Any) -> Any:
                call = load(paths, options)
                return self._stream(call) if part.streams else self._fail

            return loaded

        return replace(part, backends=tuple(replace(each, load=failing(each.load)) for each in part.backends))

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("by the test")

    def _stream(self, call: Any) -> Any:
        def stream(*args: Any, **options: Any) -> Iterator[Any]:
            for number, block in enumerate(call(*args, **options)):
                if number >= self.good:
                    self._fail()
                yield block

        return stream


def failing(engine: MockingBird, broken: str, good: int = 0) -> UniversalOptimizer:
    adapter = Failing(engine)
    adapter.broken, adapter.good = broken, good
    return UniversalOptimizer(engine, adapter=adapter, precision="fp32", threads=1, probe=False)


@pytest.mark.parametrize("good", [0, 1, 9, 19, 20])
def test_the_engine_goes_on_where_the_loop_fails(
    engine: MockingBird, voice: np.ndarray, recording: Any, good: int
) -> None:
    with failing(engine, "loop", good) as optimizer:
        speech = optimizer.synthesize(TEXT, recording, seed=6, steps=40)
    np.testing.assert_allclose(speech.audio, spoken(engine, TEXT, voice, 6, steps=40), atol=1e-4)
    assert [each["part"] for each in speech.metrics["fallback"]] == (["loop"] if good < 20 else [])
    assert speech.metrics["frames"] == 40


@pytest.mark.parametrize("broken", ["encoder", "text", "postnet", "vocoder"])
def test_the_engine_answers_for_a_part_that_fails(
    engine: MockingBird, voice: np.ndarray, recording: Any, broken: str, tmp_path: Any
) -> None:
    adapter = Failing(engine)
    adapter.broken = broken
    how: dict[str, Any] = {"precision": "fp32", "threads": 1, "probe": False, "voices_dir": tmp_path}
    with UniversalOptimizer(engine, adapter=adapter, **how) as optimizer:
        speech = optimizer.synthesize(TEXT, recording, seed=6, steps=40)
    np.testing.assert_allclose(speech.audio, spoken(engine, TEXT, voice, 6, steps=40), atol=1e-4)
    assert speech.metrics["backends"][broken] == "pytorch"
    assert [each["message"] for each in speech.metrics["fallback"]] == ["by the test"]


def test_numbers_that_are_none_are_not_believed(engine: MockingBird, voice: np.ndarray, recording: Any) -> None:
    adapter = Failing(engine)
    adapter._fail = lambda mel: np.full_like(mel, np.nan)  # type: ignore[method-assign]
    adapter.broken = "postnet"
    with UniversalOptimizer(engine, adapter=adapter, precision="fp32", threads=1, probe=False) as optimizer:
        speech = optimizer.synthesize(TEXT, recording, seed=6, steps=40)
    np.testing.assert_allclose(speech.audio, spoken(engine, TEXT, voice, 6, steps=40), atol=1e-4)
    assert speech.metrics["fallback"][0]["reason"] == "BadOutput"


def test_at_last_the_untouched_engine_speaks(engine: MockingBird, voice: np.ndarray, recording: Any) -> None:
    with UniversalOptimizer(engine, precision="fp32", threads=1, probe=False) as optimizer:
        stages: Any = optimizer._bound.stages
        stages.generate = lambda *_, **__: iter(object())  # type: ignore[call-overload]
        speech = optimizer.synthesize("hello there. 你好", recording, seed=6, steps=40)
    first = spoken(engine, "hello there. 你好", voice, 6, steps=40)
    np.testing.assert_allclose(speech.audio, first, atol=1e-4)
