"""Machine code is made once and kept; a compiler that fails is asked once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from accelerator import kernels
from accelerator.cache import ContentCache, default_root
from accelerator.codec import layers
from accelerator.errors import SessionError
from accelerator.kernels import compiler

pytestmark = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")


def test_the_machine_code_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    known = compiler._object()
    monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "_compile", lambda: made.append(1) or known)
    assert [compiler._object() for _ in range(2)] == [known, known]
    assert made == [1]
    (entry,) = ContentCache(tmp_path).entries()
    assert entry.name == "kernels"


def test_a_compiler_that_fails_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def broken() -> bytes:
        asked.append(1)
        raise RuntimeError("no compiler")

    monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "_compile", broken)
    compiler._made.cache_clear()
    try:
        for _ in range(2):
            with pytest.raises(SessionError, match="no compiler"):
                compiler.function()
        x = torch.randn(1, 20, 8)
        expected = x + torch.sin(x).square()
        torch.testing.assert_close(layers.snake(x, None, torch.empty(1, 20, 8)), expected)
    finally:
        compiler._made.cache_clear()
    assert asked == [1]
    assert "no compiler" in caplog.text


def test_damaged_machine_code_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = compiler._object()
    monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "_compile", lambda: known)
    compiler._kept(ContentCache(default_root())).write_bytes(b"no machine code")
    assert compiler._object() == known
