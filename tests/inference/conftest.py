"""The reference engine's language model in graphs of float32. What needs PyTorch is imported where it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def adapter(tiny: Any) -> Any:
    from accelerator.engines.reference import ReferenceAdapter

    return ReferenceAdapter(tiny)


@pytest.fixture(scope="session")
def built(adapter: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from accelerator.export.graph.dual_ar import build_fast, build_slow
    from accelerator.export.graph.quantize import RECIPES
    from accelerator.inference.embeddings import write_table

    directory = tmp_path_factory.mktemp("graphs")
    build_slow(directory, adapter._spec, adapter.backbone()[1], RECIPES["fp32"])
    build_fast(directory, adapter._spec, adapter.backbone()[1], RECIPES["fp32"])
    for name in ("embeddings", "codebook_embeddings", "fast_embeddings"):
        write_table(directory / f"{name}.npy", adapter.backbone()[1](name))
    return directory


@pytest.fixture(scope="module")
def decoder(built: Path, adapter: Any) -> Any:
    from tests.inference.frames import decoder_of

    return decoder_of(built, adapter._spec)
