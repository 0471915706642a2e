"""A real checkout of MockingBird, of either layout, with checkpoints of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import UniversalOptimizer
from accelerator.engines.mockingbird import MockingBird
from accelerator.engines.mockingbird.reach import reach
from tests.engines.mockingbird.installed import ROOT, installed, made, wavernn
from tests.engines.mockingbird.test_adapter import ONNX, spoken
from tests.engines.mockingbird.test_reach import heard

TEXT = "你好，世界 hello"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """real(vocoder): an engine of the checkout."""
    folder = tmp_path_factory.mktemp("real")
    torch.set_num_threads(1)
    files = made(folder)

    def of(vocoder: str) -> MockingBird:
        named = {"encoder": files["encoder"], "synthesizer": files["synthesizer"], "vocoder": files[vocoder]}
        return MockingBird.open(str(ROOT), **named)

    of.files = files  # type: ignore[attr-defined]
    of.folder = folder  # type: ignore[attr-defined]
    return of


@pytest.fixture(scope="module", params=["hifigan", "fregan"])
def pair(request: pytest.FixtureRequest, real: Any) -> Iterator[tuple[MockingBird, UniversalOptimizer]]:
    engine = real(request.param)
    with UniversalOptimizer(engine, precision="fp32", threads=1, probe=False) as optimizer:
        yield engine, optimizer.prepare()


@installed
def test_it_says_what_the_engine_says(pair: Any, recording: Any) -> None:
    engine, fast = pair
    voice = engine.embed(*recording)
    for options in ({"style_idx": 0}, {"style_idx": -1}, {"style_idx": 7, "steps": 31}):
        asked = {"steps": 60, **options}
        torch.manual_seed(5)
        mel = engine.synthesizer.synthesize_spectrograms([TEXT], [voice], **asked)[0]
        torch.manual_seed(5)
        expected = engine.vocoder.infer_waveform(mel)[0]
        np.testing.assert_array_equal(spoken(engine, TEXT, voice, 5, **asked), expected)
        speech = fast.synthesize(TEXT, recording, seed=5, **asked)
        np.testing.assert_allclose(speech.audio, expected, atol=1e-4)
        assert speech.metrics["fallback"] == []
        assert ONNX.items() <= speech.metrics["backends"].items()


@installed
def test_all_parts_are_proven(pair: Any) -> None:
    for name, part in pair[1].status()["parts"].items():
        assert part["backend"] == "onnxruntime", part["errors"]
        assert part["exports"][name]["proof"]["max_error"] < 1e-5


@installed
def test_its_own_entry_points_are_on_the_parts(pair: Any, recording: Any) -> None:
    engine, fast = pair
    wav = engine.encoder.preprocess_wav(*recording)
    mine, expected = (each.encoder.embed_utterance(wav, return_partials=True) for each in (fast, engine))
    for one, other in zip(mine[:2], expected[:2], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    given: dict[str, Any] = {"return_alignments": True, "style_idx": -1, "steps": 30}
    found = []
    for each in (fast, engine):
        torch.manual_seed(9)
        found.append(each.synthesizer.synthesize_spectrograms([TEXT], [expected[0]], **given))
    np.testing.assert_allclose(found[0][0][0], found[1][0][0], atol=1e-4)
    np.testing.assert_allclose(found[0][1], found[1][1].detach(), atol=1e-5)


@installed
def test_no_frame_further_away_is_heard(pair: Any) -> None:
    generator = pair[0].generator
    found = reach(generator)
    assert found is not None
    frames = heard(generator, 40, 81, mels=80)
    assert 40 - found <= frames.min() <= frames.max() <= 40 + found


@installed
def test_wavernn_speaks_by_its_own_code(real: Any, recording: Any) -> None:
    other = real("hifigan")
    engine = MockingBird(other.encoder, other.synthesizer, wavernn(real.folder / "wavernn.pt"))
    with UniversalOptimizer(engine, precision="fp32", threads=1, probe=False) as optimizer:
        speech = optimizer.synthesize("hello", recording, seed=2, steps=40)
    expected = spoken(engine, "hello", engine.embed(*recording), 2, steps=40)
    assert len(speech.audio) == 39 * 200
    np.testing.assert_allclose(speech.audio, expected, atol=1e-4)
    assert not engine.generator.training


@installed
def test_its_prenets_masks_are_drawn_as_it_draws_them(real: Any, recording: Any) -> None:
    """Also where nothing is exported: the parts' originals, to the last bit."""
    from accelerator.engines.mockingbird import MockingBirdAdapter
    from accelerator.engines.mockingbird.routed import said

    engine = real("hifigan")
    adapter, voice = MockingBirdAdapter(engine), engine.embed(*recording)
    calls = {part.name: part.original for part in adapter.parts()}
    symbols, asked = engine.symbols(TEXT), {"style_idx": 3, "min_stop_token": 5, "steps": 40}
    blocks = list(said(adapter, calls, symbols, voice, 8, **asked))
    mel = calls["postnet"](np.concatenate([block.mel for block in blocks], axis=1)[None])[0]
    with engine.seeded(8):
        np.testing.assert_array_equal(mel[:, : mel.shape[1]], engine.spectrogram(TEXT, voice, **asked))
