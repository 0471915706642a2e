"""What a type checker says of callers' code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GOOD = """
import numpy as np
import accelerator
from accelerator import Speech, UniversalOptimizer

engine = UniversalOptimizer(object(), unspeakable="skip")
for audio, rate, metrics in engine.synthesize_batch(["one", "two"], seed=1, top_p=0.5):
    samples: np.ndarray = audio
    hertz: int = rate
    factor: float = metrics["rtf"]
for answer in engine.synthesize_batch(["one"], return_exceptions=True):
    if isinstance(answer, Speech):
        print(answer.audio)
for chunk in engine.stream("one", temperature=0.5, unspeakable="error"):
    print(chunk.audio, chunk.sample_rate)
loaded: UniversalOptimizer = accelerator.load(precision="int8")


async def speak() -> Speech:
    return await engine.asynthesize("one", max_new_tokens=5)
"""
BAD = {
    'engine.stream("one", temperature=[0.5])': "incompatible type",
    'engine.stream("one", temperature="hot")': "incompatible type",
    'engine.synthesize_batch(["one"], seed="1")': "No overload variant",
    'engine.synthesize("one", unspeakable="ignore")': "incompatible type",
}


def check(code: str, tmp_path: Path) -> tuple[int, str]:
    pytest.importorskip("mypy", reason='pip install -e ".[dev]"')
    file = tmp_path / "snippet.py"
    file.write_text(code)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    return done.returncode, done.stdout


def test_callers_types_are_right_and_mistakes_are_found(tmp_path: Path) -> None:
    status, said = check(GOOD, tmp_path)
    assert status == 0, said
    wrong = "from accelerator import UniversalOptimizer\nengine = UniversalOptimizer(object())\n" + "\n".join(BAD)
    status, said = check(wrong, tmp_path)
    assert status == 1
    for line, message in enumerate(BAD.values(), start=3):
        assert any(f":{line}:" in found and message in found for found in said.splitlines()), (line, said)
