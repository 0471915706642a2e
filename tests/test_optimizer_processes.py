"""What a process loads, finds and writes, and what it says to whoever listens."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import accelerator
from accelerator import UniversalOptimizer
from tests import ROOT
from tests.doubles import QuickAdapter

TEXT = "Hello there."
SHORT: dict[str, Any] = {"max_new_tokens": 10}


def python(script: str, **environment: str) -> str:
    """What a fresh interpreter, in which warnings are errors, prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_loads_nothing_heavy() -> None:
    heavy = "('torch', 'onnxruntime', 'onnx', 'numpy', 'soundfile')"
    script = f"import accelerator, sys; print(sorted(set({heavy}) & set(sys.modules)), dir(accelerator))"
    assert python(script).startswith("[] ")
    script = f"import accelerator.optimizer, accelerator.cli, sys; print(sorted(set({heavy}[:2]) & set(sys.modules)))"
    assert python(script).strip() == "[]"


def test_public_names_exist() -> None:
    for name in accelerator.__all__:
        assert getattr(accelerator, name).__name__ == name
    assert set(accelerator.__all__) <= set(dir(accelerator))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = accelerator.Nothing


SECOND_PROCESS = """
import json
from accelerator import UniversalOptimizer
from accelerator.reference import load
stages = set()
optimizer = UniversalOptimizer(
    load("tiny"), precision="fp32", threads=1, probe=False, progress=lambda event: stages.add(event.stage)
)
audio, rate, metrics = optimizer.synthesize("Hello there.", temperature=0, max_new_tokens=6)
print(json.dumps([sorted(stages), metrics["cache"], metrics["backend"], float(abs(audio).sum())]))
"""


def test_a_second_process_builds_nothing(fast: UniversalOptimizer, exports: Path) -> None:
    """And warns of nothing: its warnings are errors."""
    stages, cache, backend, total = json.loads(python(SECOND_PROCESS, ACCELERATOR_CACHE=str(exports)))
    assert stages == ["hash", "load"]
    assert cache == {"text2semantic": "hit", "decoder": "hit"}
    assert backend == "onnxruntime"
    here = fast.synthesize(TEXT, temperature=0, max_new_tokens=6).audio
    assert total == pytest.approx(float(abs(here).sum()), rel=1e-5)


@pytest.mark.parametrize("kind", ["file", "forbidden", "missing parent"])
def test_a_cache_that_cannot_be_written_never_fails_synthesis(tiny: Any, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "cache"
    if kind == "file":
        place.write_text("in the way")
    elif kind == "missing parent":
        (tmp_path / "file").write_text("in the way")
        place = tmp_path / "file" / "cache"
    else:
        place = Path("/proc/accelerator-cache")
    optimizer = UniversalOptimizer(tiny, adapter=QuickAdapter(tiny), cache_dir=place, threads=1)
    audio, _, metrics = optimizer.synthesize(TEXT, temperature=0, **SHORT)
    np.testing.assert_array_equal(audio, tiny.synthesize(TEXT, temperature=0, **SHORT)[0])
    assert metrics["fallback"] == []
    assert metrics["backend"] == "onnxruntime"
    exports = [e for p in optimizer.status()["parts"].values() for e in p.get("exports", {}).values()]
    assert {e["layer"] for e in exports} == {"ephemeral"}


# What is said to whoever listens


@pytest.mark.usefixtures("fast")  # whose exports are used
def test_a_short_request_says_nothing_at_info(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    """By this package or by another: not the first one, which loads what was exported before, and not the next ones."""
    caplog.set_level(logging.INFO)
    with UniversalOptimizer(tiny, precision="fp32", threads=1, probe=False) as optimizer:
        for seed in (1, 2):
            speech = optimizer.synthesize(TEXT, seed=seed, **SHORT)
            assert speech.metrics["backend"] == "onnxruntime"
            assert len(list(optimizer.stream(TEXT, seed=seed, **SHORT))) > 0
    assert [f"{record.name}: {record.getMessage()}" for record in caplog.records] == []
