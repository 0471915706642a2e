"""MockingBird through the whole pipeline: what it says, in whose voice, and what it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import UniversalOptimizer
from accelerator.engines import CHECKPOINTS, adapter_for
from accelerator.engines.mockingbird import MockingBird, MockingBirdAdapter
from accelerator.errors import EngineError, InvalidOption, InvalidReference, InvalidText, UnsupportedEngine

TEXT = "hello there"
ONNX = dict.fromkeys(("text", "loop", "postnet", "vocoder"), "onnxruntime")
Recording = tuple[np.ndarray, int]


def spoken(engine: MockingBird, text: str, voice: np.ndarray, seed: int, **options: Any) -> np.ndarray:
    """What the engine says by itself."""
    with engine.seeded(seed):
        mel = engine.spectrogram(text, voice, **options)
    with engine.seeded(seed):
        return engine.vocode(mel)


def test_it_is_found_by_its_type_and_by_its_name(engine: MockingBird) -> None:
    assert isinstance(adapter_for(engine), MockingBirdAdapter)
    assert CHECKPOINTS["mockingbird"].endswith(":MockingBirdAdapter")
    assert (adapter_for(engine).name, adapter_for(engine).sample_rate) == ("mockingbird", 16_000)


def test_all_parts_are_proven_at_three_lengths(fast: UniversalOptimizer) -> None:
    parts = fast.status()["parts"]
    assert list(parts) == ["encoder", "text", "loop", "postnet", "vocoder"]
    for name, part in parts.items():
        assert part["backend"] == "onnxruntime", part["errors"]
        proof = part["exports"][name]["proof"]
        assert proof["passed"]
        assert proof["max_error"] < 1e-5
        assert len(proof["lengths"]) == 3
    assert len(set(parts["postnet"]["exports"]["postnet"]["proof"]["lengths"])) == 3


@pytest.mark.parametrize(
    "options", [{}, {"style_idx": -1}, {"style_idx": 7, "steps": 31, "min_stop_token": 3}], ids=str
)
def test_it_says_what_the_engine_says(
    engine: MockingBird, fast: UniversalOptimizer, voice: np.ndarray, recording: Recording, options: dict[str, int]
) -> None:
    options = {"steps": 60, **options}
    speech = fast.synthesize(TEXT, recording, seed=5, **options)
    np.testing.assert_allclose(speech.audio, spoken(engine, TEXT, voice, 5, **options), atol=1e-4)
    assert speech.metrics["fallback"] == []
    assert ONNX.items() <= speech.metrics["backends"].items()
    assert speech.metrics["frames"] == -(-options["steps"] // 2) * 2


@pytest.mark.parametrize(("vocoder", "layout"), [("fregan", "new"), ("hifigan", "old")])
def test_either_layout_and_either_generator_is_wrapped(
    opened: Any, recording: Recording, vocoder: str, layout: str
) -> None:
    engine = opened(vocoder, layout)
    with UniversalOptimizer(engine, precision="fp32", threads=1, probe=False) as optimizer:
        speech = optimizer.synthesize("你好", recording, seed=2, steps=30)
    expected = spoken(engine, "你好", engine.embed(*recording), 2, steps=30)
    np.testing.assert_allclose(speech.audio, expected, atol=1e-4)
    assert ONNX.items() <= speech.metrics["backends"].items()


def test_wavernn_speaks_by_its_own_code_and_a_seed(opened: Any, recording: Recording) -> None:
    engine = opened("wavernn")
    with UniversalOptimizer(engine, precision="fp32", threads=1, probe=False) as optimizer:
        speech = optimizer.synthesize(TEXT, recording, seed=2, steps=40)
        again = optimizer.synthesize(TEXT, recording, seed=2, steps=40)
    expected = spoken(engine, TEXT, engine.embed(*recording), 2, steps=40)
    np.testing.assert_array_equal(speech.audio, again.audio)
    np.testing.assert_allclose(speech.audio, expected, atol=1e-4)
    assert speech.metrics["backends"]["vocoder"] == "pytorch"
    assert speech.metrics["fallback"] == []
    assert not any(module.training for module in engine.generator.modules())


def test_it_is_opened_by_name(files: Any, engine: MockingBird, voice: np.ndarray, recording: Recording) -> None:
    root, own = files("new")
    given = {"encoder": own["encoder"], "synthesizer": str(own["synthesizer"]), "vocoder": own["hifigan"]}
    how: dict[str, Any] = {"precision": "fp32", "threads": 1, "probe": False}
    with UniversalOptimizer.from_checkpoint(root, "mockingbird", **given, **how) as optimizer:
        audio = optimizer.synthesize(TEXT, recording, seed=5, steps=30).audio
    np.testing.assert_allclose(audio, spoken(engine, TEXT, voice, 5, steps=30), atol=1e-4)
    with pytest.raises(EngineError, match="is no checkout of MockingBird"):
        UniversalOptimizer.from_checkpoint(Path(root).parent / "encoder", "mockingbird")


def test_a_stream_is_heard_in_windows_of_a_segment(fast: UniversalOptimizer, recording: Recording) -> None:
    asked: dict[str, Any] = {"seed": 5, "steps": 200}
    text = "The first sentence is here. Then there comes a second one. A third one ends it, at last."
    whole = fast.synthesize(text, recording, **asked)
    chunks = [chunk.audio for chunk in fast.stream(text, recording, **asked)]
    assert len(chunks) > 3
    assert sum(map(len, chunks)) >= len(whole.audio)
    short = fast.synthesize(TEXT, recording, **asked).audio
    windows = [chunk.audio for chunk in fast.stream(TEXT, recording, **asked)]
    assert len(windows) > 2
    np.testing.assert_allclose(np.concatenate(windows), short, atol=1e-5)


def test_a_batch_is_what_one_by_one_would_be(fast: UniversalOptimizer, recording: Recording) -> None:
    texts = [TEXT, "one two three", "你好 世界", "a"]
    together = fast.synthesize_batch(texts, recording, seed=4, steps=40)
    for text, speech in zip(texts, together, strict=True):
        np.testing.assert_array_equal(speech.audio, fast.synthesize(text, recording, seed=4, steps=40).audio)


def test_a_voice_is_encoded_once(engine: MockingBird, recording: Recording, tmp_path: Path) -> None:
    how: dict[str, Any] = {"precision": "fp32", "threads": 1, "probe": False, "voices_dir": tmp_path}
    with UniversalOptimizer(engine, **how) as optimizer:
        first = optimizer.synthesize(TEXT, recording, seed=4, steps=20)
        second = optimizer.synthesize(TEXT, recording, seed=4, steps=20)
    with UniversalOptimizer(engine, **how) as optimizer:
        later = optimizer.synthesize(TEXT, recording, seed=4, steps=20)
    assert [("encoder" in each.metrics["backends"]) for each in (first, second, later)] == [True, False, False]
    np.testing.assert_array_equal(first.audio, later.audio)


def test_requests_that_cannot_be_served_are_refused(fast: UniversalOptimizer, recording: Recording) -> None:
    with pytest.raises(InvalidOption, match="MockingBird has no voice of its own: give reference_audio"):
        fast.synthesize(TEXT)
    with pytest.raises(InvalidOption, match="there is no voice 'amy': MockingBird knows none by name"):
        fast.synthesize(TEXT, voice="amy")
    with pytest.raises(InvalidOption, match="style_idx must be from -1 to 9, not 10"):
        fast.synthesize(TEXT, recording, style_idx=10)
    with pytest.raises(InvalidOption, match=r"it takes seed, min_stop_token .*, steps .*, style_idx"):
        fast.synthesize(TEXT, recording, temperature=0.5)
    with pytest.raises(InvalidText, match="Chinese, and what is written in Latin letters and digits"):
        fast.synthesize("Привет", recording)


def test_a_recording_in_which_nobody_speaks_is_refused(
    engine: MockingBird, fast: UniversalOptimizer, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its encoder cuts silence off; of some recordings nothing is left."""
    stages: Any = fast._bound.stages
    monkeypatch.setattr(stages.engine.encoder, "preprocess_wav", lambda audio, rate: audio[:0])
    with pytest.raises(InvalidReference, match="nobody speaks in this recording, as MockingBird hears it"):
        fast.synthesize(TEXT, (recording[0] + np.float32(1e-3), recording[1]))


