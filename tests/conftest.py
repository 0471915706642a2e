"""One cache for the whole run, so that exports are built once and nothing is written into the checkout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared cache's directory. ACCELERATOR_TEST_CACHE keeps it from run to run: half a minute sooner."""
    kept = os.environ.get("ACCELERATOR_TEST_CACHE")
    return Path(kept) if kept else tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="session", autouse=True)
def _cache_elsewhere(exports: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATOR_CACHE", str(exports))
        yield


@pytest.fixture(scope="session")
def tiny() -> Any:
    """The reference engine; never changed, a test that changes weights loads its own."""
    import torch

    from accelerator.reference import load

    torch.set_num_threads(1)  # small matrices: more threads only wait for each other
    return load("tiny")


@pytest.fixture(scope="session")
def fast(tiny: Any) -> Iterator[Any]:
    """`tiny` wrapped, its three parts exported in float32: greedy answers are PyTorch's, token for token."""
    from accelerator import UniversalOptimizer

    with UniversalOptimizer(tiny, precision="fp32", threads=1, probe=False) as optimizer:
        yield optimizer.prepare()
