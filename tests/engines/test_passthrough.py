from __future__ import annotations

import array
import copy
import importlib
import io
import json
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import UniversalOptimizer
from accelerator.audio.checks import write_wav
from accelerator.engines.passthrough import _PARTS, _SPEAKING
from accelerator.errors import EngineError, GenerationError, InvalidOption, InvalidText, UnsupportedEngine
from tests.engines.plain import TONE, Plain


def test_a_plain_engine_speaks_as_before() -> None:
    optimizer = UniversalOptimizer(Plain())
    audio, rate, metrics = optimizer.synthesize("Hello.")
    np.testing.assert_array_equal(audio, TONE)
    assert (audio.dtype, rate) == (np.float32, 8000)
    assert metrics["backend"] == "own"
    assert metrics["backends"] == {"engine": "own"}
    assert metrics["fallback"] == []
    assert metrics["audio_s"] == pytest.approx(0.1)
    assert (metrics["precision"], metrics["cache"]) == ({}, {})
    (chunk,) = optimizer.stream("Hello.")
    np.testing.assert_array_equal(chunk.audio, TONE)


def test_it_is_said_once_that_an_engine_is_passed_through(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = UniversalOptimizer(Plain())
    for _ in range(3):
        optimizer.synthesize("Hello.")
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "Plain is not an engine this package knows: it is passed through and runs as before" in warning


def test_a_plain_engine_is_asked_and_not_changed() -> None:
    engine = Plain()
    before = dict(vars(engine))
    with UniversalOptimizer(engine) as optimizer:
        for _ in range(3):
            optimizer.synthesize("Hello.")
    assert engine.calls == [("Hello.", {})] * 3
    assert vars(engine) == before
    assert engine.synthesize("after")[1] == 8000


def test_what_wraps_a_plain_engine_is_one() -> None:
    engine = Plain()
    optimizer = UniversalOptimizer(engine)
    assert isinstance(optimizer, Plain)
    assert optimizer.calls is engine.calls
    status = json.loads(json.dumps(optimizer.prepare().status()))
    assert (status["engine"], status["parts"]) == ("pass-through", {})


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
    "a list of samples and rate": ([TONE, 16_000], 16_000),
    "a list of rate and samples": ([16_000, TONE.tolist()], 16_000),
    "a rate without axes": ((TONE, torch.tensor(16_000)), 16_000),
    "samples that are numbers in a tuple": (tuple(TONE.tolist()), 8000),
    "an array of Python's": (array.array("f", TONE), 8000),
    "a pair in a mapping": ({"audio": (TONE, 16_000)}, 16_000),
    "pieces in a mapping": ({"audio": iter([TONE[:300], TONE[300:]]), "sr": 16_000}, 16_000),
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
    for same in (integers, integers.tolist(), integers.astype(np.int64), torch.from_numpy(integers).long()):
        audio = UniversalOptimizer(Plain((same, 8000))).synthesize("Hello.").audio
        np.testing.assert_array_equal(audio, integers / 32_768)
    wide = integers.astype(np.int32) * 65_536
    for same in (wide, wide.tolist(), list(wide)):
        audio = UniversalOptimizer(Plain((same, 8000))).synthesize("Hello.").audio
        np.testing.assert_array_equal(audio, integers / 32_768)
    stereo = np.stack([TONE, TONE * 0.5])
    for answer in (stereo, stereo.T):
        audio = UniversalOptimizer(Plain((answer, 8000))).synthesize("Hello.").audio
        np.testing.assert_allclose(audio, TONE * 0.75, atol=1e-7)
    against = np.stack([TONE, -TONE])
    for answer in (against, against.T):
        audio = UniversalOptimizer(Plain((answer, 8000))).synthesize("Hello.").audio
        np.testing.assert_array_equal(audio, TONE, err_msg="channels that cancel each other are not silence")
    audio = UniversalOptimizer(Plain(torch.from_numpy(TONE).bfloat16())).synthesize("Hello.").audio
    np.testing.assert_allclose(audio, TONE, atol=2e-3)


def test_an_object_with_audio() -> None:
    class Answer:
        audio = TONE
        sample_rate = 44_100

    assert UniversalOptimizer(Plain(Answer())).synthesize("Hello.").sample_rate == 44_100


@pytest.mark.parametrize(
    "answer",
    ["text", {"audio": 1}, io.BytesIO(), [["a"]], np.zeros((20, 30, 40)), (object(), 8000), ([2**40] * 9, 8000), {}, 3],
)
def test_what_is_no_audio_is_refused(answer: Any) -> None:
    with pytest.raises(EngineError, match="not audio"):
        UniversalOptimizer(Plain(answer)).synthesize("Hello.")


def test_a_rate_nobody_knows() -> None:
    class Unrated(Plain):
        sample_rate = None  # type: ignore[assignment]

    engine = Unrated(TONE)
    optimizer = UniversalOptimizer(engine)
    assert optimizer.sample_rate == 0
    with pytest.raises(EngineError, match=r"rate of Unrated.synthesize\(\) is unknown: give it a `sample_rate` in Hz"):
        optimizer.synthesize("Hello.")
    engine.sample_rate = 24_000  # type: ignore[assignment]
    assert optimizer.sample_rate == optimizer.synthesize("Hello.").sample_rate == 24_000
    with pytest.raises(EngineError, match="is 2 Hz"):  # its length in seconds
        UniversalOptimizer(Plain((TONE, 2.0))).synthesize("Hello.")

    class Odd(Plain):
        def sample_rate(self) -> int:  # type: ignore[override]
            return 8000

    assert UniversalOptimizer(Odd()).synthesize("Hello.").sample_rate == 8000


@pytest.mark.parametrize("name", ["synthesize", "tts", "generate", "create", "infer", "inference", "__call__"])
def test_its_method_may_have_any_usual_name(name: str) -> None:
    engine = type("Engine", (), {name: lambda self, text: (TONE, 8000)})()
    assert len(UniversalOptimizer(engine).synthesize("Hello.").audio) == 800


class Voice:
    """A class that speaks, not an engine."""

    def tts(self, text: str) -> Any:
        return TONE


NO_ENGINES: dict[str, tuple[Any, str]] = {
    "an object": (object(), "has none of synthesize, tts, generate"),
    "a text": ("a/checkpoint", "from_checkpoint"),
    "a path": (Path("a/checkpoint"), "from_checkpoint"),
    "bytes": (b"RIFF", "none of"),
    "None": (None, "none of"),
    "a number": (3, "none of"),
    "a dict": ({"model": 1}, "none of"),
    "a list": ([Voice()], "none of"),
    "an array": (TONE, "none of"),
    "a tensor": (torch.from_numpy(TONE), "none of"),
    "a class": (Voice, "is a class: make an instance"),
    "a layer": (torch.nn.Linear(2, 2), "Linear is no engine"),
    "a module": (io, "none of"),
    "a method": (Voice().tts, r"Voice.tts is a method of an object: wrap the object itself"),
    "another method": (Plain().__init__, r"a function, lambda text: engine.__init__\(text\)"),
    "a function of more": (lambda text, pack: TONE, r"<lambda>\(\) needs pack, too: wrap a function of the text"),
    "print": (print, r"print\(\) is a built-in function, not an engine: wrap .* lambda text: \(samples, Hz\)"),
    "len": (len, r"len\(\) is a built-in function"),
    "a list's method": ([].append, r"append\(\) is a built-in function"),
    "a wrapped engine": (UniversalOptimizer(Plain()), "is wrapped already: use it as it is, or wrap the engine that"),
    "a function of nothing": (lambda: TONE, "takes no text"),
    "a function of a voice": (lambda voice: TONE, "takes no text"),
}


@pytest.mark.parametrize("kind", NO_ENGINES)
def test_what_is_no_engine_is_refused_at_once(kind: str) -> None:
    thing, message = NO_ENGINES[kind]
    with pytest.raises(UnsupportedEngine, match=message):
        UniversalOptimizer(thing)


def test_a_model_without_its_tokenizer_is_refused() -> None:
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what PyTorch will do without one day
        model = transformers.VitsModel(
            transformers.VitsConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, ffn_dim=16, flow_size=8)
        )
    with pytest.raises(UnsupportedEngine, match=r"VitsModel is a model without its tokenizer: wrap .*pipeline\("):
        UniversalOptimizer(model)


