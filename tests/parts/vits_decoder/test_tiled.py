"""The decoder in chains says what it says in PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from accelerator import kernels
from accelerator.parts.hifi_gan import HifiGan
from accelerator.parts.vits_decoder import FILE, WINDOW, Weights, save
from accelerator.parts.vits_decoder.backends import NAME, _load_tiled
from accelerator.parts.vits_decoder.rewrite import Decoder
from accelerator.parts.vits_decoder.tiled import Tiled
from accelerator.runtime.options import RunOptions
from tests.exact_convolutions import decibels, seeded

CONFIG = {"slope": 0.1, "ups": [[8, 4], [4, 2]], "blocks": [[1, 3], [2, 6]]}
TAPS = (3, 7)  # of the blocks' convolutions
chained = pytest.mark.skipif(not kernels.multiplies_chains(), reason="needs AMX or AVX512_BF16, and numba")


def weights(block: int = 2, flows: int = 2, speakers: bool = False) -> Weights:
    """Of 64 latents, 128 channels, and 64 and 32 behind the upsampling. block: HiFi-GAN's ResBlock1 or 2."""
    made: dict[str, np.ndarray] = {}

    def put(name: str, out: int, taps: int, channels: int, biased: bool = True) -> None:
        factor = (1.5 / (taps * channels)) ** 0.5
        made[f"{name}.kernel"] = (seeded(out, taps, channels, seed=len(made)) * factor).numpy()
        if biased:
            made[f"{name}.bias"] = 0.1 * seeded(out, seed=len(made)).numpy()

    for i in range(flows):
        put(f"flows.{i}.pre", 96, 1, 32)
        put(f"flows.{i}.post", 32, 1, 96)
        for j in range(2):
            put(f"flows.{i}.in.{j}", 192, 5, 96)
            put(f"flows.{i}.out.{j}", 96 if j else 192, 1, 96)
        if speakers:
            made[f"flows.{i}.condition"] = seeded(2 * 192, 5, seed=4 + i).numpy()
    put("first", 128, 7, 64)
    for i, (rate, channels) in enumerate(((8, 64), (4, 32))):
        put(f"ups.{i}", rate * channels, 2, 2 * channels)
        for j, taps in enumerate(TAPS):
            for k in range(2):
                put(f"blocks.{i}.{j}.{k}.first", channels, taps, channels)
                if block == 1:
                    put(f"blocks.{i}.{j}.{k}.second", channels, taps, channels)
    put("last", 1, 7, 32, biased=False)
    if speakers:
        made["condition"] = seeded(128, 5, seed=3).numpy()
    return made, {**CONFIG, "flows": [[1, 2]] * flows}


def plain(made: Weights, monkeypatch: pytest.MonkeyPatch) -> Decoder:
    """By oneDNN, all of it."""
    with monkeypatch.context() as patch:
        patch.setattr(HifiGan, "takes", lambda _: False)
        return Decoder(made)


@chained
@pytest.mark.parametrize(("block", "flows"), [(1, 3), (2, 2)])
def test_it_says_what_pytorch_says(monkeypatch: pytest.MonkeyPatch, block: int, flows: int) -> None:
    made = weights(block, flows)
    theirs, exact, ours = plain(made, monkeypatch), Decoder(made), Tiled(made)
    assert isinstance(exact._voice, HifiGan)
    for length in (1, 33, WINDOW + 40):
        latents = seeded(1, 64, length, seed=length)
        expected, answer = theirs(latents), torch.from_numpy(ours(latents.numpy(), threads=1))
        assert answer.shape == expected.shape == (1, 32 * length)
        assert 40 < decibels(answer, expected) < 70
        assert decibels(exact(latents), expected) > 75


@chained
def test_the_flow_is_exact_to_sixteen_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    made = weights(flows=3)
    theirs, ours = plain(made, monkeypatch), Tiled(made)
    latents = seeded(1, 64, 300)
    expected = theirs._flow(latents.transpose(1, 2).contiguous(), 300, None)
    assert decibels(torch.from_numpy(ours._flow(latents[0].T.numpy(), None, 2).copy()), expected[0]) > 80


@chained
def test_a_speaker_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    made = weights(speakers=True)
    theirs, ours = plain(made, monkeypatch), Tiled(made)
    latents, speaker = seeded(1, 64, 20), seeded(1, 5, 1, seed=1)
    expected = theirs(latents, speaker)
    assert decibels(torch.from_numpy(ours(latents.numpy(), speaker.numpy(), threads=1)), expected) > 40
    assert decibels(torch.from_numpy(ours(latents.numpy(), threads=1)), expected) < 20


@chained
def test_threads_change_nothing() -> None:
    decoder, latents = Tiled(weights(1)), seeded(1, 64, 700).numpy()
    expected = decoder(latents, threads=1)
    for threads in (2, 3):
        np.testing.assert_array_equal(decoder(latents, threads=threads), expected)


@chained
def test_calls_on_one_thread_and_on_several_share_their_weights(tmp_path: Path) -> None:
    save(weights(), tmp_path / FILE)
    one, two = (_load_tiled({NAME: tmp_path}, RunOptions(threads=n)) for n in (1, 2))
    assert one.func is two.func  # type: ignore[attr-defined]
    latents = seeded(1, 64, 40).numpy()
    np.testing.assert_array_equal(one(latents), two(latents))


def test_other_channels_are_left_to_pytorch() -> None:
    tensors, config = weights()
    assert Tiled.takes((tensors, config)) is kernels.multiplies_chains()
    for name in ("ups.1.kernel", "flows.0.pre.kernel"):
        assert not Tiled.takes(({**tensors, name: tensors[name][:, :, :24]}, config))
