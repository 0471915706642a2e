"""Nothing leaves the machine, nothing is written but the cache and the output, and no stranger's code is run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from accelerator.cache import ContentCache, untrusted
from accelerator.kernels import compiler
from accelerator.kernels.units.snake import SNAKE

ROOT = Path(__file__).parents[1]
SPEAK = """
import os, sys
from accelerator import UniversalOptimizer
from accelerator.reference import load
with UniversalOptimizer(load("tiny"), probe=False, threads=1, precision="fp32") as engine:
    speech = engine.synthesize("Hello there.", seed=1, max_new_tokens=8)
    assert "onnxruntime" in speech.metrics["backends"].values(), speech.metrics["backends"]
    assert "onnxruntime" in sys.modules
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


def run(home: Path, code: str, **changes: str | None) -> str:
    """The code's output, in a home that is empty before."""
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_", "ACCELERATOR_"))}
    environment = {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), "ACCELERATOR_KERNELS": "none", **changes}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=home, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_fresh_home_holds_nothing_but_the_cache(tmp_path: Path) -> None:
    home, cache = tmp_path / "home", tmp_path / "cache"
    assert run(home, SPEAK, ACCELERATOR_CACHE=str(cache)) == "1"
    assert sorted(home.rglob("*")) == []
    assert list(cache.rglob("*.onnx"))


def test_what_the_environment_says_stays(tmp_path: Path) -> None:
    code = (
        "import os; from accelerator.runtime.onnx import library; library(); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    home = tmp_path / "home"
    assert run(home, code, ORT_DISABLE_TELEMETRY="0") == "0"


# Whose machine code is run

needs_owners = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owners here")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A file below three directories, all of them only ours to write."""
    file = tmp_path / "a" / "b" / "c" / "kernels.o"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"code")
    for each in (file, *file.parents[:3]):
        each.chmod(0o700)
    return file


@needs_owners
def test_what_only_we_can_write_is_trusted(place: Path) -> None:
    assert untrusted(place) is None
    assert untrusted(place.parent) is None
    place.parents[1].chmod(0o755)
    assert untrusted(place) is None


@needs_owners
@pytest.mark.parametrize("level", range(4))
def test_what_others_can_write_is_not(place: Path, level: int) -> None:
    shared = (place, *place.parents)[level]
    shared.chmod(0o707)
    assert untrusted(place) == f"{shared} can be written by other users"


@needs_owners
def test_a_sticky_directory_protects_what_is_in_it_but_not_itself(place: Path) -> None:
    place.parents[1].chmod(0o1777)
    assert untrusted(place) is None
    assert untrusted(place.parents[1]) is not None


@needs_owners
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("level", range(3))
def test_what_another_user_owns_is_not(place: Path, level: int) -> None:
    given = (place, *place.parents)[level]
    os.chown(given, 12345, 12345)
    assert untrusted(place) == f"{given} belongs to another user"


@needs_owners
def test_a_link_is_judged_by_what_it_leads_to(place: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(place.parent)
    assert untrusted(link / place.name) is None
    place.parents[1].chmod(0o777)
    assert untrusted(link / place.name) is not None


@needs_owners
def test_kernels_from_a_shared_place_are_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiler, "default_root", lambda: tmp_path / "cache")
    monkeypatch.setattr(compiler, "_compile", lambda unit: b"compiled")
    monkeypatch.setattr(compiler, "_processor", lambda: ("any", ""))
    tmp_path.chmod(0o700)
    assert compiler._object(SNAKE) == b"compiled"
    (kept,) = (tmp_path / "cache").rglob("kernels.o")
    assert kept.read_bytes() == b"compiled"
    assert not caplog.records
    monkeypatch.setattr(compiler, "_compile", lambda unit: b"compiled again")
    assert compiler._object(SNAKE) == b"compiled", "found"
    tmp_path.chmod(0o777)
    assert compiler._object(SNAKE) == b"compiled again"
    assert "for this process alone" in caplog.text
    assert len(list((tmp_path / "cache").rglob("kernels.o"))) == 1
    assert ContentCache(tmp_path / "cache").root.is_dir()
