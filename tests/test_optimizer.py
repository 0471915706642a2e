"""The wrapper as its users see it: options, drop-in, metrics, life cycle, threads, processes."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import json
import logging
import math
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import QuickAdapter, twin, voice

import accelerator
from accelerator import AudioChunk, ProgressEvent, Speech, SpeechRequest, UniversalOptimizer
from accelerator.cache import ContentCache
from accelerator.engines.base import Bound, Cloning
from accelerator.engines.options import SAMPLING
from accelerator.errors import (
    AcceleratorError,
    Closed,
    GenerationError,
    InvalidInput,
    InvalidOption,
    InvalidReference,
    InvalidText,
    Overloaded,
)
from accelerator.metrics import Meter, current_meter
from accelerator.optimizer import _whole
from accelerator.parts.part import Part
from accelerator.pipeline.selection import Choice
from accelerator.pipeline.stream import SpeechStream
from accelerator.pipeline.voices import VoiceStore
from accelerator.reference import ReferenceEngine, load

ROOT = Path(__file__).parents[1]
TEXT = "Hello there."
SHORT: dict[str, Any] = {"max_new_tokens": 10}


def python(script: str, **environment: str) -> str:
    """What a fresh interpreter, in which warnings are errors, prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# The answer


class Chunks:
    """A request that is being spoken, to the same audio whatever it says."""

    def __init__(self, chunks: Iterator[AudioChunk]) -> None:
        self.meter, self.cancelled = Meter(), threading.Event()
        self._chunks = chunks

    def __iter__(self) -> Iterator[AudioChunk]:
        return self._chunks

    def close(self) -> None:
        pass


def spoken_in(chunks: Iterator[AudioChunk]) -> Speech:
    running: Any = Chunks(chunks)
    return _whole(SpeechStream(running, lambda running: running.meter.result()), bytearray())


def test_chunks_are_joined_in_order() -> None:
    pieces = [np.arange(i, i + 3, dtype=np.float64) / 10 for i in range(4)]
    audio, rate, _ = spoken_in(AudioChunk(piece, 8000) for piece in [*pieces[:2], pieces[0][:0], *pieces[2:]])
    np.testing.assert_array_equal(audio, np.concatenate(pieces).astype(np.float32))
    assert (audio.dtype, audio.flags.writeable, rate) == (np.float32, True, 8000)
    for nothing in ([], [AudioChunk(pieces[0][:0], 8000)]):
        with pytest.raises(GenerationError, match="no audio"):
            spoken_in(iter(nothing))


def test_a_long_answer_is_in_memory_once() -> None:
    size, count = 100_000, 200
    tracemalloc.start()
    try:
        audio, _, _ = spoken_in(AudioChunk(np.full(size, i / count, np.float32), 8000) for i in range(count))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(audio) == size * count
    assert audio.nbytes < peak < 1.3 * audio.nbytes


# Options


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "int3"},
        {"precision": None},
        {"proof": "lenient"},
        {"threads": 0},
        {"threads": -1},
        {"threads": 1.5},
        {"threads": True},
        {"threads": "2"},
    ],
)
def test_bad_options_are_refused(tiny: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(options))):
        UniversalOptimizer(tiny, **options)


def test_unknown_options_are_refused(tiny: Any, fast: UniversalOptimizer) -> None:
    with pytest.raises(TypeError, match="quantisation"):
        UniversalOptimizer(tiny, quantisation="int8")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="speed"):
        fast.synthesize(TEXT, speed=2)  # type: ignore[call-arg]
    with pytest.raises(InvalidOption, match="speed"):
        fast.stream(TEXT, speed=2)
    with pytest.raises(InvalidOption, match="no part called 'vocoder'"):
        fast.prepare(["vocoder"])


SAMPLING_ERRORS = [
    {"temperature": -0.1},
    {"temperature": 2.1},
    {"temperature": math.nan},
    {"temperature": "hot"},
    {"top_p": 0.0},
    {"top_p": 1.01},
    {"top_k": 0},
    {"top_k": 1.5},
    {"repetition_penalty": 0.9},
    {"seed": -1},
    {"seed": 2**63},
    {"max_new_tokens": 0},
    {"max_new_tokens": True},
]


