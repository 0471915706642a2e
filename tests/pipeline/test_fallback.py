"""Every fault in every part: PyTorch takes over where the part stopped, and nothing is repeated, lost or hidden."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from accelerator import UniversalOptimizer
from accelerator.errors import BadOutput, BatchFailed, GenerationError, InvalidOption, InvalidReference, SessionError
from accelerator.metrics import Meter, measuring
from accelerator.parts.decoding import Decoding
from accelerator.parts.part import Part
from accelerator.pipeline.fallback import MAX_FAILURES, Route
from accelerator.pipeline.selection import Choice
from tests.doubles import replica, voice
from tests.pipeline.greedy import FRAMES, GREEDY, TEXT, same, speak


@pytest.fixture(scope="module")
def expected(tiny: Any) -> np.ndarray:
    """The greedy answer of the engine alone."""
    return np.concatenate(list(tiny.stream(TEXT, **GREEDY)))


def frames_until(at: int, error: BaseException | None) -> Callable[[Part], Any]:
    """A generator part that raises (or, with None, just ends) in place of item `at`."""

    def make(part: Part) -> Any:
        def call(*args: Any, **options: Any) -> Iterator[Any]:
            for count, item in enumerate(part.original(*args, **options)):
                if count == at:
                    break
                yield item
            if error is not None:
                raise error

        return call

    return make


def answer_of(change: Callable[[Any], Any], calls: int | None = None) -> Callable[[Part], Any]:
    """A part whose answer (the first `calls` times) is changed."""

    def make(part: Part) -> Any:
        count = 0

        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            answer = part.original(*args, **options)
            return change(answer.copy()) if calls is None or count <= calls else answer

        return call

    return make


def fails(error: BaseException) -> Callable[[Any], Any]:
    def change(_: Any) -> Any:
        raise error

    return change


def nan_in_the_middle(audio: np.ndarray) -> np.ndarray:
    audio[len(audio) // 2] = np.nan
    return audio


def test_the_replica_answers_as_the_engine(tiny: Any, expected: np.ndarray) -> None:
    for how in ("blocking", "streaming"):
        audio, metrics = speak(replica(tiny), how)
        same(audio, expected)
        assert metrics["fallback"] == []
        assert metrics["backend"] == "onnxruntime"
        assert metrics["frames"] == FRAMES


@pytest.mark.parametrize("how", ["blocking", "streaming"])
@pytest.mark.parametrize("at", range(FRAMES + 1))
def test_the_language_model_may_fail_at_any_frame(tiny: Any, expected: np.ndarray, at: int, how: str) -> None:
    audio, metrics = speak(replica(tiny, text2semantic=frames_until(at, RuntimeError(f"at {at}"))), how)
    same(audio, expected)
    assert metrics["fallback"] == [{"part": "text2semantic", "reason": "RuntimeError", "message": f"at {at}"}]
    assert metrics["backends"] == {"text2semantic": "hybrid" if at else "pytorch", "decoder": "onnxruntime"}
    assert metrics["backend"] == "hybrid"
    assert metrics["frames"] == FRAMES


@pytest.mark.parametrize("how", ["blocking", "streaming"])
@pytest.mark.parametrize("error", [MemoryError("full"), BadOutput("NaN"), SessionError("ONNX"), StopIteration(3)])
def test_whatever_the_language_model_raises(tiny: Any, expected: np.ndarray, error: Exception, how: str) -> None:
    audio, metrics = speak(replica(tiny, text2semantic=frames_until(5, error)), how)
    same(audio, expected)
    assert [f["part"] for f in metrics["fallback"]] == ["text2semantic"]


@pytest.mark.parametrize("how", ["blocking", "streaming"])
def test_a_language_model_that_says_nothing_at_all(tiny: Any, expected: np.ndarray, how: str) -> None:
    audio, metrics = speak(replica(tiny, text2semantic=frames_until(0, None)), how)
    same(audio, expected)
    assert [(f["part"], f["reason"]) for f in metrics["fallback"]] == [("text2semantic", "BadOutput")]


DECODER_FAULTS = {
    "raises": (fails(RuntimeError("no")), "RuntimeError"),
    "out of memory": (fails(MemoryError("no")), "MemoryError"),
    "NaN": (nan_in_the_middle, "BadOutput"),
    "infinite": (lambda audio: audio / 0.0, "BadOutput"),
    "silent": (np.zeros_like, "BadOutput"),
    "clipped": (lambda audio: np.sign(audio), "BadOutput"),
    "empty": (lambda audio: audio[:0], "BadOutput"),
    "of another shape": (lambda audio: np.stack([audio, audio]), "BadOutput"),
}


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("how", ["blocking", "streaming"])
@pytest.mark.parametrize("fault", DECODER_FAULTS)
@pytest.mark.parametrize("calls", [1, None])
def test_the_decoder_decodes_the_same_codes_again(
    tiny: Any, expected: np.ndarray, fault: str, calls: int | None, how: str
) -> None:
    change, reason = DECODER_FAULTS[fault]
    audio, metrics = speak(replica(tiny, decoder=answer_of(change, calls)), how)
    same(audio, expected)
    assert {(f["part"], f["reason"]) for f in metrics["fallback"]} == {("decoder", reason)}
    windows = 2 if how == "streaming" else 1
    assert len(metrics["fallback"]) == (calls or windows)
    assert metrics["backends"]["decoder"] == ("hybrid" if calls and windows > 1 else "pytorch")
    assert metrics["backends"]["text2semantic"] == "onnxruntime"


ENCODER_FAULTS = {
    "raises": fails(RuntimeError("no")),
    "out of memory": fails(MemoryError("no")),
    "empty": lambda codes: codes[:, :0],
    "negative": lambda codes: codes - 100,
    "too large": lambda codes: codes + 100,
}


@pytest.mark.parametrize("how", ["blocking", "streaming"])
@pytest.mark.parametrize("fault", ENCODER_FAULTS)
def test_the_encoder_listens_again(tiny: Any, tmp_path: Any, fault: str, how: str) -> None:
    audio, rate = voice(tiny)
    expected = np.concatenate(list(tiny.stream(TEXT, audio, "a", **GREEDY)))
    optimizer = replica(tiny, {"cache_dir": tmp_path}, encoder=answer_of(ENCODER_FAULTS[fault]))
    answer, metrics = speak(optimizer, how, reference_audio=(audio, rate), reference_text="a")
    same(answer, expected)
    assert [f["part"] for f in metrics["fallback"]] == ["encoder"]
    assert metrics["backends"] == {"encoder": "pytorch", "text2semantic": "onnxruntime", "decoder": "onnxruntime"}


def test_codes_of_a_stand_in_are_not_remembered(tiny: Any, tmp_path: Any) -> None:
    """The export's codes, here all zero, differ from PyTorch's: a voice must not depend on when the export failed."""
    heard: list[str] = []
    broken = [True]

    def encoder(part: Part) -> Any:
        def call(audio: np.ndarray) -> np.ndarray:
            heard.append("broken" if broken[0] else "whole")
            if broken[0]:
                raise RuntimeError("no")
            return np.zeros_like(part.original(audio))

        return call

    audio, rate = voice(tiny)
    asked = {"reference_audio": (audio, rate), "reference_text": "a"}
    by_torch = np.concatenate(list(tiny.stream(TEXT, audio, "a", **GREEDY)))
    optimizer = replica(tiny, {"cache_dir": tmp_path}, encoder=encoder)
    same(speak(optimizer, "blocking", **asked)[0], by_torch)
    assert optimizer._dispatcher.voices._store.stats.voices == 0
    broken[0] = False
    by_export, metrics = speak(optimizer, "blocking", **asked)
    assert (metrics["backends"]["encoder"], metrics["fallback"]) == ("onnxruntime", [])
    assert not np.array_equal(by_export, by_torch[: len(by_export)])
    again = replica(tiny, {"cache_dir": tmp_path}, encoder=answer_of(fails(RuntimeError("not asked"))))
    answer, metrics = speak(again, "blocking", **asked)
    assert np.array_equal(answer, by_export), "found on disk"
    assert (metrics["backends"].get("encoder"), metrics["fallback"]) == (None, [])
    assert heard == ["broken", "whole"]


def test_voices_of_pytorch_and_of_the_export_are_kept_apart(tiny: Any, tmp_path: Any) -> None:
    audio, rate = voice(tiny)
    asked = {"reference_audio": (audio, rate), "reference_text": "a"}
    heard: list[str] = []

    def optimizer(call: Any) -> UniversalOptimizer:
        made = replica(tiny, {"cache_dir": tmp_path}, encoder=lambda part: call)
        torch = made._routes["encoder"].part.original
        part = replace(made._routes["encoder"].part, original=lambda audio: heard.append("pytorch") or torch(audio))
        made._routes["encoder"].part = part
        return made

    def export(audio: np.ndarray) -> np.ndarray:
        heard.append("export")
        return np.zeros_like(tiny.encode_reference(audio))

    for _ in range(2):  # switched off, or slower: PyTorch's for good, and remembered as such
        slow = speak(optimizer(None), "blocking", **asked)[0]
    assert heard == ["pytorch"]
    for _ in range(2):
        fast = speak(optimizer(export), "blocking", **asked)[0]
    assert heard == ["pytorch", "export"]
    assert not np.array_equal(fast, slow[: len(fast)])


def test_all_parts_may_fail_in_one_request(tiny: Any, tmp_path: Any) -> None:
    audio, rate = voice(tiny)
    expected = np.concatenate(list(tiny.stream(TEXT, audio, "a", **GREEDY)))
    optimizer = replica(
        tiny,
        {"cache_dir": tmp_path},
        encoder=answer_of(fails(RuntimeError("1"))),
        text2semantic=frames_until(3, RuntimeError("2")),
        decoder=answer_of(fails(RuntimeError("3"))),
    )
    answer, metrics = speak(optimizer, "blocking", reference_audio=(audio, rate), reference_text="a")
    same(answer, expected)
    assert [f["message"] for f in metrics["fallback"]] == ["1", "2", "3"]


def test_onnx_runtime_itself_hands_over_too(fast: UniversalOptimizer, tiny: Any, expected: np.ndarray) -> None:
    """The real exports: a greedy answer is PyTorch's, and so is one whose second half PyTorch spoke."""
    real = {name: route.choice.call for name, route in fast._routes.items()}
    audio, metrics = speak(replica(tiny, **{n: (lambda _, call=call: call) for n, call in real.items()}), "blocking")
    np.testing.assert_allclose(audio, expected, atol=1e-4)
    assert metrics["fallback"] == []

    def until_five(_: Part) -> Any:
        return frames_until(5, RuntimeError("five"))(replace(_, original=real["text2semantic"]))

    audio, metrics = speak(replica(tiny, text2semantic=until_five), "streaming")
    np.testing.assert_allclose(audio, expected, atol=1e-4)
    assert [f["message"] for f in metrics["fallback"]] == ["five"]


