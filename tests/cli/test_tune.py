"""`tune`: what is measured, and what changes by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import accelerator
from accelerator.cli.tune import _way
from accelerator.errors import CacheError
from accelerator.pipeline.tuning import ORIGINAL, Tuning, Way
from accelerator.runtime.options import RunOptions
from tests.cli.commands import TINY, answer, run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The parts are real, their times are not: what is measured is told by `seconds`, and how busy others are."""
    told = {"onnxruntime": 1.0, "pytorch": 2.0, "others": 0.0}
    adapter = accelerator.engines.reference.ReferenceAdapter
    own = adapter.parts

    def parts(self: Any) -> list[Any]:
        from dataclasses import replace

        return [replace(part, probe=lambda call, torch=part.original: seconds(call == torch)) for part in own(self)]

    def seconds(is_torch: bool) -> float:
        return told["pytorch" if is_torch else "onnxruntime"]

    monkeypatch.setattr(adapter, "parts", parts)
    monkeypatch.setattr("accelerator.hardware.busy.BusyClock.others_cpus", lambda _: told["others"])
    return told


def test_changes_what_a_busy_machine_chose(machine: dict[str, float], copied: Path):
    args = ("tune", *TINY, "--precision", "fp32", "--threads", "1", "--cache-dir", copied)
    known = set(answer("doctor", "--cache-dir", copied)["warnings"])  # what was truly measured may wait, too
    machine.update(others=1.5, onnxruntime=3.0)
    first = answer(*args)
    assert first["others_cpus"] == 1.5
    for part in first["parts"].values():
        assert (part["before"], part["result"]) == ({}, "measured for the first time")
        assert (part["after"]["backend"], part["after"]["calm"]) == ("original", False)
    warnings = answer("doctor", "--cache-dir", copied)["warnings"]
    (waiting,) = [w for w in warnings if w.startswith("Measured while others kept up to")]
    assert "CPUs busy: reference decoder, reference encoder, reference text2semantic." in waiting
    machine.update(others=0.0, onnxruntime=1.0)
    second = answer(*args)
    for part in second["parts"].values():
        assert (part["before"]["backend"], part["after"]["backend"]) == ("original", "onnxruntime")
        assert (part["after"]["calm"], part["result"]) == (True, "changed: a seed sounds different")
    warnings = answer("doctor", "--cache-dir", copied)["warnings"]
    assert not any("tune" in warning for warning in warnings if warning not in known)
    third = answer(*args)
    assert third["others_cpus"] is None
    assert {part["result"] for part in third["parts"].values()} == {"known; --again measures it"}
    machine.update(others=1.0, onnxruntime=9.0)
    fourth = answer(*args, "--again")
    for part in fourth["parts"].values():
        assert part["after"]["backend"] == "onnxruntime"
        assert part["result"] == "the same: the machine was busier than when it was measured"


def test_for_people(machine: dict[str, float], copied: Path):
    args = ("tune", *TINY, "--precision", "fp32", "--threads", "1", "--cache-dir", copied)
    machine.update(others=1.5)
    result = run(*args)
    assert result.exit_code == 0
    for text in ("text2semantic", "onnxruntime-1: 1.00 s", "busy: 1.5 CPUs", "measured for the first time"):
        assert text in result.stdout
    assert "others kept 1.5 CPUs busy meanwhile" in result.stderr
    machine.update(others=0.0)
    result = run(*args, "--again")
    assert "calm" in result.stdout
    assert "The machine was calm" in result.stdout
    assert "busy" not in result.stderr


def test_segments_that_are_spoken_one_by_one_are_not_called_original():
    pool = Way("pool", RunOptions(threads=2, backend="pool"))
    for part, seconds, shown in (
        ("segments", 0.081, "one by one: 67.0 ms"),
        ("segments", 0.041, "pool-2: 41.0 ms"),
        ("graph", 0.081, "original: 67.0 ms"),
    ):
        assert _way(Tuning.of(part, {pool: seconds, ORIGINAL: 0.067}, 0.0, 1.0).to_dict()) == shown


def test_a_part_that_cannot_be_exported_is_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def fail(*args: object, **kwargs: object) -> None:
        raise CacheError("no room")

    monkeypatch.setattr("accelerator.pipeline.selection.export_best", fail)
    found = answer("tune", *TINY, "--cache-dir", tmp_path, exit_code=1)
    assert "no room" in found["error"]["message"]
    assert {part["result"] for part in found["parts"].values()} == {"not measured"}


def test_help_says_what_a_seed_promises():
    assert "a seed" in run("tune", "--help").stdout
    told = " ".join(run("synth", "--help").stdout.replace("│", " ").split())
    assert "Same seed, same audio, on one machine with one tuning" in told
