"""HiFi-GAN by AMX says what it says by oneDNN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from accelerator import kernels
from accelerator.parts import vits_decoder
from accelerator.parts.hifi_gan import HifiGan
from tests.exact_convolutions import decibels, seeded

CONFIG = {"slope": 0.1, "flows": [[1, 1]], "ups": [[8, 4], [4, 2]], "blocks": [[1, 3], [2, 6]]}
TAPS = (3, 7)  # of the blocks' convolutions
amx = pytest.mark.skipif(not kernels.multiplies_tiles(), reason="needs AMX with bfloat16, and numba")


def weights(block: int, speakers: bool = False) -> dict[str, Tensor]:
    """Of 32 latents, 128 channels, and 64 and 32 behind the upsampling. block: HiFi-GAN's ResBlock1 or 2."""
    made: dict[str, Tensor] = {}

    def put(name: str, out: int, taps: int, channels: int, biased: bool = True) -> None:
        made[f"{name}.kernel"] = seeded(out, taps, channels, seed=len(made)) * (1.5 / (taps * channels)) ** 0.5
        if biased:
            made[f"{name}.bias"] = 0.1 * seeded(out, seed=len(made))

    put("flows.0.pre", 32, 1, 16)
    put("flows.0.post", 16, 1, 32)
    for j in range(2):
        put(f"flows.0.in.{j}", 64, 5, 32)
        put(f"flows.0.out.{j}", 32 if j else 64, 1, 32)
    put("first", 128, 7, 32)
    for i, (rate, channels) in enumerate(((8, 64), (4, 32))):
        put(f"ups.{i}", rate * channels, 2, 2 * channels)
        for j, taps in enumerate(TAPS):
            for k in range(2):
                put(f"blocks.{i}.{j}.{k}.first", channels, taps, channels)
                if block == 1:
                    put(f"blocks.{i}.{j}.{k}.second", channels, taps, channels)
    put("last", 1, 7, 32, biased=False)
    if speakers:
        made["condition"] = seeded(128, 5, seed=3)
    return made


def decoders(monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Tensor]) -> tuple[Any, Any, Any]:
    """By oneDNN, by AMX with pairs, and by AMX with bfloat16."""
    ours = [vits_decoder.Decoder(tensors, CONFIG, dtype=dtype) for dtype in ("fp32", "bf16")]
    assert all(isinstance(each._voice, HifiGan) for each in ours)
    monkeypatch.setattr(HifiGan, "takes", lambda _: False)
    return vits_decoder.Decoder(tensors, CONFIG), *ours


@amx
@pytest.mark.parametrize("block", [1, 2])
def test_it_says_what_onednn_says(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    plain, exact, low = decoders(monkeypatch, weights(block))
    for length in (1, 2, 33, 150, vits_decoder.WINDOW + 40):
        latents = seeded(1, 32, length, seed=length)
        expected = plain(latents)
        assert exact(latents).shape == expected.shape == (1, 32 * length)
        assert decibels(exact(latents), expected) > 75
        assert 40 < decibels(low(latents), expected) < 70


@amx
def test_a_speaker_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, exact, _ = decoders(monkeypatch, weights(2, speakers=True))
    latents, speaker = seeded(1, 32, 20), seeded(1, 5, 1, seed=1)
    assert decibels(exact(latents, speaker), plain(latents, speaker)) > 75
    assert decibels(exact(latents), plain(latents, speaker)) < 20


@amx
def test_threads_change_nothing() -> None:
    decoder, latents, before = vits_decoder.Decoder(weights(1), CONFIG, dtype="bf16"), seeded(1, 32, 200), 0
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            answers.append(decoder(latents).numpy())
    finally:
        torch.set_num_threads(before)
    for each in answers[1:]:
        np.testing.assert_allclose(each, answers[0], atol=1e-6)  # of the flow's sums by PyTorch


def test_other_channels_are_left_to_onednn() -> None:
    tensors = weights(2)
    tensors["ups.1.kernel"] = tensors["ups.1.kernel"][:, :, :48]
    assert not HifiGan.takes(tensors)
