from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import UniversalOptimizer
from accelerator.errors import EngineError, GenerationError, InvalidOption, InvalidText

TONE = (0.3 * np.sin(np.arange(800) / 7)).astype(np.float32)


class Plain:
    sample_rate = 8000

    def __init__(self, answer: Any = None) -> None:
        self.answer, self.calls = answer, []  # type: ignore[var-annotated]

    def synthesize(self, text: str, **options: Any) -> Any:
        self.calls.append((text, options))
        return (TONE, 8000) if self.answer is None else self.answer


def test_a_plain_engine_speaks_as_before_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    engine = Plain()
    before = dict(vars(engine))
    optimizer = UniversalOptimizer(engine)
    for _ in range(3):
        audio, rate, metrics = optimizer.synthesize("Hello.")
        np.testing.assert_array_equal(audio, TONE)
        assert (audio.dtype, rate) == (np.float32, 8000)
        assert metrics["backend"] == "pytorch"
        assert metrics["backends"] == {"engine": "pytorch"}
        assert metrics["fallback"] == []
        assert metrics["audio_s"] == pytest.approx(0.1)
        assert (metrics["precision"], metrics["cache"]) == ({}, {})
    assert engine.calls == [("Hello.", {})] * 3
    assert vars(engine) == before
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "Plain is not an engine this package knows: it is passed through and runs as before" in warnings[0]
    (chunk,) = optimizer.stream("Hello.")
    np.testing.assert_array_equal(chunk.audio, TONE)
    status = optimizer.prepare().status()
    json.dumps(status)
    assert (status["engine"], status["parts"]) == ("pass-through", {})
    assert isinstance(optimizer, Plain)
    assert optimizer.calls is engine.calls
    optimizer.close()
    assert engine.synthesize("after")[1] == 8000


def test_options_reach_it_as_given_and_only_those_given() -> None:
    engine = Plain()
    optimizer = UniversalOptimizer(engine)
    optimizer.synthesize("Hello.", seed=3, temperature=0.0)
    assert engine.calls.pop() == ("Hello.", {"seed": 3, "temperature": 0.0})
    voice = (np.tile(TONE, 4), 8000)
    optimizer.synthesize("Hello.", voice, "a voice")
    _, options = engine.calls.pop()
    assert options["reference_audio"] is voice, "what the caller gave, not what was read from it"
    assert options["reference_text"] == "a voice"


def test_an_engine_without_a_rate_takes_a_reference_too() -> None:
    class Unrated:
        def tts(self, text: str, reference_audio: Any = None, reference_text: Any = None) -> Any:
            assert reference_audio[1] == 8000
            return TONE, 22_050

    optimizer = UniversalOptimizer(Unrated())
    assert optimizer.sample_rate == 0
    assert optimizer.synthesize("Hello.", (np.tile(TONE, 4), 8000)).sample_rate == 22_050


ANSWERS: dict[str, tuple[Any, int]] = {
    "samples": (TONE, 8000),
    "a list": (TONE.tolist(), 8000),
    "samples and rate": ((TONE, 16_000), 16_000),
    "rate and samples": ((16_000, TONE), 16_000),
    "numpy's rate first": ((np.int64(16_000), TONE), 16_000),
    "and more": ((TONE, 16_000, {"more": 1}), 16_000),
    "a tensor": (torch.from_numpy(TONE), 8000),
    "a tensor with gradient": (torch.from_numpy(TONE).requires_grad_(), 8000),
    "float64": (TONE.astype(np.float64), 8000),
    "a batch of one": (TONE[None], 8000),
    "batch and channel": (TONE[None, None], 8000),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_audio_in_many_forms(kind: str) -> None:
    answer, expected = ANSWERS[kind]
    audio, rate, _ = UniversalOptimizer(Plain(answer)).synthesize("Hello.")
    np.testing.assert_array_equal(audio, TONE)
    assert (audio.dtype, rate) == (np.float32, expected)


def test_integers_stereo_and_bfloat16() -> None:
    integers = np.array([0, 16_384, -32_768, 32_767], np.int16)
    audio = UniversalOptimizer(Plain((integers, 8000))).synthesize("Hello.").audio
    np.testing.assert_array_equal(audio, integers / 32_768)
    stereo = np.stack([TONE, TONE * 0.5])
    for answer in (stereo, stereo.T):
        audio = UniversalOptimizer(Plain((answer, 8000))).synthesize("Hello.").audio
        np.testing.assert_allclose(audio, TONE * 0.75, atol=1e-7)
    audio = UniversalOptimizer(Plain(torch.from_numpy(TONE).bfloat16())).synthesize("Hello.").audio
    np.testing.assert_allclose(audio, TONE, atol=2e-3)


def test_an_object_with_audio() -> None:
    class Answer:
        audio = TONE
        sample_rate = 44_100

    assert UniversalOptimizer(Plain(Answer())).synthesize("Hello.").sample_rate == 44_100


@pytest.mark.parametrize(
    "answer", ["text", {"audio": 1}, io.BytesIO(), [["a"]], np.zeros((20, 30, 40)), (object(), 8000)]
)
def test_what_is_no_audio_is_refused(answer: Any) -> None:
    with pytest.raises(EngineError, match="not audio"):
        UniversalOptimizer(Plain(answer)).synthesize("Hello.")


def test_a_rate_nobody_knows() -> None:
    class Unrated(Plain):
        sample_rate = None  # type: ignore[assignment]

    with pytest.raises(EngineError, match="give it a `sample_rate`"):
        UniversalOptimizer(Unrated(TONE)).synthesize("Hello.")

    class Odd(Plain):
        def sample_rate(self) -> int:  # type: ignore[override]
            return 8000

    assert UniversalOptimizer(Odd()).synthesize("Hello.").sample_rate == 8000


@pytest.mark.parametrize("name", ["synthesize", "tts", "generate", "__call__"])
def test_its_method_may_have_any_usual_name(name: str) -> None:
    engine = type("Engine", (), {name: lambda self, text: (TONE, 8000)})()
    assert len(UniversalOptimizer(engine).synthesize("Hello.").audio) == 800


def test_an_object_that_cannot_speak() -> None:
    optimizer = UniversalOptimizer(object())
    with pytest.raises(EngineError, match="object has none of synthesize, tts, generate, __call__: pass adapter="):
        optimizer.synthesize("Hello.")


def test_an_option_it_does_not_take() -> None:
    class Simple:
        def synthesize(self, text: str) -> Any:
            return TONE, 8000

    optimizer = UniversalOptimizer(Simple())
    assert optimizer.synthesize("Hello.").sample_rate == 8000
    with pytest.raises(InvalidOption, match="seed"):
        optimizer.synthesize("Hello.", seed=1)


def test_its_errors_are_told_with_their_cause() -> None:
    class Broken:
        calls = 0

        def synthesize(self, text: str) -> Any:
            type(self).calls += 1
            raise RuntimeError("out of order")

    with pytest.raises(GenerationError, match="RuntimeError: out of order") as caught:
        UniversalOptimizer(Broken()).synthesize("Hello.")
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert Broken.calls == 1, "there is nothing to fall back to"
    with pytest.raises(InvalidText):
        UniversalOptimizer(Broken()).synthesize("...")
    assert Broken.calls == 1


def test_wrapping_twice_is_harmless() -> None:
    outer = UniversalOptimizer(UniversalOptimizer(Plain()))
    audio, rate, metrics = outer.synthesize("Hello.", seed=1)
    np.testing.assert_array_equal(audio, TONE)
    assert (rate, metrics["backend"]) == (8000, "pytorch")
