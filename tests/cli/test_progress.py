"""What is drawn on a terminal, at moments of a clock that the test sets."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from accelerator.cli.console import Output
from accelerator.export.component import ProgressEvent


@pytest.fixture
def console():
    from rich.console import Console

    return Console(force_terminal=True, width=100, color_system=None, file=io.StringIO())


@pytest.fixture
def drawn(console: Any):
    from rich.progress import Progress

    from accelerator.cli.progress import Bars, columns

    now = [0.0]
    progress = Progress(*columns(100), console=console, get_time=lambda: now[0], auto_refresh=False)
    bars = Bars(progress)

    def lines(seconds: float) -> list[str]:
        now[0] += seconds
        with console.capture() as capture:
            console.print(progress.get_renderable())
        return [" ".join(line.split()) for line in capture.get().splitlines()]

    return bars, progress, lines


def test_a_stage_without_a_known_end_pulses_and_its_clock_runs(drawn: Any):
    bars, progress, lines = drawn
    bars(ProgressEvent("decoder", "build", 3, 4, "fp32"))
    lines(5)
    (task,) = progress.tasks
    assert (task.completed, task.total) == (3, 4)
    bars(ProgressEvent("decoder", "build", 4, 4, "fp32"))
    bars(ProgressEvent("decoder", "prove", precision="fp32"))
    (line,) = lines(33)
    assert line.endswith("comparing with PyTorch 0:00:33")
    (task,) = progress.tasks
    assert (task.total, task.finished) == (None, False)
    assert lines(60)[0].endswith("0:01:33")


def test_the_last_step_is_not_the_end(drawn: Any):
    bars, progress, lines = drawn
    bars(ProgressEvent("decoder", "build", 4, 4, "fp32"))
    (line,) = lines(7)
    assert line.endswith("exporting 0:00:07")
    assert progress.tasks[0].total is None


def test_a_stage_within_another(drawn: Any):
    bars, _, lines = drawn
    bars(ProgressEvent("text2semantic", "prove", precision="int8"))
    bars(ProgressEvent("snake kernels", "compile"))
    told = lines(20)
    assert any("text2semantic int8" in line and "done" in line for line in told)
    assert any("kernels" in line and line.endswith("compiling for this processor 0:00:20") for line in told)
    bars(ProgressEvent("text2semantic", "probe", 1, 3, "int8"))
    told = lines(2)
    assert any("text2semantic int8" in line and line.endswith("measuring what is faster 0:00:02") for line in told)
    assert any("kernels" in line and "done" in line for line in told)


def test_speech_tells_how_far_it_is(drawn: Any):
    bars, _, lines = drawn
    seconds = [0.0]
    bars(ProgressEvent("decoder", "ready"))
    bars.speaking(lambda: f"{seconds[0]:.1f} s spoken")
    seconds[0] = 12.5
    assert lines(3)[-1].endswith("12.5 s spoken 0:00:03")


def test_on_a_terminal_only(console: Any, capsys: pytest.CaptureFixture[str]):
    from accelerator.cli.progress import bars

    with Output().progress() as receive:  # not a terminal here
        receive(ProgressEvent("decoder", "build", 1, 4, "fp32"))
        receive.speaking(lambda: "")
    assert capsys.readouterr() == ("", "")
    with bars(console) as receive:
        receive(ProgressEvent("decoder", "build", 1, 4, "fp32"))
        receive(ProgressEvent("encoder", "prove", precision="fp32"))
    text = console.file.getvalue()
    assert "decoder fp32" in text
    assert "comparing with PyTorch" in text


def test_compiling_is_told_to_who_prepares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from accelerator.export.component import telling
    from accelerator.kernels import compiler
    from accelerator.kernels.units.snake import SNAKE

    monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "_compile", lambda unit: b"code")
    monkeypatch.setattr(compiler, "_processor", lambda: ("any", ""))
    events: list[ProgressEvent] = []
    with telling(events.append):
        assert compiler._object(SNAKE) == b"code"
        compiler._object(SNAKE)  # found: nothing is compiled
    compiler._object(SNAKE)
    assert events == [ProgressEvent("snake kernels", "compile")]
