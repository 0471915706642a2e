"""The encoder with real weights, those of the package Resemblyzer, which MockingBird's loads unchanged."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator.engines.mockingbird import MockingBird, MockingBirdAdapter
from accelerator.parts.part import Part
from accelerator.runtime.options import RunOptions

pytestmark = pytest.mark.filterwarnings("ignore")  # of what it imports


@pytest.fixture(scope="module")
def trained() -> Any:
    """Resemblyzer's network, of the same layers."""
    resemblyzer = pytest.importorskip("resemblyzer", reason="pip install --no-deps resemblyzer==0.1.4, and librosa")
    with contextlib.redirect_stdout(io.StringIO()):
        return resemblyzer.VoiceEncoder("cpu")


@pytest.fixture(scope="module")
def part(trained: Any, opened: Any) -> Part:
    engine: MockingBird = opened()
    engine.encoder._model = trained
    return MockingBirdAdapter(engine).parts()[0]


def test_real_embeddings_are_the_same(trained: Any, part: Part, tmp_path: Path) -> None:
    from accelerator.export.component import Built

    (component,), frames = part.components, _voices()
    component.build(tmp_path, "fp32", lambda _: None)
    assert component.prove(Built(tmp_path, "fp32", tmp_path))["passed"]
    call = part.backends[0].load({"encoder": tmp_path}, RunOptions())
    with torch.no_grad():
        expected = trained(torch.from_numpy(frames)).numpy()
    np.testing.assert_allclose(call(frames), expected, atol=1e-5)
    np.testing.assert_allclose(part.original(frames), expected, atol=1e-6)
    similar = (call(frames) * expected).sum(axis=1)  # of embeddings of length one, the cosine
    assert similar.min() > 0.9999


def _voices() -> np.ndarray:
    """Power spectra of three humming voices, float32 [3, 160, 40]."""
    channels, time = np.arange(40), np.arange(160)[:, None]
    found = []
    for pitch, brightness in ((3, 0.2), (5, 0.1), (7, 0.3)):
        harmonics = 1 + np.cos(2 * np.pi * channels / pitch + np.sin(time / 9))
        found.append(harmonics * np.exp(-brightness * channels) * (1 + np.sin(time / 13)))
    return np.array(found, np.float32)
