"""Tiny engines, and one of them wrapped. Without transformers whoever asks for one is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tests.engines.vits.tiny import pipeline

    return pipeline(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three speakers, and durations that are not drawn."""
    from tests.engines.vits.tiny import pipeline

    folder = tmp_path_factory.mktemp("many")
    return pipeline(folder, num_speakers=3, speaker_embedding_size=8, use_stochastic_duration_prediction=False)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def fast(engine: Any, cache: Path) -> Iterator[Any]:
    from accelerator import UniversalOptimizer

    with UniversalOptimizer(engine, cache_dir=cache, probe=False, threads=2) as optimizer:
        yield optimizer.prepare()
