"""An entry as tests build it and damage it, the processes that do, and a clock they set."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from accelerator.cache import make_key
from tests import ROOT

KEY = make_key(component="slow", precision="int8")
MODEL = b"model" * 200
WEIGHTS = bytes(range(256)) * 16


def build(directory: Path) -> dict[str, object]:
    (directory / "model.onnx").write_bytes(MODEL)
    (directory / "data").mkdir()
    (directory / "data" / "weights.bin").write_bytes(WEIGHTS)
    return {"onnx": "1.17", "report": {"max_error": 1e-5}}


def never(directory: Path) -> None:
    raise AssertionError("built although it is cached")


def tree(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def age(*paths: Path) -> None:
    """Moves the cache's idea of freshness past: ctime cannot be set, so wait for it where a test needs it."""
    newest = max(os.stat(path).st_ctime for path in paths)
    time.sleep(max(0.0, newest + 0.06 - time.time()))


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


needs_posix = pytest.mark.skipif(os.name == "nt", reason="forks, signals or mounts")


def script(code: str, *arguments: object, **options: Any) -> str:
    """Runs `code` in a process of its own and returns what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


# A program that builds entries, dies as it is told, and looks at what is left.
BUILDER = """
    import os, random, signal, sys, time
    from pathlib import Path
    from accelerator.cache import ContentCache, make_key

    root, mode = sys.argv[1], sys.argv[2]
    parts = {f"part{i}.bin": bytes([i]) * 20_000 for i in range(6)}

    def build(directory):
        for name, data in parts.items():
            with open(directory / name, "wb") as file:
                for start in range(0, len(data), 5000):
                    file.write(data[start:start + 5000])
                    file.flush()
        return {"parts": len(parts)}

    def check(key):
        # Whatever was interrupted, a fresh look sees nothing or everything.
        cache = ContentCache(root)
        assert cache.verify() == [], cache.verify()
        found = cache.get(key)
        if found is not None:
            assert {n: found.file(n).read_bytes() for n in found.files} == parts
        after = cache.get_or_create(key, build, name="slow")
        assert {n: after.file(n).read_bytes() for n in after.files} == parts
        assert after.created == (found is None)
        assert list((Path(root) / "quarantine").glob("*")) == []
        return found is not None

    def killed(number, die):
        key = make_key(number=number)
        child = os.fork()
        if child == 0:
            die()
            ContentCache(root).get_or_create(key, build, name="slow")
            os._exit(0)
        return key, child

    import filelock
    survived = 0
"""


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
