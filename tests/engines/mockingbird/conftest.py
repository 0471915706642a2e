"""The double in both layouts, opened and wrapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import UniversalOptimizer
from accelerator.engines.mockingbird import MockingBird
from tests.engines.mockingbird.checkpoints import checkout, checkpoints

RATE = 16_000


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Path]]]:
    """A layout's checkout, and checkpoint files for it."""
    made: dict[str, tuple[Path, dict[str, Path]]] = {}

    def of(layout: str) -> tuple[Path, dict[str, Path]]:
        if layout not in made:
            folder = tmp_path_factory.mktemp(layout)
            root = checkout(folder / "MockingBird", layout)
            made[layout] = root, checkpoints(root, folder)
        return made[layout]

    return of


@pytest.fixture(scope="session")
def opened(files: Any) -> Callable[..., MockingBird]:
    """An engine of its own for each call."""

    def make(vocoder: str = "hifigan", layout: str = "new") -> MockingBird:
        torch.set_num_threads(1)  # small matrices: more threads only wait for each other
        root, own = files(layout)
        return MockingBird.open(root, encoder=own["encoder"], synthesizer=own["synthesizer"], vocoder=own[vocoder])

    return make


@pytest.fixture(scope="session")
def engine(opened: Any) -> MockingBird:
    """Never changed."""
    return opened()


@pytest.fixture(scope="session")
def fast(engine: MockingBird) -> Iterator[UniversalOptimizer]:
    with UniversalOptimizer(engine, precision="fp32", threads=1, probe=False) as optimizer:
        yield optimizer.prepare()


@pytest.fixture(scope="session")
def recording() -> tuple[np.ndarray, int]:
    """Three seconds of noise."""
    noise = np.random.default_rng(0).standard_normal(3 * RATE)
    return (0.1 * noise).astype(np.float32), RATE


@pytest.fixture(scope="session")
def voice(engine: MockingBird, recording: tuple[np.ndarray, int]) -> np.ndarray:
    return engine.embed(*recording)
