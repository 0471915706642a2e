"""The networks that are traced answer as the engine's own code does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator.engines.mockingbird import MockingBird, examples
from accelerator.engines.mockingbird.traceable import (
    CBHG,
    Postnet,
    Speaker,
    Step,
    Text,
    Vocoder,
    answer,
    made,
    state_widths,
)
from tests.engines.mockingbird.checkpoints import checkpoints

FRAMES = np.random.default_rng(0).random((2, 50, 40), np.float32)


def test_a_speaker_is_the_encoders(engine: MockingBird) -> None:
    own = engine.encoder._model
    expected = own(torch.from_numpy(FRAMES)).detach().numpy()
    np.testing.assert_allclose(answer(Speaker(own), FRAMES)[0], expected, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"use_ser_for_gst": False}, {"use_gst": False}], ids=str)
@pytest.mark.parametrize("style", [-1, 0, 7, 12])
def test_a_texts_memory_is_what_its_tacotron_makes_of_it(
    files: Any, voice: np.ndarray, tmp_path: Path, settings: dict[str, Any], style: int
) -> None:
    root, own = files("new")
    other = checkpoints(root, tmp_path, **settings)
    engine = MockingBird.open(root, encoder=own["encoder"], synthesizer=other["synthesizer"], vocoder=own["hifigan"])
    tacotron, seen = engine.synthesizer._model, []
    keep = tacotron.encoder_proj.register_forward_hook(lambda _, given, said: seen.extend([given[0], said]))
    symbols, masks = engine.symbols("hello there"), _masks(tacotron)
    torch.manual_seed(4)
    tacotron.generate(torch.from_numpy(symbols)[None], torch.from_numpy(voice)[None], steps=2, style_idx=style)
    keep.remove()
    module = Text(tacotron, engine.settings.styled, engine.settings.by_speaker)
    said = answer(module, symbols[None], voice[None], np.array([style]), *masks.text(len(symbols)))
    for mine, expected in zip(said, seen, strict=True):
        np.testing.assert_allclose(mine, expected.detach().numpy(), atol=1e-6)


def _masks(tacotron: Any) -> Any:
    from accelerator.engines.mockingbird.masks import Masks

    nets = (tacotron.encoder.pre_net, tacotron.decoder.prenet)
    widths = [(net.fc1.out_features, net.fc2.out_features) for net in nets]
    return Masks(4, (widths[0], widths[1]), (nets[0].p, nets[1].p))


def test_a_step_asks_for_the_frames_that_are_taken_only(engine: MockingBird) -> None:
    module = Step(engine.synthesizer._model.decoder)
    assert module.mel.shape == (20 * 2, 24)
    assert sum(each.numel() for each in module.state_dict().values()) < sum(
        each.numel() for each in engine.synthesizer._model.decoder.state_dict().values()
    )


def test_a_row_does_not_hear_the_symbols_beyond_its_end(engine: MockingBird) -> None:
    tacotron = engine.synthesizer._model
    (inputs, expected), *_ = examples.of_step(tacotron)
    names = dict(zip(("memory", "keys", "beyond"), inputs, strict=False))
    length = int((names["beyond"][-1] == 0).sum())
    cut = [each[-1:, :length] if each.ndim > 1 and each.shape[1] == 29 else each[-1:] for each in inputs]
    for mine, whole in zip(answer(Step(tacotron.decoder), *cut), expected, strict=True):
        whole = whole[-1:, :length] if whole.ndim == 2 and whole.shape[1] == 29 else whole[-1:]
        np.testing.assert_allclose(mine, whole, atol=1e-6)


@pytest.mark.parametrize("length", [2, 3, 17])
def test_a_cbhg_in_other_words_is_the_same(engine: MockingBird, length: int) -> None:
    for own, channels in ((engine.synthesizer._model.postnet, 20), (engine.synthesizer._model.encoder.cbhg, 14)):
        x = torch.randn(1, channels, length, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(CBHG(own)(x), own(x))


def test_what_is_traced_is_a_copy(engine: MockingBird) -> None:
    tacotron = engine.synthesizer._model
    module = made(Postnet, tacotron)
    assert isinstance(module.cbhg, CBHG)
    assert not isinstance(tacotron.postnet, CBHG)
    ours = {each.data_ptr() for each in module.parameters()}
    assert ours.isdisjoint(each.data_ptr() for each in tacotron.parameters())


def test_a_state_has_the_sizes_that_a_step_asks_for(engine: MockingBird) -> None:
    widths = state_widths(engine.synthesizer._model)
    wide = dict.fromkeys(("hidden1", "cell1", "hidden2", "cell2"), 24)
    assert widths == {"frame": 20, "attention": 8, **wide, "context": 14 + 12 + 16}


@pytest.mark.parametrize("vocoder", ["hifigan", "fregan"])
def test_a_vocoder_is_the_generators(opened: Any, vocoder: str) -> None:
    engine = opened(vocoder)
    mel = examples.mel(30, 20)
    np.testing.assert_array_equal(answer(Vocoder(engine.generator), mel[None])[0][0], engine.vocode(mel))
