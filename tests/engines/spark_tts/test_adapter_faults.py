"""Parts that fail at any point, and parts in other precisions: the speech is complete, by whoever says it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator import UniversalOptimizer, kernels
from accelerator.engines.spark_tts import SparkAdapter
from accelerator.speech import SamplingParams, SpeechRequest

LONG = "this is one of some sentences. " * 25
STYLE = {"gender": "female", "pitch": "low", "speed": "high"}


class Failing(SparkAdapter):
    """One of its parts answers `good` times and then fails; a language model counts tokens."""

    broken, good = "decoder", 0

    def parts(self) -> Any:
        return [self._broken(part) if part.name == self.broken else part for part in super().parts()]

    def _broken(self, part: Any) -> Any:
        def failing(load: Any) -> Any:
            def loaded(paths: Any, options: Any) -> Any:
                call = load(paths, options)
                return self._stream(call) if part.streams else self._calls(call)

            return loaded

        return replace(part, backends=tuple(replace(each, load=failing(each.load)) for each in part.backends))

    def _calls(self, call: Any) -> Any:
        numbers = itertools.count()
        return lambda *args, **options: (self._fail if next(numbers) >= self.good else call)(*args, **options)

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("by the test")

    def _stream(self, call: Any) -> Any:
        def stream(*args: Any, **options: Any) -> Iterator[int]:
            for number, token in enumerate(call(*args, **options)):
                if number >= self.good:
                    self._fail()
                yield token

        return stream


@pytest.mark.parametrize("good", [0, 1, 6, 11, 12, 20])
def test_the_engine_goes_on_where_the_language_model_fails(engine: Any, good: int) -> None:
    adapter = Failing(engine)
    adapter.broken, adapter.good = "text2semantic", good
    expected = engine.inference("one two", temperature=1.0, top_k=1, **STYLE)
    with UniversalOptimizer(engine, adapter=adapter, precision="fp32", threads=1, probe=False) as optimizer:
        speech = optimizer.synthesize("one two", temperature=0, **STYLE)
    np.testing.assert_allclose(speech.audio, expected, atol=1e-4)
    assert [each["part"] for each in speech.metrics["fallback"]] == ["text2semantic"]
    assert speech.metrics["fallback"][0]["message"] == "by the test"


def test_numbers_of_any_kind_are_the_engines(engine: Any, recording: Path, tmp_path: Path) -> None:
    """Which refuses a temperature of 1, and a top_k of NumPy's."""
    asked: dict[str, Any] = {"temperature": 1, "top_k": np.int64(3), "top_p": 1, "seed": 1}
    adapter = Failing(engine)
    adapter.broken = "text2semantic"
    with UniversalOptimizer(engine, adapter=adapter, precision="fp32", threads=1, probe=False) as optimizer:
        speech = optimizer.synthesize("one two", **asked, **STYLE)
        assert [each["part"] for each in speech.metrics["fallback"]] == ["text2semantic"]
        (own,) = adapter.original(SpeechRequest("one two", options=STYLE, sampling=SamplingParams(**asked)))
    np.testing.assert_allclose(speech.audio, own.audio, atol=1e-4)


@pytest.mark.parametrize("good", [0, 1, 3, 20])
def test_a_window_that_fails_is_the_engines(engine: Any, recording: Path, good: int) -> None:
    """The first, one in the middle, and none after the last; what was heard before stays."""
    with UniversalOptimizer(engine, precision="fp32", threads=1, probe=False) as optimizer:
        expected = [audio for audio, _ in optimizer.stream(LONG, recording, seed=1)]
    adapter = Failing(engine)
    adapter.good = good
    with UniversalOptimizer(engine, adapter=adapter, precision="fp32", threads=1, probe=False) as optimizer:
        stream = optimizer.stream(LONG, recording, seed=1)
        audio = [audio for audio, _ in stream]
        failed = stream.metrics["fallback"]
    assert {each["part"] for each in failed} == ({"decoder"} if good < 20 else set())
    assert len(audio) == len(expected) > 3
    np.testing.assert_allclose(np.concatenate(audio), np.concatenate(expected), atol=1e-4)


@pytest.mark.parametrize("broken", ["encoder", "decoder"])
def test_the_engine_answers_for_a_codec_that_fails(engine: Any, broken: str, recording: Path, tmp_path: Path) -> None:
    adapter = Failing(engine)
    adapter.broken = broken
    expected = engine.inference("one two", recording, temperature=1.0, top_k=1)
    options = {"precision": "fp32", "threads": 1, "probe": False, "voices_dir": tmp_path}
    with UniversalOptimizer(engine, adapter=adapter, **options) as optimizer:
        speech = optimizer.synthesize("one two", recording, temperature=0)
        assert optimizer.engine.inference("one two", recording, temperature=1.0, top_k=1).shape == expected.shape
    np.testing.assert_allclose(speech.audio, expected, atol=1e-4)
    assert speech.metrics["backends"][broken] == "pytorch"


@pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_it_speaks_by_compiled_kernels(tokens: Any, speaking: Any, engine: Any, precision: str) -> None:
    """A language model as small as the double's misses the bars of int4, so that figures are only noted here."""
    with UniversalOptimizer(engine, precision=precision, proof="warn", threads=1, probe=False) as optimizer:  # type: ignore[arg-type]
        texts = ["one two", "three four", "five"]
        together = optimizer.synthesize_batch(texts, seed=2, **STYLE)
        alone = [optimizer.synthesize(text, seed=2, **STYLE) for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert one.metrics["backends"]["text2semantic"] == "native"
        assert one.metrics["fallback"] == []
        np.testing.assert_array_equal(one.audio, other.audio)
