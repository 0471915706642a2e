"""Machine code is made once and kept; a compiler that fails is asked once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import kernels
from accelerator.cache import ContentCache, default_root
from accelerator.codec import convolutions, layers
from accelerator.codec.dense import Dense
from accelerator.errors import SessionError
from accelerator.kernels import compiler
from accelerator.kernels.llm.team import Team
from accelerator.kernels.units.snake import SNAKE
from accelerator.kernels.units.step import STEP
from tests.kernels.llm.stacks import noise

pytestmark = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")


def test_the_machine_code_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "_compile", lambda unit: made.append(unit.name) or unit.name.encode())
    for unit in (SNAKE, STEP, SNAKE, STEP):
        assert compiler._object(unit) == unit.name.encode()
    assert made == ["snake", "step"]
    assert {entry.name for entry in ContentCache(tmp_path).entries()} == {"snake kernels", "step kernels"}


def test_a_layer_waits_for_its_own_kernels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(compiler, "_made", lambda unit: asked.append(unit.name) or SessionError("not now"))
    made: list[Any] = [
        lambda: kernels.Filter((32, 7, 32), lambda: noise(32, 7, 32), None, 1),
        lambda: Team(1),
        lambda: kernels.Single(noise(1, 7, 32), None),
    ]
    for layer in made:
        with pytest.raises(SessionError, match="not now"):
            layer()
    assert asked == ["filter", "step", "single"]


def test_where_some_kernels_cannot_be_compiled_others_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = compiler._made

    def broken(unit: compiler.Unit) -> Any:
        return SessionError("no filters") if unit.name == "filter" else found(unit)

    monkeypatch.setattr(compiler, "_made", broken)
    kernel, x = torch.from_numpy(noise(32, 2, 32)), torch.from_numpy(noise(1, 40, 32))
    instead, plain = convolutions.convolver(kernel, None, form="int16"), convolutions.Plain(kernel, None)
    assert isinstance(instead, Dense)
    torch.testing.assert_close(instead(x), plain(x), rtol=0, atol=0.05)


def test_a_compiler_that_fails_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def broken(unit: compiler.Unit) -> bytes:
        asked.append(1)
        raise RuntimeError("no compiler")

    monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "_compile", broken)
    compiler._made.cache_clear()
    try:
        for _ in range(2):
            with pytest.raises(SessionError, match="no compiler"):
                compiler.function(SNAKE)
        x = torch.randn(1, 20, 8)
        expected = x + torch.sin(x).square()
        torch.testing.assert_close(layers.snake(x, None, torch.empty(1, 20, 8)), expected)
    finally:
        compiler._made.cache_clear()
    assert asked == [1]
    assert "no compiler" in caplog.text


def test_damaged_machine_code_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "_compile", lambda unit: b"machine code")
    compiler._kept(SNAKE, ContentCache(default_root())).write_bytes(b"no machine code")
    assert compiler._object(SNAKE) == b"machine code"


# Activations of codecs


def test_kernels_run_while_another_thread_has_llvms_lock() -> None:
    """A child forked at that moment would wait for it for ever."""
    ffi = pytest.importorskip("llvmlite.binding.ffi")
    x = np.linspace(-3, 3, 4000 * 64, dtype=np.float32).reshape(4000, 64)

    def snaked() -> np.ndarray:
        out = np.zeros_like(x)
        assert kernels.snake(x.ctypes.data, None, out.ctypes.data, *x.shape, low=False, low_out=False, threads=2)
        return out

    expected, held, done = snaked(), threading.Event(), threading.Event()

    def hold() -> None:
        with ffi.lib._lock:
            held.set()
            done.wait(60)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(hold)
        assert held.wait(10)
        try:
            np.testing.assert_array_equal(pool.submit(snaked).result(timeout=30), expected)
        finally:
            done.set()