@pytest.mark.parametrize("options", SAMPLING_ERRORS, ids=str)
def test_sampling_out_of_range(fast: UniversalOptimizer, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(options))):
        fast.synthesize(TEXT, **options)
    with pytest.raises(InvalidOption, match=next(iter(options))):
        fast.stream(TEXT, **options)


# Bad input: a clear error, at once, and nobody falls back

BAD_TEXTS: list[Any] = ["", "  \n\t", "?!...", "🙂🙂", "nul\0byte", "half \ud83d", "a" * 1_000_000, b"bytes", None, 7]


@pytest.mark.parametrize("text", BAD_TEXTS, ids=lambda t: repr(t)[:20])
def test_texts_that_cannot_be_spoken(tiny: Any, text: Any) -> None:
    optimizer = twin(tiny)
    with pytest.raises(InvalidText):
        optimizer.synthesize(text)
    with pytest.raises(InvalidText):
        optimizer.stream(text)
    assert all(not part["errors"] for part in optimizer.status()["parts"].values())


@pytest.mark.parametrize("text", ["emoji 🙂 too", "שלום עולם", "你好。", "a\u0301 b\r\n c\x07", "1"])
def test_texts_of_all_kinds_are_spoken(fast: UniversalOptimizer, text: str) -> None:
    audio, _, metrics = fast.synthesize(text, seed=1, max_new_tokens=3)
    assert len(audio) == 3 * fast.hop
    assert metrics["fallback"] == []


def bad_references(tmp_path: Path) -> dict[str, Any]:
    tone = np.sin(np.arange(16_000) / 9).astype(np.float32) * 0.3
    text = tmp_path / "not audio.wav"
    text.write_text("This is no audio.")
    empty = tmp_path / "empty.wav"
    empty.write_bytes(b"")
    broken = tone.copy()
    broken[5] = np.nan
    return {
        "empty": (np.zeros(0, np.float32), 16_000),
        "too short": (tone[:800], 16_000),
        "too long": (np.tile(tone, 600), 16_000),
        "NaN": (broken, 16_000),
        "silent": (np.zeros(16_000, np.float32), 16_000),
        "no scale": (tone * 32_768, 16_000),
        "rate of zero": (tone, 0),
        "missing": tmp_path / "missing.wav",
        "a directory": tmp_path,
        "not audio": text,
        "an empty file": empty,
        "bytes": b"RIFF....",
        "a number": 5,
    }


BAD_REFERENCES = (
    *("empty", "too short", "too long", "NaN", "silent", "no scale", "rate of zero"),
    *("missing", "a directory", "not audio", "an empty file", "bytes", "a number"),
)


@pytest.mark.parametrize("kind", BAD_REFERENCES)
def test_references_that_cannot_be_used(tiny: Any, tmp_path: Path, kind: str) -> None:
    optimizer = twin(tiny)
    with pytest.raises(InvalidReference):
        optimizer.synthesize(TEXT, bad_references(tmp_path)[kind], "what it says")
    assert all(not part["errors"] for part in optimizer.status()["parts"].values())


def test_a_transcript_without_a_voice(fast: UniversalOptimizer) -> None:
    with pytest.raises(InvalidReference, match="reference_text without"):
        fast.synthesize(TEXT, reference_text="hello")


def test_references_of_any_rate_and_shape(
    fast: UniversalOptimizer, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast._dispatcher.voices, "_store", VoiceStore(ContentCache(tmp_path), "nothing known"))
    t = np.arange(8000) / 8000
    stereo = np.stack([np.sin(1000 * t), np.sin(1000 * t)], axis=1).astype(np.float32) * 0.3
    audio, _, metrics = fast.synthesize(TEXT, (stereo, 8000), "a voice", temperature=0, **SHORT)
    mono = fast.synthesize(TEXT, (8000, (stereo[:, 0] * 32768).astype(np.int16)), "a voice", temperature=0, **SHORT)
    assert len(audio) == 10 * tiny.hop
    np.testing.assert_allclose(mono.audio, audio, atol=0.02)
    assert metrics["backends"]["encoder"] == "onnxruntime"
    assert metrics["stages"]["reference"] > 0


