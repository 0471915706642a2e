"""Weights are let go and come back."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from accelerator import UniversalOptimizer
from accelerator.engines.fish_speech import weights
from accelerator.speech import SamplingParams
from tests.engines.fish_speech.installed import CHECKPOINT, CODEC, TEXT, break_after, real, tts, wav


def test_weights_are_let_go_and_come_back() -> None:
    module = nn.Linear(2, 2)
    alive, held = weakref.ref(module), weights.Held(module, None, None)
    assert held.shell is held.get() is module
    held.release(lambda: nn.Linear(2, 2))
    del module
    gc.collect()
    assert (alive(), held.shell.weight.is_meta) == (None, True)
    assert held.get() is held.get()
    assert not held.get().weight.is_meta
    assert held.shell.weight.is_meta


def test_weights_that_differ_are_seen() -> None:
    stored = {"a": torch.tensor([1.0, 2.0]), "b": torch.ones(1)}
    assert weights.same([("a", torch.tensor([1.0, 2.0], dtype=torch.bfloat16))], stored)
    assert not weights.same([("a", torch.tensor([1.0, 3.0]))], stored)
    assert not weights.same([("a", torch.ones(1))], stored)
    assert not weights.same([("c", torch.ones(1))], stored)


@real
def test_weights_are_released_and_come_back(load_engine: Any) -> None:
    engine = load_engine()
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 8}
    optimizer = UniversalOptimizer(engine, precision="fp32", threads=2, probe=False, release_torch=True)
    parameters = [weakref.ref(next(m.parameters())) for m in (optimizer.adapter.model.get(), engine.decoder_model)]
    expected = optimizer.synthesize(TEXT, **options)
    optimizer.prepare()
    assert optimizer.status()["torch_released"] is True
    del engine
    gc.collect()
    assert [ref() for ref in parameters] == [None, None]
    np.testing.assert_array_equal(optimizer.synthesize(TEXT, **options).audio, expected.audio)
    assert optimizer.adapter.model._module is None
    for part in ("text2semantic", "decoder"):
        break_after(optimizer, part, 3)
    audio, _, metrics = optimizer.synthesize(TEXT, **options)
    np.testing.assert_allclose(audio, expected.audio, atol=2e-4)
    assert {f["part"] for f in metrics["fallback"]} == {"text2semantic", "decoder"}
    np.testing.assert_allclose(
        np.concatenate([c.audio for c in optimizer.adapter.original(_request(TEXT, options))]),
        expected.audio,
        atol=2e-4,
    )
    optimizer.close()


def _request(text: str, options: dict[str, Any]) -> Any:
    from accelerator.speech import SpeechRequest

    return SpeechRequest(text, None, SamplingParams(**options))


@real
def test_weights_that_could_not_come_back_stay(load_engine: Any) -> None:
    engine = load_engine()
    with UniversalOptimizer(engine, precision="fp32", threads=2, probe=False, release_torch=True) as optimizer:
        with torch.no_grad():
            next(engine.decoder_model.parameters()).add_(1e-3)  # no longer what the folder has
        optimizer.adapter._identities["codec"] = lambda: "0" * 64
        optimizer.prepare()
        assert optimizer.status()["torch_released"] is False
        assert [r.code for r in engine.inference(tts(max_new_tokens=3))] == ["final"]
    engine.llama_queue.put(None)


@real
def test_a_checkpoint_opens_without_its_weights(fast: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CHECKPOINT is not None
    options: dict[str, Any] = {"decoder_config_name": CODEC, "precision": "fp32", "threads": 2, "probe": False}
    voice = {"reference_audio": wav(), "reference_text": "words", "temperature": 0, "max_new_tokens": 12}
    with UniversalOptimizer.from_checkpoint(CHECKPOINT, "fish-speech", **options) as first:
        expected = first.synthesize(TEXT, **voice)
        first.prepare()
        assert first.adapter.model._module is None
        assert first.adapter.codec._module is None

    def never(*_: Any) -> Any:
        raise AssertionError("weights were read")

    with monkeypatch.context() as patch:
        patch.setattr(weights, "load_language_model", never)
        patch.setattr(weights, "load_codec", never)
        second = UniversalOptimizer.from_checkpoint(CHECKPOINT, "fish-speech", **options)
        audio, _, metrics = second.synthesize(TEXT, **voice)
        assert metrics["backend"] == "onnxruntime"
        assert set(metrics["cache"].values()) == {"hit"}
    np.testing.assert_array_equal(audio, expected.audio)
    np.testing.assert_allclose(audio, fast.synthesize(TEXT, **voice).audio, atol=2e-4)
    break_after(second, "text2semantic", 5)
    break_after(second, "decoder", 0)
    np.testing.assert_allclose(second.synthesize(TEXT, **voice).audio, expected.audio, atol=2e-4)
    assert second.adapter.model._module is not None
    assert [r.code for r in second.inference(tts(max_new_tokens=3, streaming=True))] == ["header", "segment", "final"]
    second.close()
