"""Metrics say what an engine's own code runs on, which need not be PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from accelerator import UniversalOptimizer
from accelerator.cli import app
from accelerator.cli.engine import part_rows
from accelerator.engines.base import Arrays, Bound, Cloning, Job
from accelerator.engines.options import Option
from accelerator.metrics import Meter
from accelerator.parts.backends import onnx_runtime
from accelerator.parts.part import Call, Part
from accelerator.pipeline.selection import Choice
from accelerator.speech import AudioChunk, SpeechRequest
from accelerator.text.segments import Segment
from tests.doubles import BareStages, component

RATE = 8_000


class Shipped(BareStages):
    """An adapter that is its engine and its stages, too, whose two parts ONNX Runtime, or what `runs_on` says, ran."""

    name, sample_rate = "shipped", RATE
    cloning: Cloning | None = Cloning("unused", (0.1, 9.0))
    options: Mapping[str, Option] | None = {}
    windows = ()

    def __init__(self, schedule: str = "pooled", runs_on: tuple[str, str] = ("as-shipped", "as-shipped")) -> None:
        self.schedule, self.runs_on, self.fails = schedule, runs_on, ""

    def parts(self) -> Sequence[Part]:
        encode = Part("encoder", "reference", lambda audio: audio[:4], lambda call: 1.0, runs_on=self.runs_on[0])
        return (self._part("text", np.asarray), self._part("decoder", np.asarray), encode)

    def _part(self, name: str, call: Call) -> Part:
        backend = onnx_runtime((component(name),), lambda paths, options: call)
        runs_on = self.runs_on[name == "decoder"]
        return Part(name, "decode", call, lambda call: 1.0, (backend,), runs_on=runs_on)

    def bind(self, calls: Mapping[str, Call]) -> Bound:
        self.calls = calls
        return Bound(self, self, lambda request, kept: self.speak("whole"))

    def speak(self, when: str) -> Iterator[AudioChunk]:
        if self.fails == "before":
            raise RuntimeError("broken")
        audio = self.calls["decoder"](self.calls["text"](np.full(800, 0.5, np.float32)))
        if self.fails == "after":
            raise RuntimeError("broken")
        yield AudioChunk(audio, RATE)

    def accepts(self, request: SpeechRequest) -> bool:
        return self.schedule != "whole"

    def segments(self, request: SpeechRequest, *, soon: bool) -> list[Segment]:
        return [Segment(request.text, 0.0, 0)]

    def encode(self, reference: Any) -> Arrays:
        return {"voice": self.calls["encoder"](reference.audio)}

    def generate(self, segment: Segment, voice: Any, job: Job, *, resume: Sequence[Any] = ()) -> Iterator[Any]:
        for chunk in self.speak(self.schedule):
            yield (chunk.audio,)

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        yield AudioChunk(np.full(800, 0.25, np.float32), RATE)

    def release(self) -> bool:
        return False


def opened(adapter: Shipped, cache: Path) -> UniversalOptimizer:
    return UniversalOptimizer(None, adapter=adapter, cache_dir=cache, probe=False)


@pytest.mark.parametrize("schedule", ["batched", "pooled", "whole"])
@pytest.mark.parametrize("runs_on", [("as-shipped", "as-shipped"), ("as-shipped", "pytorch"), ("onnxruntime",) * 2])
def test_a_request_that_the_original_spoke(schedule: str, runs_on: tuple[str, str], tmp_path: Path) -> None:
    adapter = Shipped(schedule, runs_on)
    own = "+".join(sorted(set(runs_on)))
    with opened(adapter, tmp_path) as optimizer:
        assert optimizer.synthesize("Hello.").metrics["backends"] == {"text": "onnxruntime", "decoder": "onnxruntime"}
        assert optimizer.synthesize("Hello.").metrics["backend"] == "onnxruntime"
        adapter.fails = "before"
        metrics = optimizer.synthesize("Hello.").metrics
        assert (metrics["backends"], metrics["backend"]) == ({"engine": own}, own)
        stream = optimizer.stream("Hello.")
        assert stream.metrics["backend"] is None, "nothing was spoken yet"
        assert len(list(stream)) == 1
        assert stream.metrics["backends"] == {"engine": own}
        adapter.fails = "after"
        metrics = optimizer.synthesize("Hello.").metrics
        assert metrics["backends"] == {"text": "onnxruntime", "decoder": "onnxruntime", "engine": own}
        assert metrics["backend"] == "hybrid"


@pytest.mark.parametrize("runs_on", [("as-shipped", "as-shipped"), ("onnxruntime", "onnxruntime")])
def test_a_part_that_the_original_answered(runs_on: tuple[str, str], tmp_path: Path) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("broken")

    with opened(Shipped("pooled", runs_on), tmp_path) as optimizer:
        optimizer._routes["decoder"]._choice = Choice(broken, "by the test")
        metrics = optimizer.synthesize("Hello.").metrics
        assert metrics["backends"] == {"text": "onnxruntime", "decoder": runs_on[1]}
        assert metrics["backend"] == "hybrid", "the engine's own ONNX Runtime is no replacement"
        optimizer._routes["text"]._choice = Choice(None, "slower here", "slower")
        assert optimizer.synthesize("Hello.").metrics["backend"] == runs_on[1]


def test_what_an_original_made_of_a_voice_by_accident_is_not_kept(tmp_path: Path) -> None:
    """Not even where it runs on what its replacement runs on."""
    reference = (0.3 * np.sin(np.arange(RATE) / 9)).astype(np.float32), RATE
    calls: list[int] = []

    class Named(Shipped):
        def parts(self) -> Sequence[Part]:
            text, decoder, _ = super().parts()

            def encode(audio: np.ndarray) -> np.ndarray:
                calls.append(len(audio))
                return audio[:4]

            backend = onnx_runtime((component("encoder"),), lambda paths, options: encode)
            own = Part("encoder", "reference", encode, lambda call: 1.0, (backend,), runs_on="onnxruntime")
            return (text, decoder, own)

    def broken(audio: np.ndarray) -> Any:
        raise RuntimeError("this once")

    with opened(Named(), tmp_path) as optimizer:
        works = optimizer._routes["encoder"].prepare()
        optimizer._routes["encoder"]._choice = Choice(broken, "by the test")
        optimizer.synthesize("Hello.", reference)
        optimizer._routes["encoder"]._choice = works
        optimizer.synthesize("Hello.", reference)
        assert len(calls) == 2, "the next request encodes it again"
        optimizer.synthesize("Hello.", reference)
        assert len(calls) == 2


def test_an_engine_that_is_passed_through_runs_on_nobody_knows_what() -> None:
    with UniversalOptimizer(lambda text: (np.full(800, 0.5, np.float32), RATE)) as optimizer:
        metrics = optimizer.synthesize("Hello.").metrics
        stream = optimizer.stream("Hello.")
        list(stream)
    for each in (metrics, stream.metrics):
        assert (each["backends"], each["backend"]) == ({"engine": "own"}, "own")


def test_one_word_for_a_part_and_for_all() -> None:
    meter = Meter()
    assert (meter.result()["backend"], meter.result()["backends"], meter.by_original("a")) == (None, {}, False)
    meter.used("a", "onednn")
    meter.used("b", "as-shipped", own=True)
    assert (meter.by_original("a"), meter.by_original("b")) == (False, True)
    assert (meter.result()["backend"], meter.result()["backends"]) == ("hybrid", {"a": "onednn", "b": "as-shipped"})
    meter.used("a", "as-shipped", own=True)
    assert meter.by_original("a")
    assert meter.result()["backends"]["a"] == "hybrid"


def test_the_command_line_names_no_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Shipped()
    adapter.fails = "before"
    monkeypatch.setattr("accelerator.cli.engine.open_engine", lambda *_, **__: opened(adapter, tmp_path / "cache"))
    result = CliRunner().invoke(app, ["synth", "Hello.", "-o", str(tmp_path / "a.wav")])
    assert result.exit_code == 0, result.output
    assert "engine as-shipped)" in result.output
    assert "Fallback: engine ran in its own code: RuntimeError: broken" in result.stderr
    assert "PyTorch" not in result.output


def test_the_reason_for_a_part_that_stays_is_shown_whatever_it_runs_on(tmp_path: Path) -> None:
    with opened(Shipped(), tmp_path) as optimizer:
        optimizer.prepare(["decoder"])
        optimizer._routes["text"]._choice = Choice(None, "its replacement is slower here", "slower")
        rows = {row[0]: row for row in part_rows(optimizer.status()["parts"])}
    assert (rows["text"][1], rows["text"][-1]) == ("as-shipped", "its replacement is slower here")
    assert (rows["decoder"][1], rows["decoder"][-1]) == ("onnxruntime", "-")
