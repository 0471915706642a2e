"""How far a vocoder looks, asked of the vocoder itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from accelerator.engines.mockingbird import examples
from accelerator.engines.mockingbird.reach import reach
from accelerator.parts.decoding import Lookahead


def heard(generator: Any, frame: int, length: int, mels: int = 20) -> np.ndarray:
    """The frames whose audio changes with one frame of the mel spectrogram."""
    mel = torch.from_numpy(examples.mel(length, mels))[None].double()
    with torch.no_grad():
        before = generator.double()(mel)
        mel[..., frame] += 3
        after = generator(mel)
        generator.float()
    return np.flatnonzero((before != after).numpy().reshape(length, -1).any(axis=1))


@pytest.mark.parametrize("vocoder", ["hifigan", "fregan"])
def test_no_frame_further_away_is_heard(opened: Any, vocoder: str) -> None:
    generator = opened(vocoder).generator
    found = reach(generator)
    assert found is not None
    frames = heard(generator, 40, 81)
    assert frames.min() >= 40 - found
    assert frames.max() <= 40 + found
    assert found <= (frames.max() - frames.min()) // 2 + 2  # not much too far either


@pytest.mark.parametrize("vocoder", ["hifigan", "fregan"])
def test_windows_join_to_what_the_whole_would_be(opened: Any, vocoder: str) -> None:
    engine = opened(vocoder)
    mel = examples.mel(90, 20)
    ahead, audio = Lookahead(lambda window: window.heard(engine.vocode(window.units)), reach(engine.generator)), []
    for start in range(0, 90, 18):
        audio.append(ahead.push(list(mel[:, start : start + 18].T), final=start + 18 == 90))
    assert [len(each) > 0 for each in audio].count(True) >= 4
    np.testing.assert_allclose(np.concatenate(audio), engine.vocode(mel), atol=1e-6)


def test_repeated_samples_count_as_well() -> None:
    """At 24 kHz the engine's HiFi-GAN repeats samples, and convolves then."""
    repeat = nn.Module()
    repeat.scale_factor, repeat.forward = 4, lambda x: x.repeat_interleave(4, dim=-1)
    generator = nn.Module()
    generator.num_kernels = 1
    generator.conv_pre, generator.conv_post = nn.Conv1d(2, 2, 3, padding=1), nn.Conv1d(2, 1, 5, padding=2)
    generator.ups = nn.ModuleList([nn.Sequential(repeat, nn.Conv1d(2, 2, 9, padding=4))])
    generator.resblocks = nn.ModuleList([nn.Sequential(nn.Conv1d(2, 2, 3, padding=1))])
    assert reach(generator) == 3  # 1 + (4 + 1 + 2) / 4


@pytest.mark.parametrize("odd", [{"padding": 0}, {"padding": 3, "stride": 2}])
def test_of_other_convolutions_it_is_not_known(odd: dict[str, int]) -> None:
    generator = nn.Module()
    generator.conv_pre = nn.Conv1d(2, 2, 7, **odd)
    assert reach(generator) is None