# What comes out


def test_speech(fast: UniversalOptimizer, tiny: Any) -> None:
    speech = fast.synthesize(TEXT, seed=4, **SHORT)
    assert isinstance(speech, Speech)
    audio, rate, metrics = speech
    assert (rate, audio.dtype, audio.shape) == (16_000, np.float32, (10 * tiny.hop,))
    assert 0.01 < np.abs(audio).max() <= 1
    assert speech.metrics is metrics
    json.dumps(metrics)
    np.testing.assert_array_equal(fast.synthesize(TEXT, seed=4, **SHORT).audio, audio)
    assert not np.array_equal(fast.synthesize(TEXT, seed=5, **SHORT).audio, audio)


def test_greedy_speech_is_the_engines_own(fast: UniversalOptimizer, tiny: Any) -> None:
    sound, rate = voice(tiny)
    for reference in ({}, {"reference_audio": (sound, rate), "reference_text": "Aa."}):
        audio, _, metrics = fast.synthesize(TEXT, **reference, temperature=0)
        plain = {k: v[0] if k == "reference_audio" else v for k, v in reference.items()}
        np.testing.assert_allclose(audio, tiny.synthesize(TEXT, **plain, temperature=0)[0], atol=1e-4)
        assert metrics["backend"] == "onnxruntime"
        assert metrics["frames"] == 64
        assert metrics["precision"] == {"encoder": "fp32", "text2semantic": "fp32", "decoder": "fp32"}
        assert set(metrics["cache"]) == {"encoder", "text2semantic", "decoder"}


def test_a_stream_joined_is_the_blocking_answer(fast: UniversalOptimizer) -> None:
    whole = fast.synthesize(TEXT, seed=9)
    stream = fast.stream(TEXT, seed=9)
    pieces = []
    for chunk in stream:
        assert isinstance(chunk, AudioChunk)
        pieces.append(chunk.audio)
        assert stream.metrics["audio_s"] == pytest.approx(sum(map(len, pieces)) / chunk.sample_rate)
    assert len(pieces) == 5
    np.testing.assert_allclose(np.concatenate(pieces), whole.audio, rtol=0, atol=2e-6)
    final = stream.metrics
    assert final == stream.metrics, "once it is over, no figure moves"
    assert final["ttfa_s"] < final["elapsed_s"]
    with pytest.raises(StopIteration):
        next(stream)
    stream.close()
    assert stream.metrics == final


# Metrics, by a clock and an engine of our own


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


# Drop-in


def test_it_answers_as_the_engine_does(fast: UniversalOptimizer, tiny: Any) -> None:
    assert isinstance(fast, ReferenceEngine)
    assert isinstance(fast, UniversalOptimizer)
    assert fast.config is tiny.config
    assert fast.hop == tiny.hop
    assert fast.sample_rate == tiny.sample_rate
    assert fast.language_model is tiny.language_model
    assert {"generate", "decode", "encode_text", "named_parameters", "synthesize", "prepare"} <= set(dir(fast))
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in tiny.named_parameters()]
    assert repr(fast) == "<UniversalOptimizer of reference>"
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = fast.nothing_like_it
    assert not hasattr(fast, "nothing_like_it")


