"""Versions of fish-speech are told apart, and others declined with advice."""

from __future__ import annotations

import queue
import types

import numpy as np
import pytest

from accelerator.engines.fish_speech import layouts
from accelerator.engines.fish_speech.layouts import HEAD, S1, check_engine, layout_of
from accelerator.errors import UnsupportedEngine


def inference_module(*options: str, drop: str = "") -> types.ModuleType:
    module = types.ModuleType("inference")
    parameters = ", ".join(["model", "x", "input_pos", *options, "audio_masks", "audio_parts", "previous_tokens=None"])
    exec(f"def decode_one_token_ar({parameters}): pass", vars(module))
    for name in ("generate", "generate_long", "sample", "multinomial_sample_one_no_sync"):
        if name != drop:
            setattr(module, name, lambda: None)
    return module


@pytest.mark.parametrize("layout", [S1, HEAD], ids=lambda layout: layout.name)
def test_a_layout_is_told_by_what_its_step_takes(layout: layouts.Layout) -> None:
    assert layout_of(inference_module(*layout.options)) is layout


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (inference_module("temperature"), "samples with temperature"),
        (inference_module(*S1.options, drop="sample"), "lacks sample"),
    ],
)
def test_other_versions_are_declined_with_advice(module: types.ModuleType, message: str) -> None:
    with pytest.raises(UnsupportedEngine, match=message) as caught:
        layout_of(module)
    assert "S1-mini" in str(caught.value)


def test_older_engines_are_declined_with_advice() -> None:
    firefly = type("FireflyArchitecture", (), {})()
    with pytest.raises(UnsupportedEngine, match=r"1\.4 and 1\.5.*S1-mini"):
        check_engine(types.SimpleNamespace(decoder_model=firefly, llama_queue=queue.Queue()), "decode")
    with pytest.raises(UnsupportedEngine, match="llama_queue"):
        check_engine(types.SimpleNamespace(decoder_model=object()), "decode")


@pytest.mark.parametrize("count", [0, 1, 9, 10, 15, 16, 17, 40])
def test_the_window_is_what_the_engine_looks_back_on(count: int) -> None:
    frames = np.arange(1, count * 3 + 1).reshape(count, 3)
    kept = np.zeros((3, 4096), np.int64)  # as S1 keeps them: all frames, from the left
    rolled = np.zeros((3, 10), np.int64)  # as head does: the newest on the right
    for i, frame in enumerate(frames):
        kept[:, i] = frame
        rolled = np.concatenate([rolled[:, 1:], frame[:, None]], axis=1)
    np.testing.assert_array_equal(S1.window(frames), kept[:, :16] if count < 16 else kept[:, count - 16 : count])
    np.testing.assert_array_equal(HEAD.window(frames), rolled)
    for layout in (S1, HEAD):  # older frames do not matter
        np.testing.assert_array_equal(layout.window(frames[-layout.rule.window :]), layout.window(frames))
