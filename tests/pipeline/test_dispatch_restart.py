"""Who has heard nothing yet is answered by the original from the start, however late the routed engine fails."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from accelerator import Speech, UniversalOptimizer
from accelerator.cli import app
from accelerator.engines.base import Arrays, Bound, Cloning, Job
from accelerator.engines.options import Option
from accelerator.errors import Closed, GenerationError, InvalidText
from accelerator.metrics import Meter
from accelerator.parts.backends import onnx_runtime
from accelerator.parts.part import Call, Part
from accelerator.speech import AudioChunk, SpeechRequest
from accelerator.text.segments import Segment, split
from tests.doubles import BareStages, component

RATE = 8_000
TEXT = "The first sentence is here. Then there comes a second one. A third one ends it, at last."
LAST = "A third one"
ORIGINAL = np.full(3 * RATE, 0.25, np.float32)
WAYS = ("synthesize", "synthesize_batch", "asynthesize")
SCHEDULES = ("batched", "pooled", "whole")
reference = (0.3 * np.sin(np.arange(RATE) / 9)).astype(np.float32), RATE


class FailsLate(BareStages):
    """An adapter that is its engine and its stages, too; the last segment fails, and again when it is redone.

    schedule "whole": the text is no business of the stages, and the engine's own way of speaking fails at its end.
    """

    name, sample_rate = "fails-late", RATE
    cloning: Cloning | None = Cloning("unused", (0.1, 9.0))
    options: Mapping[str, Option] | None = {}
    windows = ()

    def __init__(self, schedule: str, error: Exception | None = None) -> None:
        self.schedule = schedule
        self.error = error or RuntimeError("the last one")
        self.asked = list[SpeechRequest]()

    def parts(self) -> Sequence[Part]:
        backend = onnx_runtime((component("tone"),), lambda paths, options: tone)
        encode = Part("encoder", "reference", lambda audio: audio[:4], lambda call: 1.0)
        return (Part("tone", "generate", tone, lambda call: 1.0, (backend,)), encode)

    def bind(self, calls: Mapping[str, Call]) -> Bound:
        self.calls = calls
        return Bound(self, self, self.stream)

    def accepts(self, request: SpeechRequest) -> bool:
        return self.schedule != "whole"

    def segments(self, request: SpeechRequest, *, soon: bool) -> list[Segment]:
        return split(request.text, comfortable=30, longest=60)

    def encode(self, reference: Any) -> Arrays:
        return {"voice": self.calls["encoder"](reference.audio)}

    def waits(self, voice: Any) -> bool:
        return False

    def generate(self, segment: Segment, voice: Any, job: Job, *, resume: Sequence[Any] = ()) -> Iterator[Any]:
        if segment.text.strip().startswith(LAST):
            yield from [()] * 4  # in a shared loop the others are ready by then
            raise self.error
        yield (self.calls["tone"](segment.text),)

    def stream(self, request: SpeechRequest, kept: Arrays | None) -> Iterator[AudioChunk]:
        yield AudioChunk(self.calls["tone"](request.text), RATE)
        raise self.error

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        self.asked.append(request)
        yield AudioChunk(ORIGINAL[:RATE], RATE)
        yield AudioChunk(ORIGINAL[RATE:], RATE)

    def release(self) -> bool:
        return False


def tone(text: str) -> np.ndarray:
    return (0.5 * np.sin(np.arange(400 * len(text)) / 5)).astype(np.float32)


def opened(adapter: FailsLate, cache: Path) -> UniversalOptimizer:
    return UniversalOptimizer(None, adapter=adapter, cache_dir=cache, probe=False)


def spoken(optimizer: UniversalOptimizer, way: str, *asked: Any) -> Speech:
    if way == "synthesize":
        return optimizer.synthesize(TEXT, *asked)
    if way == "asynthesize":
        return asyncio.run(optimizer.asynthesize(TEXT, *asked))
    first, second = optimizer.synthesize_batch([TEXT, TEXT], *asked)
    np.testing.assert_array_equal(first.audio, second.audio)
    return second


@pytest.mark.parametrize("asked", [(), (reference,)], ids=["own voice", "reference"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_blocking_call_is_spoken_by_the_original_from_the_start(
    schedule: str, way: str, asked: tuple[Any, ...], tmp_path: Path
) -> None:
    adapter = FailsLate(schedule)
    with opened(adapter, tmp_path) as optimizer:
        speech = spoken(optimizer, way, *asked)
    np.testing.assert_array_equal(speech.audio, ORIGINAL)
    metrics = speech.metrics
    assert metrics["audio_s"] == 3.0
    assert metrics["rtf"] == pytest.approx(metrics["elapsed_s"] / 3.0)
    assert metrics["segments"] == [], "the original speaks a text as a whole"
    assert {"part": "engine", "reason": "RuntimeError", "message": "the last one"} in metrics["fallback"]
    assert metrics["backends"]["engine"] == "pytorch"
    assert [each.text for each in adapter.asked] == [TEXT] * (2 if way == "synthesize_batch" else 1)
    assert all((each.reference is not None) == bool(asked) for each in adapter.asked)


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_stream_keeps_what_was_heard_and_raises(schedule: str, eager: bool, tmp_path: Path) -> None:
    adapter = FailsLate(schedule)
    with opened(adapter, tmp_path) as optimizer, closing(optimizer.stream(TEXT, eager=eager)) as stream:
        heard = [next(stream).audio]
        with pytest.raises(GenerationError, match="the last one"):
            heard.extend(chunk.audio for chunk in stream)
        assert stream.metrics["audio_s"] == pytest.approx(sum(map(len, heard)) / RATE)
        assert stream.metrics["fallback"] == []
    assert adapter.asked == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_stream_that_can_begin_anew_does(schedule: str, tmp_path: Path) -> None:
    adapter, heard, dropped = FailsLate(schedule), list[np.ndarray](), list[int]()

    def anew() -> None:
        dropped.append(len(heard))
        heard.clear()

    with opened(adapter, tmp_path) as optimizer:
        stream = optimizer.stream(TEXT, eager=False, on_restart=anew)
        for chunk in stream:
            heard.append(chunk.audio)
        np.testing.assert_array_equal(np.concatenate(heard), ORIGINAL)
        assert stream.metrics["audio_s"] == 3.0
    assert len(dropped) == 1
    assert dropped[0] >= 1


@pytest.mark.parametrize("error", [InvalidText("not in this language"), Closed("closed meanwhile")])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_requests_own_fault_and_a_closed_engine_are_no_reason_to_begin_anew(
    schedule: str, error: Exception, tmp_path: Path
) -> None:
    adapter = FailsLate(schedule, error)
    with opened(adapter, tmp_path) as optimizer, pytest.raises(type(error), match=str(error)):
        optimizer.synthesize(TEXT)
    assert adapter.asked == []


def test_the_originals_own_failure_is_told_with_the_first(tmp_path: Path) -> None:
    class Broken(FailsLate):
        def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
            yield AudioChunk(ORIGINAL[:RATE], RATE)
            raise KeyError("and the original")

    with opened(Broken("pooled"), tmp_path) as optimizer, pytest.raises(GenerationError) as raised:
        optimizer.synthesize(TEXT)
    found, chain = raised.value, list[str]()
    while (found := found.__cause__) is not None:  # type: ignore[assignment]
        chain.append(str(found))
    assert chain == ["'and the original'", "the last one"]


def test_the_meter_forgets_what_nobody_heard() -> None:
    times = iter([0.0, 1.0, 5.0, 8.0])
    meter = Meter(lambda: next(times))
    meter.chunk(np.ones(2 * RATE, np.float32), RATE)  # at 1 s
    meter.restart()
    meter.chunk(np.ones(RATE, np.float32), RATE)  # at 5 s
    meter.finish()
    found = meter.result()
    assert (found["audio_s"], found["ttfa_s"], found["elapsed_s"], found["rtf"]) == (1.0, 5.0, 8.0, 8.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("options", [[], ["--keep-partial"], ["--stream"]], ids=" ".join)
@pytest.mark.parametrize("target", ["a.wav", "-"])
def test_the_command_line(
    schedule: str, options: list[str], target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "accelerator.cli.engine.open_engine",
        lambda *_, **__: opened(FailsLate(schedule), tmp_path / "cache"),
    )
    result = CliRunner().invoke(app, ["synth", TEXT, "-o", target, *options])
    if options == ["--stream"]:
        assert result.exit_code == 1
        assert "the last one" in result.stderr
        assert not Path("a.wav").exists()
        return
    assert result.exit_code == 0, result.output
    audio, rate = soundfile.read(target if target != "-" else io.BytesIO(result.stdout_bytes))
    np.testing.assert_allclose(audio, ORIGINAL)
    assert rate == RATE
    assert {path.name for path in tmp_path.iterdir()} <= {"a.wav", "cache"}, "nothing is left of what was dropped"
    assert "the last one" in result.stderr
