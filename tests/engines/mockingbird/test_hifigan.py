"""HiFi-GAN by compiled chains and by oneDNN says what the engine's says, of either block and weight norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from accelerator import UniversalOptimizer, kernels
from accelerator.codec.convolutions import has_bf16
from accelerator.engines.mockingbird import MockingBird, MockingBirdAdapter, examples
from accelerator.engines.mockingbird.hifigan import is_plain, padded, weights
from accelerator.engines.mockingbird.traceable import Vocoder, answer
from accelerator.parts.vits_decoder import WINDOW
from accelerator.parts.vits_decoder.rewrite import Decoder
from accelerator.parts.vits_decoder.tiled import Tiled
from tests.engines.mockingbird.test_adapter import spoken
from tests.exact_convolutions import decibels

TEXT = "hello there"
LENGTHS = (1, 8, 33, WINDOW, WINDOW + 1, 2 * WINDOW + 5)  # none is in a proof
chained = pytest.mark.skipif(not kernels.multiplies_chains(), reason="needs AMX or AVX512_BF16, and numba")
Made = Callable[..., Any]


@pytest.fixture(scope="module")
def wide(engine: MockingBird) -> Made:
    """A generator whose channels kernels take; block: `Block`, which is ResBlock1, or `Single`, ResBlock2."""

    def make(block: str = "Block") -> Any:
        kind = type(engine.generator)
        torch.manual_seed(1)
        generator = kind(width=128, block=kind.forward.__globals__[block], rates=(5, 4)).eval()
        with torch.no_grad():
            for module in generator.modules():
                if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
                    module.weight.mul_(1.5)  # as loud as speech
        return generator

    return make


def same(ours: np.ndarray, theirs: np.ndarray, least: float) -> None:
    assert ours.shape == theirs.shape
    assert decibels(torch.from_numpy(ours), torch.from_numpy(theirs)) > least


@pytest.mark.parametrize("block", ["Block", "Single"])
def test_the_rewrite_says_what_the_engine_says(wide: Made, block: str) -> None:
    generator = wide(block)
    made = weights(generator)
    exact, low = Decoder(made), Decoder(made, dtype="bf16") if has_bf16() else None
    for length in LENGTHS:
        mel = examples.mel(length, 20)[None]
        expected, given = answer(Vocoder(generator), mel)[0], torch.from_numpy(padded(mel))
        same(exact(given).numpy(), expected, 75)
        if low is not None:
            same(low(given).numpy(), expected, 40)


@chained
@pytest.mark.parametrize("block", ["Block", "Single"])
def test_chains_say_what_the_engine_says(wide: Made, block: str) -> None:
    generator = wide(block)
    made = weights(generator)
    assert Tiled.takes(made)
    ours = Tiled(made)
    for length in LENGTHS:
        mel = examples.mel(length, 20)[None]
        said = ours(padded(mel), threads=1)
        same(said, answer(Vocoder(generator), mel)[0], 40)
        np.testing.assert_array_equal(ours(padded(mel), threads=2), said)


@pytest.mark.parametrize("norm", ["weight_norm", "parametrizations.weight_norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weight_norm_may_still_be_there(wide: Made, norm: str) -> None:
    """And may be newer than the weights that its layers hold: those are of their last call."""
    plain, normed = wide(), wide()
    names = norm.split(".")
    add: Any = torch.nn.utils
    for name in names:
        add = getattr(add, name)
    for module in list(normed.modules()):
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            add(module)
    doubled = {
        name: tensor * 2 if name.endswith(("weight_g", "original0")) else tensor
        for name, tensor in normed.state_dict().items()
    }
    normed.load_state_dict(doubled)
    assert is_plain(normed)
    (ours, config), (theirs, expected) = weights(normed), weights(plain)
    assert config == expected
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        factor = 2 if name.endswith(".kernel") else 1
        np.testing.assert_allclose(array, factor * theirs[name], rtol=1e-5, atol=1e-7)


def test_only_hifi_gan_is_taken(opened: Any, wide: Made) -> None:
    assert is_plain(wide())
    assert is_plain(opened().generator)
    assert not is_plain(opened("fregan").generator)
    repeating = wide()  # as the one of 24 kHz
    repeating.ups[0] = nn.Sequential(nn.Upsample(scale_factor=5), nn.Conv1d(128, 64, 11, padding=5))
    shorter = wide()
    shorter.ups[1].output_padding, shorter.ups[1].padding = (0,), (3,)
    grouped = wide()
    grouped.resblocks[0].convs1[0] = nn.Conv1d(64, 64, 3, padding=1, groups=2)
    uneven = wide()
    uneven.resblocks[0].convs1[1] = nn.Conv1d(64, 64, 3, padding=2, dilation=2)
    second = wide()
    second.resblocks[0].convs2[1] = nn.Conv1d(64, 64, 3, padding=2, dilation=2)
    others = wide()
    others.resblocks[0] = nn.Conv1d(64, 64, 3, padding=1)
    for generator in (repeating, shorter, grouped, uneven, second, others):
        assert not is_plain(generator)
    names = [[each.name for each in MockingBirdAdapter(one).parts()[-1].backends] for one in map(opened, ("fregan",))]
    assert names == [["onnxruntime", "openvino"]]


class Only(MockingBirdAdapter):
    """Its vocoder has one backend, which is not timed. fails: when it is called."""

    backend, fails = "native", False

    def parts(self) -> Any:
        return [self._only(part) if part.name == "vocoder" else part for part in super().parts()]

    def _only(self, part: Any) -> Any:
        own = next(each for each in part.backends if each.name == self.backend)

        def load(paths: Any, options: Any) -> Any:
            return self._fail if self.fails else own.load(paths, options)

        return replace(part, backends=(replace(own, load=load, probed=False),))

    def _fail(self, mel: np.ndarray) -> Any:
        raise RuntimeError("by the test")


def only(engine: MockingBird, generator: Any, backend: str = "native", *, fails: bool = False, **how: Any) -> Any:
    engine.vocoder.generator = generator
    adapter = Only(engine)
    adapter.backend, adapter.fails = backend, fails
    return UniversalOptimizer(engine, adapter=adapter, **{"precision": "auto", "threads": 1, "probe": False, **how})


@chained
@pytest.mark.parametrize("block", ["Block", "Single"])
def test_it_is_spoken_by_chains(
    opened: Any, wide: Made, voice: np.ndarray, recording: Any, block: str, tmp_path: Path
) -> None:
    engine = opened()
    with only(engine, wide(block)) as optimizer:
        speech = optimizer.synthesize(TEXT, recording, seed=5, steps=200)
        windows = [chunk.audio for chunk in optimizer.stream(TEXT, recording, seed=5, steps=200)]
        part = optimizer.status()["parts"]["vocoder"]
    assert (speech.metrics["backends"]["vocoder"], speech.metrics["fallback"]) == ("native", [])
    same(speech.audio, spoken(engine, TEXT, voice, 5, steps=200), 35)
    assert len(windows) > 2
    same(np.concatenate(windows), speech.audio, 60)
    assert part["exports"]["decoder-rewrite"]["proof"]["tiles"]["passed"]


def test_it_is_spoken_by_the_rewrite(opened: Any, wide: Made, voice: np.ndarray, recording: Any) -> None:
    engine = opened()
    threads = torch.get_num_threads()
    with only(engine, wide(), "onednn", precision="fp32", threads=threads) as optimizer:
        speech = optimizer.synthesize(TEXT, recording, seed=5, steps=60)
    assert (speech.metrics["backends"]["vocoder"], speech.metrics["fallback"]) == ("onednn", [])
    np.testing.assert_allclose(speech.audio, spoken(engine, TEXT, voice, 5, steps=60), atol=1e-4)


@chained
def test_float32_is_not_for_chains_that_round(opened: Any, wide: Made, recording: Any) -> None:
    with only(opened(), wide(), precision="fp32") as optimizer:
        speech = optimizer.synthesize(TEXT, recording, seed=5, steps=20)
    assert speech.metrics["backends"]["vocoder"] == "pytorch"


@chained
def test_the_engine_answers_where_chains_fail(opened: Any, wide: Made, voice: np.ndarray, recording: Any) -> None:
    engine = opened()
    with only(engine, wide(), fails=True) as optimizer:
        speech = optimizer.synthesize(TEXT, recording, seed=5, steps=60)
    np.testing.assert_allclose(speech.audio, spoken(engine, TEXT, voice, 5, steps=60), atol=1e-4)
    assert [each["message"] for each in speech.metrics["fallback"]] == ["by the test"]


def test_a_generator_that_does_something_else_is_not_believed(opened: Any, wide: Made, recording: Any) -> None:
    """Its layers are HiFi-GAN's, and what it does with them is not."""
    engine, generator = opened(), wide()
    kind = type(generator)

    def quieter(self: Any, mel: Any) -> Any:
        return kind.forward(self, mel) * 0.5

    generator.__class__ = type("Quieter", (kind,), {"forward": quieter})
    with only(engine, generator, "onednn", precision="fp32", threads=torch.get_num_threads()) as optimizer:
        speech = optimizer.synthesize(TEXT, recording, seed=5, steps=20)
    assert speech.metrics["backends"]["vocoder"] == "pytorch"