def test_the_engines_own_methods_run_on_the_replaced_parts(fast: UniversalOptimizer, tiny: Any) -> None:
    prompt = tiny.encode_text(TEXT)
    np.testing.assert_array_equal(fast.encode_text(TEXT), prompt)
    expected = np.stack(list(tiny.generate(prompt, temperature=0, max_new_tokens=20)), axis=1)
    actual = np.stack(list(fast.generate(prompt, temperature=0, max_new_tokens=20)), axis=1)
    np.testing.assert_array_equal(actual, expected)
    assert actual.dtype == expected.dtype
    audio = fast.decode(expected[1:])
    np.testing.assert_allclose(audio, tiny.decode(expected[1:]), atol=1e-4)
    assert audio.dtype == np.float32
    sound, _ = voice(tiny)
    codes = fast.encode_reference(sound)
    assert codes.dtype == np.int64
    np.testing.assert_array_equal(codes, tiny.encode_reference(sound))
    pieces = list(fast.stream(TEXT, temperature=0, max_new_tokens=9))
    assert [len(piece.audio) for piece in pieces] == [4 * tiny.hop, 5 * tiny.hop]
    # what a request may not ask, the engine still may: it decides
    rest = list(fast.generate(prompt, codes_so_far=expected[1:, :5], temperature=0, max_new_tokens=3))
    np.testing.assert_array_equal(np.stack(rest, axis=1), expected[:, 5:8])
    assert len(list(fast.generate(prompt, temperature=5.0, max_new_tokens=2))) == 2
    with pytest.raises(ValueError, match="max_new_tokens"):
        list(fast.generate(prompt, max_new_tokens=0))
    assert fast.decode(np.zeros((4, 0), np.int64)).shape == (0,)
    assert all(part["backend"] == "onnxruntime" for part in fast.status()["parts"].values())


def test_the_users_engine_is_never_touched(fast: UniversalOptimizer) -> None:
    engine = load("tiny")
    before, generate = dict(vars(engine)), type(engine).generate
    training = [m.training for m in [*engine.language_model.modules(), *engine.codec.modules()]]
    weights = {name: p.detach().clone() for name, p in engine.named_parameters()}
    optimizer = UniversalOptimizer(engine, precision="fp32", threads=1, probe=False).prepare()
    optimizer.synthesize(TEXT, voice(engine), "a", **SHORT)
    optimizer.brand_new = 1  # what its owner sets is the engine's, as without us
    assert engine.brand_new == optimizer.brand_new == 1
    del optimizer.brand_new
    assert not hasattr(engine, "brand_new")
    optimizer.close()
    assert vars(engine) == before
    assert all(vars(engine)[name] is value for name, value in before.items())
    assert type(engine).generate is generate
    assert [m.training for m in [*engine.language_model.modules(), *engine.codec.modules()]] == training
    assert all(p.equal(weights[name]) for name, p in engine.named_parameters())
    assert len(engine.synthesize(TEXT, seed=0, **SHORT)[0]) == 10 * engine.hop, "and usable after close"


# Life cycle


