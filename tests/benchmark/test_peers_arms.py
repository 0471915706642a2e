"""The arms of `bench peers`, with packages that stand in for engines and peers."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from accelerator.benchmark import peers_arms
from accelerator.benchmark.peer import Given
from accelerator.benchmark.peers_arms import open_arm, with_metadata
from accelerator.errors import EngineError
from tests.engines import graph_double
from tests.engines import kitten_double as kitten
from tests.engines import piper_double as double

TEXT = "Hello there. This is a test."


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a module with these contents importable, under a version of its own."""

    def install(name: str, **contents: Any) -> None:
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "7")
    return install


@pytest.fixture
def piper(installed: Any) -> double.PiperVoice:
    """The double as piper-tts: without noise, so that takes are alike."""
    voice = double.voice(noise_scale=0.0, noise_w_scale=0.0)

    class Loaded:
        load = staticmethod(lambda path: voice)

    installed("piper", PiperVoice=Loaded, SynthesisConfig=double.SynthesisConfig)
    return voice


def opened(arm: str, engine: str = "piper", checkpoint: Path = Path("voice.onnx"), **options: Any) -> Any:
    given = Given(**{"checkpoint": checkpoint, "scratch": Path(), "threads": 2, **options})
    return open_arm(arm, engine, given)


def test_piper_as_it_ships(piper: double.PiperVoice) -> None:
    arm = opened("as-shipped")
    own = [chunk.audio_float_array for chunk in piper.synthesize(TEXT)]
    assert (arm.sample_rate, arm.about) == (16_000, "piper-tts 7 as it ships")
    np.testing.assert_array_equal(arm.whole(TEXT), np.concatenate(own))
    raw = list(arm.stream(TEXT, raw=True))
    assert len(raw) == 2
    assert np.abs(raw[0]).max() < np.abs(own[0]).max() == 1.0


def test_piper_in_openvino(piper: double.PiperVoice, installed: Any) -> None:
    session, compiled = piper.session, []

    class Core:
        def compile_model(self, path: str, device: str, settings: dict[str, str]) -> Any:
            compiled.append((path, device, settings["INFERENCE_PRECISION_HINT"]))

            class Model:
                outputs = ("audio",)

                def __call__(self, feed: dict[str, Any]) -> dict[str, Any]:
                    return {"audio": 0.5 * session.run(None, feed)[0]}

            return Model()

    installed("openvino", Core=Core)
    arm = opened("openvino")
    assert compiled == [("voice.onnx", "CPU", "f32")]
    expected = 0.5 * np.concatenate(list(opened("as-shipped").stream(TEXT, raw=True)))
    np.testing.assert_allclose(np.concatenate(list(arm.stream(TEXT, raw=True))), expected, atol=1e-6)
    assert piper.session is session, "the voice as it ships stays as it is"


class Sherpa:
    """What sherpa-onnx 2 offers: it says of a sentence as many samples as it has phonemes."""

    sample_rate = 16_000

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def generate(self, text: str, config: Any, callback: Any = None) -> Any:
        sentences = [np.full(len(codes), config.sid, np.float32) for codes in config.phoneme_codepoints]
        for sentence in sentences:
            if callback is not None:
                assert callback(sentence, 0.5) == 1
        return types.SimpleNamespace(samples=np.concatenate(sentences).tolist())


def test_sherpa_is_given_the_voice_as_it_wants_it(installed: Any, tmp_path: Path) -> None:
    settings = types.SimpleNamespace
    installed(
        "sherpa_onnx",
        OfflineTts=Sherpa,
        OfflineTtsConfig=settings,
        OfflineTtsModelConfig=settings,
        OfflineTtsVitsModelConfig=settings,
        GenerationConfig=settings,
    )
    phonemizer = types.SimpleNamespace(phonemize=lambda voice, text: [list(s) for s in text.split(". ")])
    installed("piper")
    installed("piper.phonemize_espeak", EspeakPhonemizer=lambda data: phonemizer, ESPEAK_DATA_DIR="data")
    voice = tmp_path / "voice.onnx"
    voice.write_bytes(double.model())
    config = {
        "phoneme_id_map": {"_": [0], "^": [1], " ": [3]},
        "espeak": {"voice": "en-us"},
        "num_speakers": 3,
        "speaker_id_map": {"ann": 2},
        "audio": {"sample_rate": 16_000},
    }
    (tmp_path / "voice.onnx.json").write_text(json.dumps(config))
    (tmp_path / "scratch").mkdir()
    arm = opened("sherpa-onnx", checkpoint=voice, voice="ann", scratch=tmp_path / "scratch")
    model = arm._engine.settings.model
    assert model.num_threads == 2
    assert Path(model.vits.tokens).read_text() == "_ 0\n^ 1\n  3\n"
    kept = {entry.key: entry.value for entry in onnx.load(model.vits.model).metadata_props}
    assert (kept["comment"], kept["n_speakers"], kept["sample_rate"]) == ("piper", "3", "16000")
    assert [len(chunk) for chunk in arm.stream(TEXT, raw=False)] == [11, 15]
    np.testing.assert_array_equal(arm.whole(TEXT), np.full(26, 2, np.float32))


