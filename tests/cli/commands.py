"""Commands as they are called in a terminal, and what they answer."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from accelerator.cli import app

TINY = ["--size", "tiny"]
FEW = ["--max-new-tokens", "12", "--seed", "0"]


def run(*args: object, input: str | bytes | None = None):
    return CliRunner().invoke(app, [str(arg) for arg in args], input=input)


def answer(*args: object, exit_code: int = 0, input: str | bytes | None = None) -> dict:
    """The JSON that a command prints, which must be all of its stdout."""
    result = run(*args, "--json", input=input)
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def error(*args: object, exit_code: int = 1, input: str | bytes | None = None) -> dict:
    found = answer(*args, exit_code=exit_code, input=input)["error"]
    assert found["exit_code"] == exit_code
    assert set(found) == {"type", "message", "hint", "exit_code"}
    return found


def script(code: str, *args: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, **options)
