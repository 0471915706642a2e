"""Metrics, by a clock and an engine of our own."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from accelerator import AudioChunk, SpeechRequest, UniversalOptimizer
from accelerator.engines.base import Bound, Cloning
from accelerator.engines.options import SAMPLING
from accelerator.errors import (
    GenerationError,
)
from accelerator.metrics import Meter, current_meter
from accelerator.parts.part import Part
from accelerator.pipeline.selection import Choice


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeEngine:
    sample_rate = 1000


class FakeAdapter:
    """encoder 0.2 s, 0.1 s a frame, decoder 0.5 s; 0.3 s in no stage; two chunks of one second."""

    name, sample_rate = "fake", 1000
    cloning, options = Cloning(), SAMPLING

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def parts(self) -> Sequence[Part]:
        def encode(audio: np.ndarray) -> np.ndarray:
            self.clock.now += 0.2
            return np.zeros((1, 3), np.int64)

        def generate(*, resume: Sequence[Any] = ()) -> Iterator[int]:
            for frame in range(len(resume), 4):
                self.clock.now += 0.1
                yield frame

        def decode(frames: list[int]) -> np.ndarray:
            self.clock.now += 0.5
            return np.full(1000, 0.1, np.float32)

        return [
            Part("encoder", "reference", encode, lambda call: 1.0),
            Part("text2semantic", "generate", generate, lambda call: 1.0, streams=True),
            Part("decoder", "decode", decode, lambda call: 1.0),
        ]

    def bind(self, calls: Mapping[str, Any]) -> Any:
        def stream(request: SpeechRequest, kept: Any) -> Iterator[AudioChunk]:
            assert kept is None, "an engine without stages encodes by itself"
            if request.reference is not None:
                calls["encoder"](request.reference.audio)
            frames = []
            for frame in calls["text2semantic"]():
                current_meter().add_frames(1)
                frames.append(frame)
            yield AudioChunk(calls["decoder"](frames), 1000)
            self.clock.now += 0.3
            yield AudioChunk(calls["decoder"](frames), 1000)

        return Bound(FakeEngine(), stream=stream)

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        raise AssertionError("not needed")

    def release(self) -> None:
        pass


@pytest.mark.parametrize("backend", ["onnxruntime", "pytorch"])
def test_every_metric_against_a_clock(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    clock = Clock()
    monkeypatch.setattr("accelerator.optimizer.Meter", functools.partial(Meter, clock))
    optimizer = UniversalOptimizer(None, adapter=FakeAdapter(clock))
    for route in optimizer._routes.values():
        route._choice = Choice(route.part.original if backend == "onnxruntime" else None, "a test", "Test")
    tone = np.sin(np.arange(1000) / 5).astype(np.float32) * 0.3
    audio, rate, metrics = optimizer.synthesize("Hello", (tone, 1000), "hello")
    assert (audio.shape, rate) == ((2000,), 1000)
    assert metrics.pop("peak_rss_bytes") > 0
    exact = {k: metrics.pop(k) for k in ("backend", "backends", "fallback", "precision", "cache", "frames", "segments")}
    assert metrics.pop("skipped") == []
    parts = ["encoder", "text2semantic", "decoder"]
    fallback = [] if backend == "onnxruntime" else [{"part": p, "reason": "Test", "message": "a test"} for p in parts]
    assert exact == {
        "backend": backend,
        "backends": dict.fromkeys(parts, backend),
        "fallback": fallback,
        "precision": dict.fromkeys(parts, "fp32") if backend == "onnxruntime" else {},
        "cache": {},
        "frames": 4,
        "segments": [],
    }
    stages = metrics.pop("stages")
    assert stages == pytest.approx({"text": 0, "reference": 0.2, "generate": 0.4, "decode": 1.0, "post": 0})
    assert metrics == pytest.approx(
        {"rtf": 0.95, "rtfx": 2 / 1.9, "audio_s": 2.0, "elapsed_s": 1.9, "ttfa_s": 1.1, "frames_per_s": 10.0}
    )
    clock.now += 50
    stream = optimizer.stream("Hello")
    first = next(stream)
    clock.now += 7  # the consumer thinks
    list(stream)
    clock.now += 50
    assert len(first.audio) == 1000
    assert stream.metrics["elapsed_s"] == pytest.approx(0.4 + 0.5 + 7 + 0.3 + 0.5)
    assert stream.metrics["ttfa_s"] == pytest.approx(0.9)
    assert stream.metrics["stages"]["generate"] == pytest.approx(0.4), "not the consumer's time"


def test_no_audio_is_an_error(tiny: Any) -> None:
    class Mute(FakeAdapter):
        def bind(self, calls: Mapping[str, Any]) -> Any:
            return replace(super().bind(calls), stream=lambda request, kept: iter(()))

    with pytest.raises(GenerationError, match="no audio"):
        UniversalOptimizer(None, adapter=Mute(Clock())).synthesize("Hello")