def test_metadata_are_added_to_a_model_that_stays_what_it_was() -> None:
    content = double.model()
    added = onnx.load_from_string(with_metadata(content, {"language": "Ελληνικά", "long": "x" * 300}))
    assert {entry.key: entry.value for entry in added.metadata_props} == {"language": "Ελληνικά", "long": "x" * 300}
    del added.metadata_props[:]
    assert added == onnx.load_from_string(content)


class Kokoro:
    def __init__(self, model: str, voices: str) -> None:
        self.files = Path(model).name, Path(voices).name

    def get_voices(self) -> list[str]:
        return ["anna", "bella"]

    def create(self, text: str, voice: str) -> Any:
        return np.full(len(text), ord(voice[0]), np.float32), 24_000

    async def create_stream(self, text: str, voice: str) -> Any:
        for word in text.split():
            yield self.create(word, voice)


def test_kokoro_as_it_ships(installed: Any, tmp_path: Path) -> None:
    installed("kokoro_onnx", Kokoro=Kokoro)
    for name in ("kokoro.onnx", "voices.npz"):
        (tmp_path / name).touch()
    for checkpoint in (tmp_path, tmp_path / "kokoro.onnx"):
        arm = opened("as-shipped", "kokoro", checkpoint)
        assert arm._engine.files == ("kokoro.onnx", "voices.npz")
        assert arm.about == "kokoro-onnx 7 as it ships, voice anna"
        np.testing.assert_array_equal(arm.whole("one two"), np.full(7, ord("a"), np.float32))
        assert [len(chunk) for chunk in arm.stream("one three", raw=False)] == [3, 5]
    (tmp_path / "other.onnx").touch()
    with pytest.raises(EngineError, match=r"has 2 files like \*.onnx, where one is needed"):
        opened("as-shipped", "kokoro", tmp_path)


def test_kitten_as_it_ships_and_its_session_over_a_pool(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = kitten.KittenTTSOnnx()
    opened_with: list[str] = []
    installed("kittenml", KittenTTS=lambda folder: opened_with.append(folder) or engine)
    text = " ".join(f"This is sentence {letter} of it." for letter in "abcdefgh")
    for voice in (None, "Leo"):
        shipped, pool = (opened(arm, "kitten", Path("folder"), voice=voice) for arm in ("as-shipped", "pool"))
        expected = engine.generate(text, **({} if voice is None else {"voice": voice}))
        for arm in (shipped, pool):
            np.testing.assert_array_equal(arm.whole(text), expected)
            assert len(list(arm.stream(text, raw=False))) == 8
    assert opened_with == ["folder"] * 4
    assert (shipped.about, shipped.sample_rate) == ("kittenml 7 as it ships", 24_000)
    assert pool.about == "the session of kittenml 7, its chunks over a ThreadPoolExecutor()"


def test_a_checkpoint_with_random_weights_is_like_a_download(tmp_path: Path) -> None:
    write = peers_arms.PEERS["kitten"].random
    assert write is not None
    write(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    assert (told["type"], told["name"]) == ("ONNX2", "random weights")
    voices = np.load(tmp_path / told["voices"])
    assert sorted(voices.files) == sorted(kitten.NAMES)
    session = graph_double.session((tmp_path / told["model_file"]).read_bytes())
    ids = np.arange(20).reshape(1, 20)
    for speed, frames in ((1.0, 3), (0.5, 6)):
        feed = {"input_ids": ids, "style": voices["expr-voice-2-f"][:1], "speed": np.array([speed], np.float32)}
        audio, duration = session.run(None, feed)
        assert audio.shape == (20 * frames * 600,)
        np.testing.assert_array_equal(duration, np.full(20, frames))
        assert np.isfinite(audio).all()
        assert 0.01 < np.abs(audio).max() < 1.0


def test_what_is_not_installed_is_said_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, package in (("openvino", "openvino"), ("sherpa_onnx", "sherpa-onnx")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(EngineError, match=f"pip install {package}"):
            opened(package)


def test_ours_is_what_a_user_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from accelerator import UniversalOptimizer
    from accelerator.engines import piper as engine

    for name, module in double.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(engine.PiperAdapter, "from_checkpoint", classmethod(lambda cls, path: engine.adapter(path)))
    voice: Any = double.voice()
    arm = opened("accelerator-fp32", checkpoint=voice, threads=1, cache_dir=tmp_path)
    assert arm.sample_rate == 16_000
    assert arm.about.startswith("text: ")
    assert len(arm.whole(TEXT)) > 100
    chunks = list(arm.stream("word " * 60, raw=True))
    assert len(chunks) > 1, "not brought to full scale, a sentence begins before it is whole"
    assert isinstance(arm._optimizer, UniversalOptimizer)
    assert peers_arms.PEERS["piper"].raw == {"normalize_audio": False}
