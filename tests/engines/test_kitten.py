"""KittenTTS in its layouts, by doubles in the small; and by the packages where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator import UniversalOptimizer
from accelerator.engines import adapter_for
from accelerator.engines.base import Job
from accelerator.engines.kitten import KittenAdapter
from accelerator.errors import EngineError, InvalidOption, UnsupportedEngine
from accelerator.speech import SpeechRequest
from tests.engines import graph_double as graph
from tests.engines import kitten_double as double

TEXT = "Hello there, all of you. This is a test of it. It is good."
FIFTEEN = " ".join(
    f"This is the sentence {'which is longer ' * (n % 4)}of the letter {chr(97 + n)}." for n in range(15)
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kitten")


@pytest.fixture
def engine() -> Any:
    return double.KittenTTSOnnx()


@pytest.fixture
def optimizer(engine: Any, cache: Path) -> Iterator[UniversalOptimizer]:
    with UniversalOptimizer(engine, cache_dir=cache, probe=False) as made:
        yield made


def segments(speech: Any) -> list[str]:
    return [each["text"] for each in speech.metrics["segments"]]


@pytest.mark.parametrize("layout", [double.KittenTTSOnnx, double.FromHub])
def test_it_says_what_the_engine_says(layout: Any, cache: Path) -> None:
    engine = layout()
    expected = engine.generate(TEXT)
    with UniversalOptimizer(engine, cache_dir=cache, probe=False) as optimizer:
        speech = optimizer.synthesize(TEXT)
    np.testing.assert_array_equal(speech.audio, expected)
    assert speech.sample_rate == 24_000
    assert segments(speech) == ["Hello there, all of you.", "This is a test of it.", "It is good."]
    assert speech.metrics["backends"] == {"graph": "onnxruntime"}
    assert speech.metrics["fallback"] == []


def test_fifteen_chunks_in_all_voices_again_and_again(engine: Any, optimizer: UniversalOptimizer) -> None:
    for voice in optimizer.adapter.voices():
        expected = engine.generate(FIFTEEN, voice)
        assert np.isfinite(expected).all()
        assert np.abs(expected).max() < 1.0
        for _ in range(2):
            speech = optimizer.synthesize(FIFTEEN, voice=voice)
            assert len(segments(speech)) == 15
            assert speech.metrics["fallback"] == []
            np.testing.assert_array_equal(speech.audio, expected)
    streamed = np.concatenate([chunk.audio for chunk in optimizer.stream(FIFTEEN, voice="Leo")])
    np.testing.assert_array_equal(streamed, engine.generate(FIFTEEN, "Leo"))


def test_a_voice_goes_by_name_and_by_alias(engine: Any, optimizer: UniversalOptimizer) -> None:
    assert tuple(optimizer.adapter.voices()) == ("Bella", "Leo", *double.NAMES)
    bella = optimizer.synthesize(TEXT, voice="Bella").audio
    np.testing.assert_array_equal(bella, optimizer.synthesize(TEXT, voice="expr-voice-2-f").audio)
    assert len(bella) > 1.5 * len(engine.generate(TEXT))  # she speaks at half the speed
    with pytest.raises(InvalidOption, match=r"there is no voice 'Nobody': the voices are Bella, Leo, expr-voice-2-m"):
        optimizer.synthesize(TEXT, voice="Nobody")


def test_its_options_mean_what_they_mean_to_the_engine(engine: Any, optimizer: UniversalOptimizer) -> None:
    text = "It costs $ five. That is all."
    for asked in ({"speed": 1.5}, {"clean_text": True}, {"clean_text": False, "speed": 0.5}):
        np.testing.assert_array_equal(optimizer.synthesize(text, **asked).audio, engine.generate(text, **asked))
    assert segments(optimizer.synthesize(text, clean_text=True))[0] == "It costs dollars  five."
    with pytest.raises(InvalidOption, match=r"speed must be from 0.25 to 4"):
        optimizer.synthesize(text, speed=9.0)


def test_espeak_is_asked_by_one_thread_at_a_time(engine: Any, optimizer: UniversalOptimizer) -> None:
    expected = engine.generate(TEXT)

    def say(number: int) -> np.ndarray:
        return optimizer.engine.generate(TEXT) if number % 3 == 0 else optimizer.synthesize(TEXT).audio

    with ThreadPoolExecutor(4) as pool:
        for audio in pool.map(say, range(12)):
            np.testing.assert_array_equal(audio, expected)


def test_the_graph_is_never_given_more_ids_than_it_has_room_for(cache: Path) -> None:
    engine = double.KittenTTSOnnx()
    own, runs = engine.model.session, list[dict[str, np.ndarray]]()
    adapter = KittenAdapter(adapter_for(engine).layout)  # type: ignore[attr-defined]
    text = " ".join(f"x{n:03d}y" for n in range(60)) + ", and more."

    def record(feed: dict[str, np.ndarray]) -> Any:
        runs.append(feed)
        return own.run(None, feed)

    assert engine.model._prepare_inputs(text, "Leo")["input_ids"].shape[1] > 1000
    stages = adapter.bind({"graph": lambda feed, exclusive=True: record(feed)}).stages
    assert stages is not None
    (segment,) = stages.segments(SpeechRequest(text), soon=False)
    (*pieces,) = (piece for units in stages.generate(segment, "Leo", Job()) for piece in units)
    assert len(pieces) == len(runs) > 2
    assert max(feed["input_ids"].shape[1] for feed in runs) <= 512
    said = "".join(chr(n) for feed in runs for n in feed["input_ids"][0, 1:-2])
    assert said.replace(" ", "").replace(",", "") == text.translate(
        {ord(digit): "digit" for digit in "0123456789"} | {ord(" "): None, ord(","): None}
    )  # every word, in order
    with UniversalOptimizer(engine, cache_dir=cache, probe=False) as optimizer:
        speech = optimizer.synthesize(text, voice="Leo")
    np.testing.assert_array_equal(speech.audio, np.concatenate(pieces))
    assert speech.metrics["fallback"] == []


def test_a_number_with_a_decimal_point_is_said_as_a_whole(engine: Any, optimizer: UniversalOptimizer) -> None:
    text = "Add 2.5 cups."
    lost = engine.generate(text)
    audio = optimizer.synthesize(text).audio
    engine.model.phonemizer.asked.clear()
    whole = engine.model.generate_single_chunk(f"{text} ", "expr-voice-5-m")
    assert len(audio) == len(whole) > len(lost)
    np.testing.assert_array_equal(optimizer.engine.generate(text), lost)  # the engine itself answers as before


def test_what_stays_in_two_entries_is_joined(engine: Any, optimizer: UniversalOptimizer) -> None:
    entries = ["one.", "two."]
    engine.model.phonemizer.phonemize = lambda text: entries
    count = len("0" + "one . two ." + "10" + "0") - 1  # 0 and 0 at the ends, and 10
    audio = optimizer.synthesize("Anything.").audio
    assert len(audio) == 3 * count * graph.HOP - double.TRIMMED


def test_the_engines_own_stream_stays_lazy_and_in_order(engine: Any, optimizer: UniversalOptimizer) -> None:
    expected = list(engine.generate_stream(TEXT, voice="Leo"))
    asked = engine.model.phonemizer.asked
    asked.clear()
    stream = optimizer.engine.generate_stream(TEXT, voice="Leo")
    assert asked == []
    np.testing.assert_array_equal(next(stream), expected[0])
    assert asked == ["Hello there, all of you."]
    for audio, own in zip(stream, expected[1:], strict=True):
        np.testing.assert_array_equal(audio, own)


def test_a_failing_graph_is_answered_by_the_engines_session(
    engine: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = engine.generate(TEXT)
    with UniversalOptimizer(engine, cache_dir=cache, probe=False) as optimizer:
        optimizer.prepare()
        route = optimizer._dispatcher.routes["graph"]

        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError("broken")

        choice = route.prepare()
        monkeypatch.setattr(route, "_choice", choice.__class__(**{**vars(choice), "call": fail, "shared": fail}))
        speech = optimizer.synthesize(TEXT)
    np.testing.assert_array_equal(speech.audio, expected)
    assert [each["message"] for each in speech.metrics["fallback"]] == ["broken"] * 3
    assert speech.metrics["backends"] == {"graph": "onnxruntime"}


def test_what_fails_as_a_whole_is_said_by_the_engine_without_a_word(
    engine: Any, optimizer: UniversalOptimizer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(optimizer._dispatcher.bound.stages, "segments", fail)
    speech = optimizer.synthesize(TEXT, voice="Leo")
    assert capsys.readouterr().out == ""
    assert speech.metrics["backends"] == {"engine": "onnxruntime"}
    np.testing.assert_array_equal(speech.audio, engine.generate(TEXT, "Leo"))


def test_a_text_that_is_not_to_be_split_has_the_engines_chunks(engine: Any, cache: Path) -> None:
    with UniversalOptimizer(engine, cache_dir=cache, probe=False, split_text=False) as optimizer:
        speech = optimizer.synthesize(TEXT)
    assert segments(speech) == [TEXT]
    assert speech.metrics["fallback"] == []
    np.testing.assert_array_equal(speech.audio, engine.generate(TEXT))


def test_the_one_file_layout(cache: Path) -> None:
    engine = double.OneFile()
    with UniversalOptimizer(engine, cache_dir=cache, probe=False) as optimizer:
        speech = optimizer.synthesize(TEXT, voice="expr-voice-4-f", speed=1.5)
        np.testing.assert_array_equal(speech.audio, engine.generate(TEXT, "expr-voice-4-f", 1.5))
        assert segments(speech) == [TEXT]
        assert speech.metrics["fallback"] == []
        np.testing.assert_array_equal(optimizer.synthesize(TEXT).audio, engine.generate(TEXT))
        np.testing.assert_array_equal(optimizer.engine.generate(TEXT), engine.generate(TEXT))
        some, many = ("A sentence of some length is here. " * count for count in (11, 40))
        np.testing.assert_array_equal(optimizer.synthesize(some).audio, engine.generate(some))
        speech = optimizer.synthesize(many)
        assert len(segments(speech)) > 3
        assert speech.metrics["fallback"] == []
        with pytest.raises(InvalidOption, match=r"clean_text is no option of kitten: it takes seed, speed"):
            optimizer.synthesize(TEXT, clean_text=True)


def test_a_session_of_an_unknown_model_is_passed_through(cache: Path) -> None:
    engine = double.KittenTTSOnnx(graph.Session(graph.session(graph.model())))
    assert adapter_for(engine).parts() == ()
    with UniversalOptimizer(engine, cache_dir=cache) as optimizer:
        np.testing.assert_array_equal(optimizer.synthesize(TEXT).audio, engine.generate(TEXT))


def test_kitten_tts_2_is_declined(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedEngine, match=r"language model of 1.7 billion weights.*wrap a KittenTTS of version"):
        adapter_for(double.KittenTTS2())
    (tmp_path / "config.json").write_text(json.dumps({"type": "KITTEN2"}))
    with pytest.raises(UnsupportedEngine, match=r"language model of 1.7 billion weights"):
        UniversalOptimizer.from_checkpoint(tmp_path, "kitten")


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"0 files \*.onnx and no config.json in it: give the folder of a download"):
        UniversalOptimizer.from_checkpoint(tmp_path, "kitten")


class Package:
    """A package that opens a folder, and says by which files."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch, *without: str) -> None:
        self.opened: list[Any] = []
        module = types.ModuleType(name)

        def one_file(model: str, voices: str) -> Any:
            self.opened += [Path(model).name, Path(voices).name]
            return double.OneFile()

        def chunked(model: str, voices: str, *, speed_priors: Any, voice_aliases: Any) -> Any:
            self.opened += [Path(model).name, Path(voices).name, speed_priors, sorted(voice_aliases)]
            return double.Model(graph.session(graph.model()))

        def from_folder(folder: str) -> Any:
            self.opened.append(Path(folder).name)
            return double.KittenTTSOnnx()

        opens = {"kittentts": one_file, "kittentts.get_model": double.FromHub, "kittenml": from_folder}
        vars(module).update(KittenTTS=opens[name], KittenTTS_1_Onnx=chunked)
        for each in without:
            monkeypatch.setitem(sys.modules, each, None)
        monkeypatch.setitem(sys.modules, name, module)


