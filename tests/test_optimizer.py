"""The wrapper as its users see it: answers, drop-in, life cycle."""

from __future__ import annotations

import copy
import gc
import json
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator import AudioChunk, ProgressEvent, Speech, UniversalOptimizer
from accelerator.errors import (
    AcceleratorError,
    Closed,
    GenerationError,
    InvalidInput,
    InvalidOption,
    InvalidText,
)
from accelerator.metrics import Meter
from accelerator.optimizer import _whole
from accelerator.pipeline.selection import Choice
from accelerator.pipeline.stream import SpeechStream
from accelerator.reference import ReferenceEngine, load
from tests.doubles import QuickAdapter, replica, voice

ROOT = Path(__file__).parents[1]
TEXT = "Hello there."
SHORT: dict[str, Any] = {"max_new_tokens": 10}


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


@pytest.mark.slow
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
    optimizer = replica(tiny)
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


def test_a_checkpoint_needs_a_known_engine(tmp_path: Path) -> None:
    with pytest.raises(AcceleratorError, match="no engine called 'nobody'"):
        UniversalOptimizer.from_checkpoint(tmp_path, engine="nobody")


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
