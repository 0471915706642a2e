"""Shared by the tests of graphs."""

from __future__ import annotations

import pytest

from accelerator.hardware import detect


@pytest.fixture(scope="session")
def exact_sums() -> None:
    """Skips where ONNX Runtime's product of uint8 and int8 may saturate."""
    machine = detect()
    if machine.arch == "x86_64" and not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(machine.isa):
        pytest.skip("without VNNI, integer products saturate")