def of_transformers(name: str) -> Any:
    """An object that can be called, of a subclass of what has that name there."""
    module, _, kind = name.rpartition(".")
    base = type(kind, (), {"__module__": module, "__call__": lambda self, text: TONE})
    return type("Theirs", (base,), {})()


@pytest.mark.parametrize("name", _PARTS)
def test_parts_of_an_engine_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedEngine, match=r"Theirs is an? .*: wrap transformers.pipeline\('text-to-speech'"):
        UniversalOptimizer(of_transformers(name))


def test_the_names_of_parts_are_those_of_transformers() -> None:
    pytest.importorskip("transformers", reason="pip install transformers")
    for name in (*_PARTS, _SPEAKING):
        module, _, kind = name.rpartition(".")
        found = getattr(importlib.import_module(module), kind)
        assert f"{found.__module__}.{found.__qualname__}" == name


def test_a_module_with_a_method_that_speaks_is_an_engine() -> None:
    class Speaks(torch.nn.Module):
        def tts(self, text: str) -> Any:
            return TONE, 8000

    assert UniversalOptimizer(Speaks()).synthesize("Hello.").sample_rate == 8000


def test_streams_come_piece_by_piece() -> None:
    made: list[int] = []

    class Piper:
        def synthesize(self, text: str) -> Any:
            for number in range(3):
                made.append(number)
                yield SimpleNamespace(audio_float_array=TONE * (number + 1) / 3, sample_rate=22_050)

    stream = UniversalOptimizer(Piper()).stream("Hello.")
    assert next(stream).sample_rate == 22_050
    assert made == [0]
    assert len(list(stream)) == 2
    speech = UniversalOptimizer(Piper()).synthesize("Hello.")
    np.testing.assert_allclose(speech.audio, np.concatenate([TONE / 3, TONE * 2 / 3, TONE]), atol=1e-7)

    class Empty:
        def tts(self, text: str) -> Any:
            return iter(())

    with pytest.raises(EngineError, match="no audio at all"):
        UniversalOptimizer(Empty()).synthesize("Hello.")