def test_nothing_happens_before_the_first_use(tiny: Any, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    threads = threading.active_count()
    optimizer = UniversalOptimizer(tiny, cache_dir=tmp_path / "cache", progress=events.append)
    assert events == []
    assert not (tmp_path / "cache").exists()
    assert threading.active_count() == threads
    status = optimizer.status()
    assert {p["reason"] for p in status["parts"].values()} == {"not prepared yet"}
    assert (status["tier"], status["cache"]) == (None, None)
    json.dumps(status)
    optimizer.close()
    assert not (tmp_path / "cache").exists()


def test_a_relative_cache_stays_where_it_was_given(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "later").mkdir()
    monkeypatch.chdir(tmp_path)
    with UniversalOptimizer(tiny, cache_dir="cache", probe=False, threads=1) as optimizer:
        monkeypatch.chdir(tmp_path / "later")
        optimizer.prepare(["decoder"])
        assert optimizer.status()["cache"] == str(tmp_path / "cache")
    assert list((tmp_path / "later").iterdir()) == []


def test_whole_segments_are_what_the_blocking_call_says(fast: Any) -> None:
    text = "This is a sentence that is spoken. " * 12
    stream = fast.stream(text, eager=False, seed=0, max_new_tokens=12)
    chunks = [chunk.audio for chunk in stream]
    whole = fast.synthesize(text, seed=0, max_new_tokens=12)
    assert len(chunks) > 1
    np.testing.assert_array_equal(np.concatenate(chunks), whole.audio)


def test_prepare_twice_is_prepare_once(tiny: Any, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    optimizer = UniversalOptimizer(
        tiny, adapter=QuickAdapter(tiny), cache_dir=tmp_path, threads=1, progress=events.append
    )
    assert optimizer.prepare(["decoder"]) is optimizer
    assert {e.component for e in events} == {"decoder"}
    assert [e.stage for e in events if e.stage != "build"] == ["hash", "prove", "probe", "load", "probe"]
    assert events[-1].done < events[-1].total
    optimizer.prepare()
    assert {e.component for e in events} == {"encoder", "text2semantic", "decoder"}
    count, choices = len(events), [r.choice for r in optimizer._routes.values()]
    optimizer.prepare()
    optimizer.synthesize(TEXT, voice(tiny), **SHORT)
    assert len(events) == count
    assert all(a is b for a, b in zip([r.choice for r in optimizer._routes.values()], choices, strict=True))


def test_progress_that_raises_costs_speed_only(tiny: Any, tmp_path: Path) -> None:
    def progress(event: ProgressEvent) -> None:
        raise BrokenPipeError("the terminal is gone")

    optimizer = UniversalOptimizer(tiny, adapter=QuickAdapter(tiny), cache_dir=tmp_path, progress=progress)
    assert optimizer.synthesize(TEXT, seed=0, **SHORT).metrics["backend"] == "pytorch"


def test_status_of_the_real_exports(fast: UniversalOptimizer, exports: Path) -> None:
    status = json.loads(json.dumps(fast.status()))
    assert status["engine"] == "reference"
    assert status["cache"] == str(exports)
    assert set(status["parts"]) == {"encoder", "text2semantic", "decoder"}
    for part in status["parts"].values():
        assert (part["backend"], part["precision"], part["errors"]) == ("onnxruntime", "fp32", [])
        assert part["options"]["threads"] == 1
        for export in part["exports"].values():
            assert export["proof"]["passed"] is True
            assert Path(export["path"]).is_dir()
    proof = status["parts"]["text2semantic"]["exports"]["text2semantic"]["proof"]
    assert proof["mismatches"] == 0
    assert proof["spread_error"] <= proof["bar"]["spread_error"] == 5e-4


def test_closed_is_closed(tiny: Any) -> None:
    optimizer = twin(tiny)
    stream = optimizer.stream(TEXT, **SHORT)
    with optimizer as entered:
        assert entered is optimizer
        optimizer.synthesize(TEXT, **SHORT)
    optimizer.close()
    for use in (
        lambda: optimizer.synthesize(TEXT),
        lambda: optimizer.stream(TEXT),
        lambda: optimizer.prepare(),
        lambda: optimizer.config,
        lambda: next(stream),
    ):
        with pytest.raises(Closed, match="wrap the engine again"):
            use()
    assert repr(optimizer) == "<UniversalOptimizer of reference, closed>"
    assert {p["reason"] for p in optimizer.status()["parts"].values()} == {"closed"}


def test_closing_frees_the_sessions(tiny: Any, fast: UniversalOptimizer) -> None:
    import weakref

    optimizer = UniversalOptimizer(tiny, precision="fp32", threads=1, probe=False).prepare(["decoder"])
    call = optimizer._routes["decoder"].choice.call  # type: ignore[union-attr]
    reference = weakref.ref(call)
    del call
    optimizer.close()
    gc.collect()
    assert reference() is None


def test_no_audio_is_an_error(tiny: Any) -> None:
    class Mute(FakeAdapter):
        def bind(self, calls: Mapping[str, Any]) -> Any:
            return replace(super().bind(calls), stream=lambda request, kept: iter(()))

    with pytest.raises(GenerationError, match="no audio"):
        UniversalOptimizer(None, adapter=Mute(Clock())).synthesize("Hello")


def test_a_checkpoint_needs_a_known_engine(tmp_path: Path) -> None:
    with pytest.raises(AcceleratorError, match="no engine called 'nobody'"):
        UniversalOptimizer.from_checkpoint(tmp_path, engine="nobody")


# Threads


def test_concurrent_requests_equal_their_serial_twins(fast: UniversalOptimizer, tiny: Any) -> None:
    voices = [None, voice(tiny), (voice(tiny)[0][::-1].copy(), tiny.sample_rate)]
    requests = [
        {"text": f"Number {n}.", "reference_audio": voices[n % 3], "seed": n % 8, "max_new_tokens": 3 + n % 5}
        for n in range(32)
    ]
    serial = [fast.synthesize(**request).audio for request in requests]
    answers: dict[int, np.ndarray] = {}
    gate = threading.Barrier(32)

    def work(n: int) -> None:
        gate.wait()
        answers[n] = fast.synthesize(**requests[n]).audio

    threads = [threading.Thread(target=work, args=(n,)) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, expected in enumerate(serial):
        np.testing.assert_array_equal(answers[n], expected, err_msg=str(n))


def test_streams_may_interleave(fast: UniversalOptimizer) -> None:
    expected = [fast.synthesize(f"Stream {n}.", seed=n, max_new_tokens=24).audio for n in range(3)]
    streams = [fast.stream(f"Stream {n}.", seed=n, max_new_tokens=24) for n in range(3)]
    turns = [[next(stream).audio for stream in streams] for _ in range(3)]
    for n, stream in enumerate(streams):
        assert list(stream) == []
        np.testing.assert_allclose(np.concatenate([turn[n] for turn in turns]), expected[n], rtol=0, atol=2e-6)
        assert stream.metrics["frames"] == 24


def test_a_long_run_keeps_memory_flat(fast: UniversalOptimizer) -> None:
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    lengths = [3, 16, 7, 12, 2]

    def run(count: int) -> int:
        for n in range(count):
            fast.synthesize("word " * (1 + n % 40), seed=n, max_new_tokens=lengths[n % 5])
        gc.collect()
        return int(process.memory_info().rss)

    before = run(40)
    assert run(100) - before < 16 << 20


# Many at once

WORDS = ["One.", "Two and three.", "Four.", "Five, six, seven.", "Eight."]


def test_a_batch_is_what_one_by_one_would_be(fast: UniversalOptimizer) -> None:
    options: dict[str, Any] = {"seed": 4, "max_new_tokens": 20}
    answers = fast.synthesize_batch(WORDS, **options)
    for text, answer in zip(WORDS, answers, strict=True):
        assert isinstance(answer, Speech)
        np.testing.assert_array_equal(answer.audio, fast.synthesize(text, **options).audio)
        assert answer.metrics["frames"] == 20
    assert fast.synthesize_batch([]) == []
    with pytest.raises(InvalidOption, match="list of texts"):
        fast.synthesize_batch("one text")
    with pytest.raises(InvalidOption, match="speed"):
        fast.synthesize_batch(WORDS, speed=2)


def test_a_batch_with_a_bad_text_speaks_the_others(fast: UniversalOptimizer) -> None:
    texts = [WORDS[0], "?!", WORDS[1]]
    first, bad, last = fast.synthesize_batch(texts, seed=4, max_new_tokens=5, return_exceptions=True)
    assert isinstance(bad, InvalidText)
    for text, answer in ((WORDS[0], first), (WORDS[1], last)):
        assert isinstance(answer, Speech)
        np.testing.assert_array_equal(answer.audio, fast.synthesize(text, seed=4, max_new_tokens=5).audio)
    with pytest.raises(InvalidText):
        fast.synthesize_batch(texts, max_new_tokens=5)


def test_asyncio(fast: UniversalOptimizer) -> None:
    async def several() -> list[Speech]:
        ticks = 0

        async def ticking() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        clock = asyncio.create_task(ticking())
        answers = await asyncio.gather(*(fast.asynthesize(t, seed=4, max_new_tokens=20) for t in WORDS))
        clock.cancel()
        assert ticks > 1, "the event loop goes on meanwhile"
        with pytest.raises(InvalidText):
            await fast.asynthesize("")
        return answers

    for text, answer in zip(WORDS, asyncio.run(several()), strict=True):
        np.testing.assert_array_equal(answer.audio, fast.synthesize(text, seed=4, max_new_tokens=20).audio)


def test_a_cancelled_task_ends_its_generation(tiny: Any) -> None:
    drawn, begun, left = [], threading.Event(), threading.Event()

    def endless(part: Part) -> Any:
        def call(prompt: np.ndarray, params: Any, **_: Any) -> Iterator[np.ndarray]:
            frame = next(part.original(prompt, params))
            try:
                while len(drawn) < 10**6:
                    drawn.append(1)
                    begun.set()
                    yield frame
            finally:
                left.set()

        return call

    async def main(optimizer: UniversalOptimizer) -> None:
        task = asyncio.create_task(optimizer.asynthesize("Never mind."))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(left.wait, 30)

    asyncio.run(main(twin(tiny, text2semantic=endless)))
    assert len(drawn) < 10**6


def test_a_stream_may_be_closed_by_another_thread(tiny: Any) -> None:
    going = threading.Event()

    def endless(part: Part) -> Any:
        def call(prompt: np.ndarray, params: Any, **_: Any) -> Iterator[np.ndarray]:
            frame = next(part.original(prompt, params))
            while True:
                going.set()
                yield frame

        return call

    optimizer = twin(tiny, {"split_text": False}, text2semantic=endless)
    stream = optimizer.stream("Never mind.")
    errors: list[BaseException] = []

    def listen() -> None:
        try:
            for _ in stream:
                pass
        except GenerationError as error:
            errors.append(error)

    listener = threading.Thread(target=listen)
    listener.start()
    assert going.wait(30)
    stream.close()
    listener.join(30)
    assert not listener.is_alive()
    assert not errors or "nobody listens" in str(errors[0])


def test_the_queue_is_bounded(tiny: Any) -> None:
    optimizer = twin(tiny, {"queue_size": 2})
    streams = [optimizer.stream(TEXT, **SHORT) for _ in range(3)]
    for stream in streams[:2]:
        next(stream)
    with pytest.raises(Overloaded, match="2 requests"):
        next(streams[2])
    with pytest.raises(Overloaded):
        optimizer.synthesize(TEXT, **SHORT)
    streams[0].close()
    assert len(optimizer.synthesize(TEXT, **SHORT).audio) > 0
    streams[1].close()
    for wrong in (0, True, "8"):
        with pytest.raises(InvalidOption, match="queue_size"):
            UniversalOptimizer(tiny, queue_size=wrong)  # type: ignore[arg-type]


def test_a_voice_by_name(tiny: Any, fast: UniversalOptimizer) -> None:
    with pytest.raises(InvalidOption, match="no voice 'anna'"):
        fast.synthesize(TEXT, voice="anna", **SHORT)
    with pytest.raises(InvalidOption, match="give one of them"):
        fast.synthesize(TEXT, voice(tiny), voice="anna", **SHORT)

    class Anyone:
        sample_rate = 8000

        def synthesize(self, text: str) -> np.ndarray:
            return np.full(800, 0.1, np.float32)

    with pytest.raises(InvalidOption, match="knows no voices"):
        UniversalOptimizer(Anyone()).synthesize(TEXT, voice="anna")


def test_a_voice_is_encoded_once_also_by_the_next_process(tiny: Any, tmp_path: Path) -> None:
    counts = []
    for _ in range(2):
        calls: list[int] = []

        def counted(part: Part, calls: list[int] = calls) -> Any:
            return lambda audio: calls.append(1) or part.original(audio)  # type: ignore[func-returns-value]

        optimizer = twin(tiny, {"cache_dir": tmp_path}, encoder=counted)
        answers = [optimizer.synthesize(TEXT, voice(tiny), "la", seed=1, **SHORT).audio for _ in range(2)]
        np.testing.assert_array_equal(answers[0], answers[1])
        counts.append(len(calls))
    assert counts == [1, 0]


# Processes


def test_importing_loads_nothing_heavy() -> None:
    heavy = "('torch', 'onnxruntime', 'onnx', 'numpy', 'soundfile')"
    script = f"import accelerator, sys; print(sorted(set({heavy}) & set(sys.modules)), dir(accelerator))"
    assert python(script).startswith("[] ")
    script = f"import accelerator.optimizer, accelerator.cli, sys; print(sorted(set({heavy}[:2]) & set(sys.modules)))"
    assert python(script).strip() == "[]"


def test_public_names_exist() -> None:
    for name in accelerator.__all__:
        assert getattr(accelerator, name).__name__ == name
    assert set(accelerator.__all__) <= set(dir(accelerator))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = accelerator.Nothing


SECOND_PROCESS = """
import json
from accelerator import UniversalOptimizer
from accelerator.reference import load
stages = set()
optimizer = UniversalOptimizer(
    load("tiny"), precision="fp32", threads=1, probe=False, progress=lambda event: stages.add(event.stage)
)
audio, rate, metrics = optimizer.synthesize("Hello there.", temperature=0, max_new_tokens=6)
print(json.dumps([sorted(stages), metrics["cache"], metrics["backend"], float(abs(audio).sum())]))
"""


def test_a_second_process_builds_nothing(fast: UniversalOptimizer, exports: Path) -> None:
    """And warns of nothing: its warnings are errors."""
    stages, cache, backend, total = json.loads(python(SECOND_PROCESS, ACCELERATOR_CACHE=str(exports)))
    assert stages == ["hash", "load"]
    assert cache == {"text2semantic": "hit", "decoder": "hit"}
    assert backend == "onnxruntime"
    here = fast.synthesize(TEXT, temperature=0, max_new_tokens=6).audio
    assert total == pytest.approx(float(abs(here).sum()), rel=1e-5)


@pytest.mark.parametrize("kind", ["file", "forbidden", "missing parent"])
def test_a_cache_that_cannot_be_written_never_fails_synthesis(tiny: Any, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "cache"
    if kind == "file":
        place.write_text("in the way")
    elif kind == "missing parent":
        (tmp_path / "file").write_text("in the way")
        place = tmp_path / "file" / "cache"
    else:
        place = Path("/proc/accelerator-cache")
    optimizer = UniversalOptimizer(tiny, adapter=QuickAdapter(tiny), cache_dir=place, threads=1)
    audio, _, metrics = optimizer.synthesize(TEXT, temperature=0, **SHORT)
    np.testing.assert_array_equal(audio, tiny.synthesize(TEXT, temperature=0, **SHORT)[0])
    assert metrics["fallback"] == []
    assert metrics["backend"] == "onnxruntime"
    exports = [e for p in optimizer.status()["parts"].values() for e in p.get("exports", {}).values()]
    assert {e["layer"] for e in exports} == {"ephemeral"}


# What is said to whoever listens


@pytest.mark.usefixtures("fast")  # whose exports are used
def test_a_short_request_says_nothing_at_info(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    """By this package or by another: not the first one, which loads what was exported before, and not the next ones."""
    caplog.set_level(logging.INFO)
    with UniversalOptimizer(tiny, precision="fp32", threads=1, probe=False) as optimizer:
        for seed in (1, 2):
            speech = optimizer.synthesize(TEXT, seed=seed, **SHORT)
            assert speech.metrics["backend"] == "onnxruntime"
            assert len(list(optimizer.stream(TEXT, seed=seed, **SHORT))) > 0
    assert [f"{record.name}: {record.getMessage()}" for record in caplog.records] == []


# Memory of the weights


def test_torch_is_released_once_everything_runs_without_it(tiny: Any) -> None:
    released = []

    class Adapter(QuickAdapter):
        def release(self) -> None:
            released.append(1)

    optimizer = UniversalOptimizer(tiny, adapter=Adapter(tiny), release_torch=True)
    for name, route in optimizer._routes.items():
        route._choice = None if name == "encoder" else Choice(route.part.original, "")
    optimizer.synthesize(TEXT, **SHORT)
    assert released == [], "the encoder is not there yet"
    optimizer._routes["encoder"]._choice = Choice(optimizer._routes["encoder"].part.original, "")
    optimizer.synthesize(TEXT, **SHORT)
    optimizer.synthesize(TEXT, **SHORT)
    assert released == [1]
    assert optimizer.status()["torch_released"] is True


def test_invalid_input_is_told_from_our_failures() -> None:
    assert issubclass(InvalidOption, (InvalidInput, TypeError))
    assert copy.copy(InvalidText("x")).args == ("x",)
