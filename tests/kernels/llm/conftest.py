"""Graphs that several files run, and do not change."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from accelerator.export.graph.quantize import RECIPES
    from tests.kernels.llm.stacks import SPEC, build

    return build(tmp_path_factory.mktemp("graphs"), SPEC, RECIPES["int4"])