def test_a_folder_is_opened_by_the_package_that_there_is(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path)
    for name, without, files in (
        ("kittenml", (), [folder.name]),
        ("kittentts.get_model", ("kittenml",), ["model.onnx", "voices.npz", {}, ["Bella", "Leo"]]),
    ):
        package = Package(name, monkeypatch, *without)
        with UniversalOptimizer.from_checkpoint(folder, "kitten", cache_dir=cache, probe=False) as optimizer:
            assert package.opened == files
            assert segments(optimizer.synthesize(TEXT))[-1] == "It is good."
    package = Package("kittentts", monkeypatch, "kittenml", "kittentts.get_model")
    with pytest.raises(EngineError, match=r"voices of 400 rows are not those of kittentts 0.1; pip install kittenml"):
        UniversalOptimizer.from_checkpoint(folder, "kitten")
    assert package.opened == []


def test_a_folder_of_one_model_and_its_voices(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path, rows=1)
    (folder / "config.json").unlink()
    without = "kittenml", "kittentts.get_model"
    for name in (*without, "kittentts"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match=r"needs its package: .*kittentts.*; pip install kittentts==0.1.3"):
        UniversalOptimizer.from_checkpoint(folder, "kitten")
    package = Package("kittentts", monkeypatch, *without)
    with UniversalOptimizer.from_checkpoint(folder, "kitten", cache_dir=cache, probe=False) as optimizer:
        np.testing.assert_array_equal(optimizer.synthesize(TEXT).audio, double.OneFile().generate(TEXT))
    assert package.opened == ["model.onnx", "voices.npz"]
    (folder / "other.onnx").touch()
    with pytest.raises(EngineError, match=r"there are 2 files \*.onnx and no config.json in it"):
        UniversalOptimizer.from_checkpoint(folder, "kitten")


