"""The harness of one kernel: what is right is told from what is wrong, and each kernel is right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from accelerator import kernels
from accelerator.errors import SessionError
from accelerator.kernels import check, compiler
from accelerator.kernels.conv import layers

compiled = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")


def test_without_a_name_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([]) == 0
    assert capsys.readouterr().out.split() == list(check.CHECKS)
    known = {"step", "draw", "pack", "filter", "mix", "dense", "quantize", "single", "snake", "gelu", "order"}
    assert known | ({"chain"} if kernels.multiplies_chains() else set()) == set(check.CHECKS)


def test_a_name_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        check.main(["matmul"])
    assert "invalid choice: 'matmul'" in capsys.readouterr().err


@compiled
@pytest.mark.parametrize("name", check.CHECKS)
def test_each_kernel_is_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([name]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{name} ")
    assert " ok " in line
    assert ("GFLOP/s" in line) == (name in ("filter", "mix", "dense", "chain"))


@compiled
@pytest.mark.parametrize("wrong", [1.0, np.nan])
def test_a_wrong_answer_is_told(
    wrong: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = layers.Single.__call__

    def broken(layer: layers.Single, x: int, given: int, out: int, *, threads: int) -> None:
        layer._weights[3] = wrong
        run(layer, x, given, out, threads=threads)

    monkeypatch.setattr(layers.Single, "__call__", broken)
    assert check.main(["single"]) == 1
    assert " WRONG " in capsys.readouterr().out


@compiled
def test_one_that_is_wrong_decides_over_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    snake, units = check.CHECKS["snake"]
    off = (lambda: replace(snake(), error=1.0)), units
    monkeypatch.setattr(check, "CHECKS", {"wrong": off, "snake": (snake, units)})
    assert check.main(["all"]) == 1
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["WRONG", "ok"]


@compiled
def test_a_kernel_that_cannot_be_compiled_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiler, "_made", lambda unit: SessionError(f"{unit.name} is damaged"))
    assert check.main(["mix"]) == 1
    assert "mix is damaged" in capsys.readouterr().err


def test_where_there_are_none_it_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ACCELERATOR_KERNELS", "none")
    assert check.main(["snake"]) == 1
    assert "ACCELERATOR_KERNELS=none" in capsys.readouterr().err