def test_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "answer.wav"
    write_wav(path, TONE, 22_050)
    data, written = path.read_bytes(), io.BytesIO()
    written.write(data)  # and not wound back
    for answer in (str(path), path, data, memoryview(data), io.BytesIO(data), written, {"audio": str(path)}):
        audio, rate, _ = UniversalOptimizer(Plain(answer)).synthesize("Hello.")
        np.testing.assert_allclose(audio, TONE, atol=1e-4)
        assert rate == 22_050


def test_coqui_speaks() -> None:
    class Synthesizer:
        output_sample_rate = 24_000

    class TTS(torch.nn.Module):
        synthesizer: Any = None

        def tts(
            self, text: str, speaker: Any = None, language: Any = None, speaker_wav: Any = None, **kwargs: Any
        ) -> Any:
            self.said = (text, speaker, speaker_wav, kwargs)
            return [*TONE, *[0] * 10]  # numpy's floats, and Python's integers for a pause

    engine = TTS()
    optimizer = UniversalOptimizer(engine)
    assert optimizer.sample_rate == 0
    engine.synthesizer = Synthesizer()  # it loads late
    assert optimizer.sample_rate == 24_000
    audio, rate, _ = optimizer.synthesize("Hello.", voice="Ana")
    np.testing.assert_array_equal(audio, np.append(TONE, np.zeros(10, np.float32)))
    assert (rate, engine.said) == (24_000, ("Hello.", "Ana", None, {}))
    voice = (np.tile(TONE, 4), 8000)
    optimizer.synthesize("Hello.", voice, "What it says.")
    assert engine.said[2] is voice
    assert engine.said[3] == {"reference_text": "What it says."}


def test_kokoros_pipeline_speaks_by_the_method_that_takes_a_text() -> None:
    @dataclass
    class Result:
        graphemes: str
        audio: Any

        def __iter__(self) -> Any:  # as it once was a tuple
            yield from (self.graphemes, "", self.audio)

    class KPipeline:
        model = torch.nn.Linear(1, 1)

        @staticmethod
        def infer(model: Any, ps: str, pack: Any, speed: float = 1) -> Any:
            raise AssertionError("this takes no text")

        def __call__(self, text: str, voice: str | None = None, speed: float = 1, model: Any = None) -> Any:
            assert voice == "af_heart"
            for line in text.split(","):
                yield Result(line, torch.from_numpy(TONE))

    engine: Any = KPipeline()
    optimizer = UniversalOptimizer(engine)
    with pytest.raises(EngineError, match=r"rate of KPipeline\(\) is unknown: .*engine.sample_rate = 24000"):
        optimizer.synthesize("Hello, you.", voice="af_heart")
    engine.sample_rate = 24_000
    audio, rate, _ = optimizer.synthesize("Hello, you.", voice="af_heart")
    np.testing.assert_array_equal(audio, np.tile(TONE, 2))
    assert rate == 24_000


