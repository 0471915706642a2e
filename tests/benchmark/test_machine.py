"""The machine that is measured, and who else is on it."""

from __future__ import annotations

from accelerator.benchmark.machine import BusyClock, busy_warning, memory, others_warning


def test_a_busy_machine_is_told() -> None:
    machine = {"load_average": [1.5, 1.0, 1.0], "hardware": {"usable_cpus": 2.0}, "others_cpus": 0.6}
    assert "load 1.5 on 2 CPUs" in str(busy_warning(machine))
    assert "0.6 CPUs" in str(others_warning(machine))
    idle = {"load_average": [0.1, 1.0, 1.0], "hardware": {"usable_cpus": 2.0}, "others_cpus": 0.01}
    assert busy_warning(idle) is None
    assert others_warning(idle) is None
    assert busy_warning({**idle, "load_average": None}) is None
    assert others_warning({**idle, "others_cpus": None}) is None


def test_memory_and_others_are_measured() -> None:
    figures = memory()
    assert figures["peak_memory"] > 1_000_000
    others = BusyClock().others_cpus()
    assert others is None or others >= 0
