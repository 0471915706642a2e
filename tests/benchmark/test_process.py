"""Workers that answer, fail, die and hang."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accelerator.benchmark import BenchOptions, run
from accelerator.benchmark.plan import Plan
from accelerator.benchmark.process import ArmFailed, ArmGone, Process
from accelerator.errors import EngineError
from tests.benchmark.workers import told

QUICK = BenchOptions(quick=True)


def test_a_worker_answers_errors_and_goes_on() -> None:
    process = Process(told)
    try:
        with pytest.raises(ArmFailed, match="EngineError: no engine called 'nobody'"):
            process.ask("open", plan=_plan(engine="nobody", checkpoint="x"), arm="pytorch-right-sized", weights="x")
        assert process.ask("memory")["peak_memory"] > 1_000_000
    finally:
        process.close()


def test_a_worker_that_dies_tells_why() -> None:
    process = Process(told)
    try:
        process._child.kill()
        with pytest.raises(ArmGone, match=r"ended with (signal 9|status)"):
            process.ask("memory")
    finally:
        process.close()


def test_a_worker_that_does_not_answer_is_ended() -> None:
    process = Process(told, patience_s=0.0)
    with pytest.raises(ArmGone, match="no answer to 'memory'"):
        process.ask("memory")
    assert process._child.poll() is not None


def test_an_engine_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    options = BenchOptions(quick=True, checkpoint=tmp_path / "missing.safetensors")
    with pytest.raises(EngineError, match=r"cannot read the weights .*missing\.safetensors"):
        run(options, told)


def _plan(**options: Any) -> dict[str, Any]:
    plan = Plan.of(QUICK).to_dict()
    plan["options"] |= options
    return plan
