"""Which instructions there are kernels for, and who may do without."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from accelerator import kernels
from accelerator.errors import InvalidOption, SessionError
from accelerator.kernels import compiler, features
from accelerator.kernels.units.step import STEP
from tests import ROOT

pytestmark = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")


def test_without_the_instructions_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(features.detect(), isa=("avx2",))
    monkeypatch.setattr(features, "detect", lambda: here)
    features.available.cache_clear()
    try:
        assert not kernels.available()
        with pytest.raises(SessionError, match="AVX2"):
            compiler.function(STEP)
    finally:
        features.available.cache_clear()


def test_the_environment_can_do_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for wanted, found in (("none", False), ("AVX2", True), ("auto", True), ("", True)):
            monkeypatch.setenv("ACCELERATOR_KERNELS", wanted)
            features.available.cache_clear()
            assert kernels.available() == found
            assert not (wanted == "AVX2" and features.uses_avx512())
        monkeypatch.setenv("ACCELERATOR_KERNELS", "sse")
        features.available.cache_clear()
        with pytest.raises(InvalidOption, match="ACCELERATOR_KERNELS is 'sse'"):
            kernels.available()
    finally:
        features.available.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(not features.uses_avx512(), reason="all tests are of AVX2 here")
def test_those_for_older_processors_compute_the_same(exports: Path) -> None:
    """What is tested of steps, activations and a codec's layers, once more in a process whose kernels use AVX2."""
    files = [
        ROOT / "tests" / f"{name}.py"
        for name in (
            "kernels/llm/test_step",
            "kernels/conv/test_activation",
            "kernels/conv/test_layers",
            "codec/test_dense",
            "inference/test_compiled",
        )
    ]
    chosen = "formulas or beside_it or pieces or steps_are or number or int16 or quantized or scale_of or mix"
    asked = {"ACCELERATOR_KERNELS": "avx2", "ACCELERATOR_TEST_CACHE": str(exports)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-k",
        chosen,
        *map(str, files),
    ]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 30
