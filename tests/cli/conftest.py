"""A cache with the tiny engine's exports, and what commands make of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator.audio.checks import write_wav
from accelerator.cache import ContentCache
from tests.cli.commands import TINY, answer


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