def checkpoint(folder: Path, *, rows: int = 400) -> Path:
    """A folder as of a download, with random weights: ids and styles have the real sizes."""
    content = graph.model()
    (folder / "model.onnx").write_bytes(content)
    random = np.random.default_rng(0)
    voices = {name: random.standard_normal((rows, graph.STYLE)).astype(np.float32) for name in double.NAMES}
    np.savez(folder / "voices.npz", **voices)
    told = {"type": "ONNX2", "model_file": "model.onnx", "voices": "voices.npz", "voice_aliases": double.ALIASES}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def needs(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install {package} phonemizer espeakng-loader")


@pytest.mark.engine
@pytest.mark.usefixtures("closed")
def test_kittenml_speaks_its_chunks_as_it_does_alone(cache: Path, tmp_path: Path) -> None:
    needs("kittenml", "phonemizer", "espeakng_loader")
    own = importlib.import_module("kittenml").KittenTTS(str(checkpoint(tmp_path)))
    text = "Dr. Smith paid the man at 3:15 p.m. today! Really?! Yes, and there was more to come; so we wait. " * 5
    with UniversalOptimizer.from_checkpoint(tmp_path, "kitten", cache_dir=cache, probe=False) as optimizer:
        for voice in ("Leo", "expr-voice-3-f"):
            expected = own.generate(text, voice)
            speech = optimizer.synthesize(text, voice=voice)
            assert len(segments(speech)) == 15
            assert speech.metrics["fallback"] == []
            np.testing.assert_array_equal(speech.audio, expected)
            np.testing.assert_array_equal(optimizer.engine.generate(text, voice), expected)
        number = "Add 2.5 cups."
        assert len(optimizer.synthesize(number).audio) > len(own.generate(number))
        long = optimizer.synthesize("x1y2z3 " * 57)
        assert long.metrics["fallback"] == []
        assert len(long.audio) > 1_500 * 3 * graph.HOP - 6 * 5000


def without_kittentts() -> None:
    """There are two packages of that name."""
    for name in [each for each in sys.modules if each.partition(".")[0] == "kittentts"]:
        del sys.modules[name]


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`kittentts.get_model` of the repository's head."""
    needs("phonemizer", "espeakng_loader")
    root = os.environ.get("ACCELERATOR_KITTENTTS_ROOT")
    if root is None:
        pytest.skip("needs a checkout of KittenTTS: set ACCELERATOR_KITTENTTS_ROOT")
    without_kittentts()
    monkeypatch.syspath_prepend(root)
    yield importlib.import_module("kittentts.get_model")
    without_kittentts()


@pytest.mark.engine
@pytest.mark.usefixtures("closed")
def test_the_repositorys_head_speaks_its_chunks_as_it_does_alone(
    head: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path)
    monkeypatch.setattr(head, "hf_hub_download", lambda repo_id, filename, cache_dir=None: str(folder / filename))
    engine = head.KittenTTS("a/b")
    text = "Dr. Smith paid the man at 3:15 p.m. today! Really?! Yes, and there was more to come; so we wait."
    expected = engine.generate(text, "Leo")
    with UniversalOptimizer(engine, cache_dir=cache, probe=False) as optimizer:
        speech = optimizer.synthesize(text, voice="Leo")
        np.testing.assert_array_equal(optimizer.engine.generate(text, "Leo"), expected)
    np.testing.assert_array_equal(speech.audio, expected)
    assert segments(speech)[:2] == ["Dr,", "Smith paid the man at 3:15 p,"]
    assert speech.metrics["fallback"] == []
    monkeypatch.setitem(sys.modules, "kittenml", None)
    with UniversalOptimizer.from_checkpoint(folder, "kitten", cache_dir=cache, probe=False) as opened:
        np.testing.assert_array_equal(opened.synthesize(text, voice="Leo").audio, expected)
        np.testing.assert_array_equal(opened.engine.generate(text, "Leo"), expected)


@pytest.mark.engine
@pytest.mark.usefixtures("closed")
def test_kittentts_in_one_file_speaks_as_it_does_alone(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("kittentts", "phonemizer", "espeakng_loader")
    loader = importlib.import_module("espeakng_loader")
    monkeypatch.setenv("PHONEMIZER_ESPEAK_LIBRARY", loader.get_library_path())
    monkeypatch.setenv("ESPEAK_DATA_PATH", loader.get_data_path())
    folder = checkpoint(tmp_path, rows=1)
    package = importlib.import_module("kittentts")
    if not hasattr(package.KittenTTS, "generate") or "_session" not in package.KittenTTS.__init__.__code__.co_names:
        pytest.skip("needs kittentts 0.1.3: pip install kittentts==0.1.3")
    engine = package.KittenTTS(os.fspath(folder / "model.onnx"), os.fspath(folder / "voices.npz"))
    expected = engine.generate(TEXT)
    with UniversalOptimizer(engine, cache_dir=cache, probe=False) as optimizer:
        speech = optimizer.synthesize(TEXT)
        np.testing.assert_array_equal(speech.audio, expected)
        assert speech.metrics["backends"] == {"graph": "onnxruntime"}
        assert speech.metrics["fallback"] == []
        np.testing.assert_array_equal(optimizer.engine.generate(TEXT), expected)
    (folder / "config.json").unlink()
    with UniversalOptimizer.from_checkpoint(folder, "kitten", cache_dir=cache, probe=False) as opened:
        np.testing.assert_array_equal(opened.synthesize(TEXT).audio, expected)
