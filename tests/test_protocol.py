"""The protocol fits: each kind of engine in skeletons.py goes through the whole pipeline without special cases."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from accelerator import UniversalOptimizer
from accelerator.engines.base import Adapter, Bound, Job, Stages
from accelerator.errors import BadOutput, EngineError, GenerationError, InvalidOption
from accelerator.parts.backends import onnx_runtime
from accelerator.parts.part import Call, Part
from accelerator.speech import AudioChunk, SpeechRequest
from tests.doubles import component
from tests.skeletons import KINDS, LONG, RATE, Flow, Graph, Loop, Skeleton, Tokens, each_kind, opened, sound, streamed


@each_kind
def test_a_skeleton_is_an_adapter_with_stages(kind: type[Skeleton]) -> None:
    adapter = kind()
    assert isinstance(adapter, Adapter)
    bound = adapter.bind({part.name: part.original for part in adapter.parts()})
    assert isinstance(bound.stages, Stages)


@each_kind
@pytest.mark.parametrize("text", ["One sentence.", LONG])
def test_what_streams_is_what_is_spoken_at_once(kind: type[Skeleton], text: str, tmp_path: Any) -> None:
    with opened(kind, tmp_path) as optimizer:
        speech = optimizer.synthesize(text, seed=5, **KINDS[kind])
        audio, chunks = streamed(optimizer, text, seed=5, **KINDS[kind])
        np.testing.assert_allclose(audio, speech.audio, rtol=0, atol=1e-6)
        assert speech.metrics["fallback"] == []
        assert set(speech.metrics["backends"]) >= {part.name for part in kind().parts() if part.stage != "reference"}
        assert "".join(each["text"] for each in speech.metrics["segments"]) == text
        assert [each["state"] for each in speech.metrics["segments"]] == ["done"] * (1 if text != LONG else 3)
        if kind in (Tokens, Loop):
            assert chunks > 3, "windows come as soon as there are units, though the decoder holds some back"


@each_kind
def test_what_fails_is_answered_by_the_original_and_nothing_is_lost(kind: type[Skeleton], tmp_path: Any) -> None:
    with opened(kind, tmp_path) as whole, opened(kind, tmp_path) as broken:
        expected = whole.synthesize(LONG, seed=5, **KINDS[kind]).audio
        broken.prepare()
        for route in broken._routes.values():
            breaks(route)
        speech = broken.synthesize(LONG, seed=5, **KINDS[kind])
        np.testing.assert_array_equal(speech.audio, expected)
        parts = [part for part in kind().parts() if part.stage != "reference"]
        assert {each["part"] for each in speech.metrics["fallback"]} == {part.name for part in parts}
        for part in parts:
            assert speech.metrics["backends"][part.name] in (part.runs_on, "hybrid")


def breaks(route: Any) -> None:
    """Once, in the middle of what it streams, or before it answers."""
    call, times = route._choice.call, [0]

    def once(*arguments: Any, **options: Any) -> Any:
        times[0] += 1
        if route.part.streams:
            return items(*arguments, **options) if times[0] == 1 else call(*arguments, **options)
        if times[0] == 1:
            raise BadOutput("by the test")
        return call(*arguments, **options)

    def items(*arguments: Any, **options: Any) -> Iterator[Any]:
        for count, item in enumerate(call(*arguments, **options)):
            if count == 4:
                raise RuntimeError("by the test")
            yield item

    object.__setattr__(route._choice, "call", once)
    object.__setattr__(route._choice, "shared", once)


@each_kind
def test_what_an_engine_does_not_know_is_refused_and_what_it_knows_is_named(
    kind: type[Skeleton], tmp_path: Any
) -> None:
    with opened(kind, tmp_path) as optimizer:
        own = [f"{name} ({option.values})" for name, option in sorted((kind.options or {}).items())]
        known = ", ".join(("seed", *own)) if own else "seed only"
        with pytest.raises(InvalidOption, match=re.escape(f"pitch is no option of skeleton: it takes {known}")):
            optimizer.synthesize("Hello.", pitch=3)
        if kind in (Graph, Flow):
            with pytest.raises(InvalidOption, match="temperature is no option"):
                optimizer.synthesize("Hello.", temperature=0.5)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Loop, {"style": 12}, "style must be from 0 to 9, not 12"),
        (Loop, {"style": 1.5}, "style must be an integer"),
        (Graph, {"speed": "fast"}, "speed must be a number, not str"),
        (Graph, {"speed": float("nan")}, "speed must be from 0.5 to 2"),
        (Tokens, {"gender": "other"}, "gender must be one of female, male"),
        (Tokens, {"gender": 1}, "gender must be a str"),
        (Tokens, {}, "give reference_audio or gender"),
        (Graph, {"voice": "nobody"}, "there is no voice 'nobody'; it knows expr-voice-2-f"),
    ],
)
def test_bad_options_name_what_is_right(kind: type[Skeleton], options: Any, message: str, tmp_path: Any) -> None:
    with opened(kind, tmp_path) as optimizer, pytest.raises(InvalidOption, match=message):
        optimizer.synthesize("Hello.", **options)


def test_options_change_what_is_said(tmp_path: Any) -> None:
    with opened(Loop, tmp_path) as optimizer:
        assert not np.array_equal(optimizer.synthesize("Hi.").audio, optimizer.synthesize("Hi.", style=4).audio)
    with opened(Graph, tmp_path) as optimizer:
        assert len(optimizer.synthesize("Hi.", speed=2).audio) * 2 == len(optimizer.synthesize("Hi.").audio)


@pytest.mark.parametrize("kind", [Tokens, Loop], ids=lambda kind: kind.__name__)
def test_a_voice_is_encoded_once_whatever_it_is(kind: type[Skeleton], tmp_path: Any) -> None:
    reference = (0.3 * np.sin(np.arange(8_000) / 9)).astype(np.float32), RATE
    stage = next(part.name for part in kind().parts() if part.stage == "reference")
    said = [None, reference] if kind is Loop else [reference]
    with opened(kind, tmp_path) as optimizer:
        heard = [optimizer.synthesize(LONG, seed=1, reference_audio=each) for each in (*said, reference)]
        assert stage in heard[-2].metrics["backends"]
        assert stage not in heard[-1].metrics["backends"], "known"
        np.testing.assert_array_equal(heard[-2].audio, heard[-1].audio)
    with opened(kind, tmp_path) as later:
        again = later.synthesize(LONG, seed=1, reference_audio=reference)
        assert stage not in again.metrics["backends"], "on disk, too"
        np.testing.assert_array_equal(again.audio, heard[-1].audio)
    with opened(Graph, tmp_path) as nobody, pytest.raises(InvalidOption, match="does not imitate voices"):
        nobody.synthesize("Hi.", reference_audio=reference)


def test_without_a_voice_the_first_segments_tokens_speak_for_all(tmp_path: Any) -> None:
    asked: list[Any] = []

    class Noting(Tokens):
        @staticmethod
        def draw(text: str, said: Any, seed: int, *, resume: Sequence[int] = ()) -> Iterator[int]:
            asked.append(None if said is None else tuple(said))
            return Tokens.draw(text, said, seed, resume=resume)

    with opened(Noting, tmp_path) as optimizer:
        optimizer.synthesize(LONG, seed=7, gender="female")
    assert asked == [None, (2, 1), (2, 1)]


def test_engines_that_are_onnx_say_where_their_original_runs(tmp_path: Any) -> None:
    with opened(Graph, tmp_path) as optimizer:
        optimizer.prepare()
        optimizer._routes["graph"].close()
        metrics = optimizer.synthesize("Hello.").metrics
        assert metrics["backends"] == {"graph": "onnxruntime-as-shipped"}
        assert optimizer.status()["parts"]["graph"]["backend"] == "onnxruntime-as-shipped"


def test_segments_beside_others_have_one_thread_each(tmp_path: Any) -> None:
    loads: list[int] = []

    class Noting(Flow):
        def parts(self) -> Sequence[Part]:
            def load(paths: Any, options: Any) -> Call:
                loads.append(options.threads)
                return lambda text, speaker: Flow().parts()[0].original(text, speaker)

            text, decoder = super().parts()
            backend = onnx_runtime((component("text"),), load)
            return Part("text", "text", text.original, text.probe, (backend,)), decoder

    with opened(Noting, tmp_path, threads=3) as optimizer:
        one: Callable[[str], Any] = lambda text: optimizer.synthesize(text, seed=1)  # noqa: E731
        one("One sentence.")
        assert loads == [3]
        one(LONG)
        assert loads == [3, 1]


# What callers and adapters do wrong


def test_a_stream_that_is_dropped_gives_its_place_to_others(tmp_path: Any) -> None:
    with opened(Loop, tmp_path, queue_size=1) as optimizer:
        for _ in range(3):
            for _chunk in optimizer.stream(LONG):
                break
        assert len(optimizer.synthesize("Hello.").audio)


def test_a_place_in_the_queue_comes_back_whatever_fails(tmp_path: Any) -> None:
    class Bad(Flow):
        def decoder(self, voice: int, job: Job) -> Any:
            return SimpleNamespace(push=lambda units, final: [1, 2, 3])

        def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
            try:
                yield AudioChunk(sound(np.ones(4, np.float32) / 2), RATE)
            finally:
                raise RuntimeError("while cleaning up")

    with opened(Bad, tmp_path, queue_size=1) as optimizer:
        for _ in range(3):
            with pytest.raises(GenerationError, match="while cleaning up"):
                optimizer.synthesize("Hello.")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros(800, np.int16), "int16 of shape"),
        (np.zeros((1, 800), np.float32), r"shape \(1, 800\)"),
        (np.full(800, np.nan, np.float32), "NaN"),
        ([0.1] * 800, None),
        (np.zeros(800), None),
    ],
)
@pytest.mark.parametrize("schedule", ["batched", "pooled"])
def test_what_a_decoder_answers_is_audio_or_the_original_speaks(
    answer: Any, message: str | None, schedule: str, tmp_path: Any
) -> None:
    class Answers(Flow):
        def decoder(self, voice: int, job: Job) -> Any:
            return SimpleNamespace(push=lambda units, final: answer)

        def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
            yield AudioChunk(np.full(80, 0.5, np.float32), RATE)

        def waits(self, voice: Any) -> bool:
            return False

    Answers.schedule = schedule
    with opened(Answers, tmp_path) as optimizer:
        speech = optimizer.synthesize("Hello.")
        assert speech.audio.dtype == np.float32
        assert len(speech.audio) == (80 if message else 800)
        reasons = [each["message"] for each in speech.metrics["fallback"]]
        if message is None:
            assert reasons == []
        else:
            assert re.search(message, "; ".join(reasons))


def test_an_adapter_that_does_not_keep_the_protocol_is_refused_when_it_is_given() -> None:
    class Nothing(Flow):
        def bind(self, calls: Mapping[str, Call]) -> Any:
            return None

    class Empty(Flow):
        def bind(self, calls: Mapping[str, Call]) -> Any:
            return Bound(object())

    for kind in (Nothing, Empty):
        with pytest.raises(EngineError, match=r"bind\(\) must answer with a Bound that has stages or stream"):
            UniversalOptimizer(None, adapter=kind())
    older: Any = SimpleNamespace(name="older", sample_rate=1, parts=list, bind=None, original=None, release=None)
    with pytest.raises(EngineError, match="is no adapter: it lacks cloning, options"):
        UniversalOptimizer(None, adapter=older)


def test_a_voice_that_is_not_known_is_refused_before_anything_is_exported(tmp_path: Any) -> None:
    class Named(Graph):
        def voices(self) -> Sequence[str]:
            return ("expr-voice-2-f",)

    with opened(Named, tmp_path) as optimizer:
        with pytest.raises(InvalidOption, match="there is no voice 'nobody'"):
            optimizer.stream("Hello.", voice="nobody")
        with pytest.raises(InvalidOption, match="voice must be a text, not int"):
            optimizer.stream("Hello.", voice=3)  # type: ignore[arg-type]
        assert optimizer.status()["parts"]["graph"]["reason"] == "not prepared yet"


def test_a_batch_does_not_overload_itself(tmp_path: Any) -> None:
    with opened(Flow, tmp_path, queue_size=2) as optimizer:
        assert len(optimizer.synthesize_batch(["Hello."] * 6)) == 6


def test_a_reference_part_without_backends_is_called_each_time(tmp_path: Any) -> None:
    class Plain(Loop):
        def parts(self) -> Sequence[Part]:
            speaker, *others = super().parts()
            return (Part(speaker.name, "reference", speaker.original, speaker.probe), *others)

    reference = (0.3 * np.sin(np.arange(8_000) / 9)).astype(np.float32), RATE
    with opened(Plain, tmp_path) as optimizer:
        for _ in range(2):
            metrics = optimizer.synthesize("Hi.", reference_audio=reference).metrics
            assert metrics["backends"]["speaker"] == "pytorch"
            assert [each["part"] for each in metrics["fallback"]] == ["speaker"]
        assert optimizer.stream("Hi.").metrics["rtf"] is None
