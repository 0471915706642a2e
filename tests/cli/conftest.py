"""A cache with the tiny engine's exports, and what commands make of it."""

from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator.audio.checks import write_wav
from accelerator.cache import ContentCache
from accelerator.engines import CHECKPOINTS
from tests.cli.commands import TINY, answer
from tests.skeletons import Skeleton


@pytest.fixture(scope="session")
def cache(exports: Path, fast: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own with the tiny engine's float32 exports, which are built once for all tests."""
    root = tmp_path_factory.mktemp("cache")
    for part in fast.status()["parts"].values():
        for export in part["exports"].values():
            path = Path(export["path"])
            shutil.copytree(path, root / path.relative_to(exports))
            shutil.copytree(exports / "notes" / path.name, root / "notes" / path.name)  # what its proof says
    return root


@pytest.fixture(scope="session")
def exported(cache: Path) -> dict:
    """What `export --json` says."""
    return answer("export", *TINY, "--precision", "fp32", "--cache-dir", cache)


@pytest.fixture
def copied(cache: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil, all of it used a moment ago, however long ago it was built."""
    made = Path(shutil.copytree(cache, tmp_path / "copy"))
    (made / "used").mkdir(exist_ok=True)
    for entry in ContentCache(made).entries():
        (made / "used" / entry.key).touch()
    return made


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    t = np.arange(16_000) / 16_000
    write_wav(tmp_path / "voice.wav", (0.3 * np.sin(2 * np.pi * 180 * t)).astype(np.float32), 16_000)
    return tmp_path / "voice.wav"


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Skeleton]], list[str]]:
    """The options by which a command opens an engine in the small."""

    def opened(kind: type[Skeleton]) -> list[str]:
        class Opened(kind):  # type: ignore[valid-type, misc]
            @classmethod
            def from_checkpoint(cls, path: Path) -> Opened:
                return cls()

        module = types.ModuleType("an_engine")
        module.Opened = Opened  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "an_engine", module)
        monkeypatch.setitem(CHECKPOINTS, "an-engine", "an_engine:Opened")
        return ["--engine", "an-engine", "--checkpoint", str(tmp_path)]

    return opened
