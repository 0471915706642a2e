"""The facade: three modules as one engine, from loaded ones or from files, and nothing of theirs is changed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator.engines.mockingbird import MockingBird
from accelerator.engines.mockingbird.engine import trimmed
from accelerator.errors import EngineError, GenerationError
from tests.engines.mockingbird.checkpoints import LAYOUTS, checkpoints

VOCODERS = {"hifigan": "Generator", "fregan": "FreGAN", "wavernn": "WaveRNN"}
MEL = np.random.default_rng(0).uniform(-4, 4, (20, 30)).astype(np.float32)


@pytest.fixture
def users(files: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The double as a user imports it: `users(name)`, and `users.files`."""
    root, own = files("new")
    monkeypatch.syspath_prepend(root)
    before = set(sys.modules)

    def module(name: str) -> Any:
        return importlib.import_module(f"models.{name}")

    module.files = own  # type: ignore[attr-defined]
    yield module
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("vocoder", VOCODERS)
def test_it_is_opened_from_files(opened: Any, layout: str, vocoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    opened(vocoder, layout)  # the first time writes the files, with random weights
    state, modules = torch.random.get_rng_state(), set(sys.modules)
    engine = opened(vocoder, layout)
    assert type(engine.generator).__name__ == VOCODERS[vocoder]
    assert (engine.sample_rate, engine.settings.threshold, engine.settings.styled) == (16_000, -3.4, True)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not {name for name in set(sys.modules) - modules if name.partition(".")[0] in ("models", "vocoder")}
    assert capsys.readouterr().out == ""
    if vocoder == "wavernn":  # its hop is that of the synthesizer's own file
        assert engine.generator.hop_length == 20


def test_loaded_modules_are_taken_as_they_are(users: Any) -> None:
    encoder, hifigan = users("encoder.inference"), users("vocoder.hifigan.inference")
    synthesizer = users("synthesizer.inference").Synthesizer(users.files["synthesizer"])
    encoder.load_model(users.files["encoder"])
    synthesizer.load()
    hifigan.load_model(users.files["hifigan"], users.files["hifigan"].with_name("config.json"))
    engine = MockingBird(encoder, synthesizer, hifigan)
    expected = engine.vocode(MEL)
    np.testing.assert_array_equal(expected, hifigan.infer_waveform(MEL)[0])
    with torch.no_grad():
        hifigan.generator = type(hifigan.generator)()  # another one is loaded
    assert not np.array_equal(hifigan.infer_waveform(MEL)[0], expected)
    np.testing.assert_array_equal(engine.vocode(MEL), expected)


def test_a_synthesizer_that_is_not_loaded_is_loaded_apart(users: Any) -> None:
    encoder, hifigan = users("encoder.inference"), users("vocoder.hifigan.inference")
    encoder.load_model(users.files["encoder"])
    hifigan.load_model(users.files["hifigan"], users.files["hifigan"].with_name("config.json"))
    synthesizer = users("synthesizer.inference").Synthesizer(users.files["synthesizer"])
    hparams = users("synthesizer.hparams").hparams
    engine = MockingBird(encoder, synthesizer, hifigan)
    assert engine.synthesizer.is_loaded()
    assert not synthesizer.is_loaded()
    assert (hparams.hop_size, engine.synthesizer.hparams.hop_size) == (256, 20)


@pytest.mark.parametrize(("lacking", "name"), [("encoder", "encoder"), ("vocoder.hifigan", "vocoder")])
def test_modules_without_a_model_are_refused(users: Any, lacking: str, name: str) -> None:
    encoder, hifigan = users("encoder.inference"), users("vocoder.hifigan.inference")
    if name == "vocoder":
        encoder.load_model(users.files["encoder"])
    with pytest.raises(EngineError, match=rf"the {name} has no model yet: call its load_model\(path\) before"):
        MockingBird(encoder, users("synthesizer.inference").Synthesizer(users.files["synthesizer"]), hifigan)


def test_what_cannot_be_opened_is_said(files: Any, tmp_path: Path) -> None:
    root, own = files("new")
    given = {"encoder": own["encoder"], "synthesizer": own["synthesizer"], "vocoder": own["hifigan"]}
    with pytest.raises(EngineError, match=r"the vocoder's checkpoint 'nowhere.pt' is no file"):
        MockingBird.open(root, **{**given, "vocoder": "nowhere.pt"})
    with pytest.raises(EngineError, match="these checkpoints cannot be opened as a MockingBird"):
        MockingBird.open(root, **{**given, "encoder": own["hifigan"]})
    with pytest.raises(EngineError, match=r"there is no single encoder in .*: say which one, encoder=FILE"):
        MockingBird.open(root, **{**given, "encoder": None})


def test_it_speaks_as_the_engine(engine: MockingBird, voice: np.ndarray) -> None:
    asked = {"style_idx": 3, "min_stop_token": 5, "steps": 40}
    torch.manual_seed(5)
    expected = engine.synthesizer.synthesize_spectrograms(["你好 World"], [voice], **asked)[0]
    with engine.seeded(5):
        mel = engine.spectrogram("你好 World", voice, **asked)
    np.testing.assert_array_equal(mel, expected)
    assert list(engine.symbols("Ab!")) == [2, 3, 38, 1]


def test_a_seed_does_not_stay(engine: MockingBird) -> None:
    before = torch.random.get_rng_state()
    with engine.seeded(5):
        torch.rand(3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_wavernn_is_left_as_it_was(opened: Any) -> None:
    engine = opened("wavernn")
    with engine.seeded(1):
        audio = engine.vocode(MEL)
    assert audio.dtype == np.float32
    assert len(audio) == 29 * 20
    assert not any(module.training for module in engine.generator.modules())
    torch.manual_seed(1)
    expected = engine.vocoder.infer_waveform(MEL, progress_callback=lambda *_: None)[0]
    np.testing.assert_array_equal(audio, expected.astype(np.float32))
    assert engine.generator.training  # which is what it does by itself


def test_wavernn_speaks_what_is_shorter_than_its_fade(opened: Any) -> None:
    engine = opened("wavernn")
    with pytest.raises(ValueError, match="broadcast"):
        engine.vocoder.infer_waveform(MEL[:, :9], progress_callback=lambda *_: None)
    assert len(engine.vocode(MEL[:, :9])) == 8 * 20


def test_silence_at_the_end_is_cut_off() -> None:
    mel = np.full((4, 6), -4.0, np.float32)
    assert trimmed(mel, -3.4).shape == (4, 0)
    mel[2, 3] = -3.4
    assert trimmed(mel, -3.4).shape == (4, 4)


def test_silence_all_over_is_no_spectrogram(files: Any, tmp_path: Path) -> None:
    root, own = files("new")
    quiet = checkpoints(root, tmp_path, tts_stop_threshold=1e9)
    engine = MockingBird.open(root, encoder=own["encoder"], synthesizer=quiet["synthesizer"], vocoder=own["hifigan"])
    with pytest.raises(GenerationError, match="the synthesizer produced silence for 'hello'"):
        engine.spectrogram("hello", np.ones(12, np.float32), steps=20)