@pytest.mark.parametrize(
    ("part", "make"),
    [("decoder", answer_of(fails(OSError("gone")))), ("text2semantic", frames_until(2, OSError("gone")))],
)
def test_a_part_that_keeps_failing_is_switched_off(
    tiny: Any, expected: np.ndarray, part: str, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = replica(tiny, **{part: make})
    for _ in range(MAX_FAILURES):
        assert speak(optimizer, "blocking")[1]["backends"][part] != "onnxruntime"
    status = optimizer.status()["parts"][part]
    assert status["backend"] == "pytorch"
    assert status["reason"] == "switched off after 3 failures: OSError: gone"
    assert len(status["errors"]) >= MAX_FAILURES
    json.dumps(optimizer.status())
    assert "switched off for this process" in caplog.text
    assert "Traceback" in caplog.text

    audio, metrics = speak(optimizer, "blocking")
    same(audio, expected)
    assert metrics["backends"][part] == "pytorch"
    assert metrics["fallback"] == [{"part": part, "reason": "OSError", "message": status["reason"]}]


def test_only_failures_in_a_row_count(tiny: Any) -> None:
    turns = iter([True, True, False] * 3)

    def make(part: Part) -> Any:
        def call(*args: Any, **options: Any) -> np.ndarray:
            if next(turns):
                raise RuntimeError("sometimes")
            return np.asarray(part.original(*args, **options))

        return call

    optimizer = replica(tiny, decoder=make)
    for _ in range(9):
        speak(optimizer, "blocking", max_new_tokens=2)
    assert optimizer.status()["parts"]["decoder"]["backend"] == "onnxruntime"


def test_a_failure_that_pytorch_shares_is_the_requests(tiny: Any) -> None:
    """Texts too long for the model, however many: nobody is switched off."""
    optimizer = replica(tiny, {"split_text": False})
    for _ in range(MAX_FAILURES + 1):
        with pytest.raises(GenerationError, match="2048 columns"):
            optimizer.synthesize("word " * 500)
    for _ in range(MAX_FAILURES + 1):  # a pause, which both implementations make
        route = Route(
            Part("p", "decode", lambda: np.zeros(9), lambda call: 1.0, check=_never_silent),
            lambda _: Choice(lambda: np.zeros(9), ""),
        )
        assert (route() == np.zeros(9)).all()
        assert route._failures == 0
    assert {p["backend"] for p in optimizer.status()["parts"].values()} == {"onnxruntime"}


def test_a_failed_batch_is_one_failure(tiny: Any, expected: np.ndarray) -> None:
    """All sequences of a run report its error; that the run failed once must not switch the part off."""
    shared = BatchFailed("the run they all were in")
    optimizer = replica(tiny, text2semantic=frames_until(2, shared))
    for answer in optimizer.synthesize_batch([TEXT] * (MAX_FAILURES + 2), **GREEDY):
        same(answer.audio, expected)  # type: ignore[union-attr]
        assert [f["part"] for f in answer.metrics["fallback"]] == ["text2semantic"]  # type: ignore[union-attr]
    assert optimizer._routes["text2semantic"]._failures == 1
    assert optimizer.status()["parts"]["text2semantic"]["backend"] == "onnxruntime"


def _never_silent(audio: np.ndarray) -> None:
    if not audio.any():
        raise BadOutput("silent")


@pytest.mark.parametrize("how", ["close", "throw"])
def test_what_a_consumer_does_at_a_yield_is_no_failure(tiny: Any, how: str) -> None:
    optimizer = replica(tiny)
    for _ in range(MAX_FAILURES + 1):
        frames = optimizer.generate(tiny.encode_text(TEXT), temperature=0.0)
        next(frames)
        if how == "close":
            frames.close()
        else:
            with pytest.raises(KeyError, match="mine"):
                frames.throw(KeyError("mine"))
        stream = optimizer.stream(TEXT, **GREEDY)
        next(stream)
        stream.close()
        with pytest.raises(StopIteration):
            next(stream)
    for route in optimizer._routes.values():
        assert (route._failures, route.errors) == (0, [])
    assert stream.metrics["fallback"] == []
    assert stream.metrics["audio_s"] == 4 * tiny.hop / tiny.sample_rate


def test_invalid_input_never_falls_back(tiny: Any) -> None:
    optimizer = replica(tiny, decoder=answer_of(fails(InvalidReference("not a voice"))))
    with pytest.raises(InvalidReference, match="not a voice"):
        speak(optimizer, "blocking")
    assert optimizer._routes["decoder"].errors == []
    optimizer = replica(tiny, text2semantic=frames_until(1, InvalidOption("too hot")))
    with pytest.raises(InvalidOption, match="too hot"):
        speak(optimizer, "blocking")
    assert optimizer._routes["text2semantic"].errors == []


def causes(error: BaseException | None) -> list[str]:
    found = []
    while error is not None:
        found.append(str(error))
        assert len(found) < 20, "a chain that bites its tail"
        error = error.__cause__
    return found


def broken_engine(monkeypatch: pytest.MonkeyPatch, decode: Callable[..., Any]) -> Any:
    from accelerator.reference import load

    engine = load("tiny")
    monkeypatch.setattr(engine, "decode", decode, raising=False)
    return engine


@pytest.mark.parametrize("how", ["blocking", "streaming"])
def test_when_pytorch_fails_too_the_error_tells_of_both(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def decode(codes: np.ndarray) -> np.ndarray:
        raise ValueError("PyTorch cannot")

    engine = broken_engine(monkeypatch, decode)
    optimizer = replica(engine, decoder=answer_of(lambda a: a))
    optimizer._routes["decoder"]._choice = Choice(lambda codes, **_: fails(OSError("ONNX cannot"))(codes), "")
    with pytest.raises(GenerationError, match="PyTorch cannot") as caught:
        speak(optimizer, how)
    chain = " <- ".join(causes(caught.value))
    assert "PyTorch cannot" in chain
    assert "ONNX cannot" in chain


def test_a_copy_that_fails_before_any_audio_leaves_the_word_to_the_original(tiny: Any, expected: np.ndarray) -> None:
    optimizer = replica(tiny)

    def prompt(*_: Any) -> Any:
        raise KeyError("the copy is broken")

    vars(optimizer._bound.engine)["encode_text"] = prompt  # on the copy only
    audio, metrics = optimizer.synthesize(TEXT, **GREEDY)[::2]
    np.testing.assert_array_equal(audio, tiny.synthesize(TEXT, **GREEDY)[0])
    assert metrics["fallback"] == [{"part": "engine", "reason": "KeyError", "message": "'the copy is broken'"}]
    assert metrics["backend"] == "pytorch"


def test_a_copy_that_fails_after_audio_is_an_error(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = replica(tiny)
    stream = optimizer.stream(TEXT, **GREEDY)
    first = next(stream)
    assert len(first.audio) == 4 * tiny.hop

    def decode(*_: Any, **__: Any) -> Any:
        raise KeyError("too late")

    monkeypatch.setattr(Decoding, "push", decode)
    with pytest.raises(GenerationError, match="too late"):
        list(stream)
    assert stream.metrics["fallback"] == []


def test_threads_share_one_load() -> None:
    loads: list[int] = []
    gate = threading.Barrier(8)

    def load(part: Part) -> Choice:
        loads.append(1)
        return Choice(lambda x: x + 1, "")

    route = Route(Part("p", "decode", lambda x: x + 1, lambda call: 1.0), load)
    answers: list[int] = []

    def work() -> None:
        gate.wait()
        answers.append(route(1))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (loads, answers) == ([1], [2] * 8)


def test_a_closed_route_answers_with_pytorch() -> None:
    route = Route(Part("p", "decode", lambda: "torch", lambda call: 1.0), lambda _: Choice(lambda: "onnx", ""))
    assert route() == "onnx"
    route.close()
    meter = Meter()
    with measuring(meter):
        assert route() == "torch"
        assert route() == "torch"
    assert meter.result()["fallback"] == [{"part": "p", "reason": "Closed", "message": "closed"}], "said once"