def test_what_the_voice_cannot_read_is_left_out_if_wanted(fast: UniversalOptimizer, recording: Recording) -> None:
    speech = fast.synthesize("hello Привет", recording, unspeakable="skip", seed=1, steps=20)
    assert [each["text"] for each in speech.metrics["skipped"]] == ["Привет"]


def test_models_elsewhere_than_on_a_cpu_are_not_taken(opened: Any) -> None:
    engine = opened()
    engine.vocoder.generator.to("meta")
    with pytest.raises(UnsupportedEngine, match="MockingBird runs on meta"):
        MockingBirdAdapter(engine)


def test_the_engine_is_untouched(engine: MockingBird, fast: UniversalOptimizer, recording: Recording) -> None:
    before = {name: id(getattr(engine, name)) for name in ("encoder", "synthesizer", "vocoder")}
    models = engine.encoder._model, engine.synthesizer._model, engine.generator
    fast.synthesize(TEXT, recording, seed=1, steps=20)
    assert {name: id(getattr(engine, name)) for name in before} == before
    assert (engine.encoder._model, engine.synthesizer._model, engine.generator) == models
    assert all("forward" not in vars(model) and "generate" not in vars(model) for model in models)


def test_other_weights_have_other_exports(engine: MockingBird, opened: Any) -> None:
    other = opened()
    with torch.no_grad():
        other.synthesizer._model.post_proj.weight.mul_(2)
    keys = [
        {part.name: [each.identity() for each in part.components] for part in MockingBirdAdapter(one).parts()}
        for one in (engine, other)
    ]
    assert keys[0]["vocoder"] == keys[1]["vocoder"]
    assert keys[0]["postnet"] != keys[1]["postnet"]


def test_voices_of_an_encoder_that_cuts_silence_off_are_others(opened: Any) -> None:
    """MockingBird does without webrtcvad where that is not installed, and embeds the silence, too."""
    found = []
    for installed in (None, object()):
        engine = opened()
        vars(engine.encoder)["webrtcvad"] = installed
        found.append(MockingBirdAdapter(engine).parts()[0].components[0].identity())
    assert found[0] != found[1]


def test_every_part_is_timed_on_whatever_it_runs(engine: MockingBird, fast: UniversalOptimizer) -> None:
    for name, route in fast._routes.items():
        for call in (route.part.original, route.choice.call):  # type: ignore[union-attr]
            assert 0 < route.part.probe(call) < 60, name