def test_pieces_do_not_change_when_the_engine_writes_the_next_one_over_them() -> None:
    class Reusing:
        def tts(self, text: str) -> Any:
            buffer = np.empty(800, np.float32)
            for level in (1.0, 0.5):
                buffer[:] = level * TONE
                yield buffer, 8000

    one, other = list(UniversalOptimizer(Reusing()).stream("Hello."))
    np.testing.assert_array_equal(one.audio, TONE)
    np.testing.assert_array_equal(other.audio, TONE * np.float32(0.5))


def test_a_voice_is_passed_on_in_the_engines_own_word() -> None:
    class Kokoro:
        def create(self, text: str, voice: str, speed: float = 1.0, lang: str = "en-us") -> Any:
            self.said = (text, voice)
            return TONE, 24_000

    class Coqui:
        sample_rate = 22_050

        def tts(self, text: str, speaker: str | None = None, language: str | None = None) -> Any:
            self.said = (text, speaker)
            return TONE.tolist()

    for engine in (Kokoro(), Coqui()):
        for speak in (
            UniversalOptimizer(engine).synthesize,
            lambda *a, e=engine, **k: list(UniversalOptimizer(e).stream(*a, **k)),
        ):
            speak("Hello.", voice="af_sky")
            assert engine.said == ("Hello.", "af_sky")
    with pytest.raises(InvalidOption, match=r"Kokoro.create\(\) needs voice, too: give voice="):
        UniversalOptimizer(Kokoro()).synthesize("Hello.")
    with pytest.raises(InvalidOption, match=r"Coqui.tts\(\) does not take seed; it takes speaker, language"):
        UniversalOptimizer(Coqui()).synthesize("Hello.", seed=1)
    engine = Plain()
    UniversalOptimizer(engine).synthesize("Hello.", voice="anna")
    assert engine.calls == [("Hello.", {"voice": "anna"})]


@pytest.mark.parametrize("name", ["sample_rate", "sampling_rate", "sr", "output_sample_rate"])
def test_the_rate_stands_in_many_places(name: str) -> None:
    class Engine:
        def tts(self, text: str) -> Any:
            return TONE

    for owner in (SimpleNamespace(**{name: 8000}), {name: 8000}):
        engine = Engine()
        engine.config = owner  # type: ignore[attr-defined]
        assert UniversalOptimizer(engine).synthesize("Hello.").sample_rate == 8000
        engine = Engine()
        engine.model = SimpleNamespace(hps={"data": owner})  # type: ignore[attr-defined]
        assert UniversalOptimizer(engine).sample_rate == 0, "that is too far away"
        engine.model = SimpleNamespace(config=owner, sample_rate=None)  # type: ignore[attr-defined]
        assert UniversalOptimizer(engine).sample_rate == 8000
        engine.config = SimpleNamespace(audio={"sample_rate": 22_050, "output_sample_rate": 24_000})  # type: ignore[attr-defined]
        assert UniversalOptimizer(engine).sample_rate == 24_000, "what it answers, not what it was trained with"
    engine = Engine()
    engine.config = {"sample_rate": 22_050}  # type: ignore[attr-defined]
    setattr(engine, name, 8000)
    assert UniversalOptimizer(engine).synthesize("Hello.").sample_rate == 8000
    assert UniversalOptimizer(Plain({"audio": TONE, name: 8000})).synthesize("Hello.").sample_rate == 8000
    assert UniversalOptimizer(Plain([{"audio": TONE, name: 8000}])).synthesize("Hello.").sample_rate == 8000


def test_it_is_not_copied_or_pickled() -> None:
    optimizer = UniversalOptimizer(Plain())
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(EngineError, match="wrap the engine again"):
            attempt(optimizer)


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
