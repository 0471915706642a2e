"""Cores, threads and caches: those there are, and those that may be used."""

from __future__ import annotations

import pytest

from accelerator.hardware import (
    HardwareProfile,
    RecordedMachine,
    choose_tier,
    detect,
)
from tests.hardware.machines import KIB, recording, replay


def with_affinity(name: str, cpus: list[int]) -> HardwareProfile:
    return detect(machine=RecordedMachine(recording(name) | {"affinity": cpus}))


@pytest.mark.parametrize(
    ("name", "cpus", "cores", "performance"),
    [
        ("laptop_avx2", [0, 4], 1, 1),  # both threads of one core
        ("laptop_avx2", [0, 1], 2, 2),
        ("laptop_hybrid", [0, 1, 8, 9, 10], 4, 1),
        ("laptop_hybrid", [8, 9, 10], 3, 3),  # only efficiency cores: they are what there is
        ("rk3588", [3, 4, 5], 3, 2),
        ("windows_hybrid", [6, 7, 8], 2, 1),
        ("laptop_avx2", [90, 91], 4, 4),  # CPUs that are not there: believed not at all
        ("laptop_avx2", [], 4, 4),
    ],
)
def test_affinity(name: str, cpus: list[int], cores: int, performance: int) -> None:
    profile = with_affinity(name, cpus)
    assert (profile.usable_cores, profile.usable_performance_cores) == (cores, performance)
    assert choose_tier(profile).threads == performance


def test_caches_are_those_of_a_usable_core() -> None:
    assert with_affinity("laptop_hybrid", [0]).cache_l2 == 1280 * KIB
    assert with_affinity("laptop_hybrid", [9]).cache_l2 == 2048 * KIB


def without(name: str, *fragments: str) -> HardwareProfile:
    data = recording(name)
    kept = {path: text for path, text in data["files"].items() if not any(part in path for part in fragments)}
    return detect(machine=RecordedMachine(data | {"files": kept}))


def test_missing_topology_files() -> None:
    assert without("server_avx512", "/topology/").physical_cores == 16  # from /proc/cpuinfo, which counts per socket
    assert without("vm_epyc", "/topology/").physical_cores == 1
    assert without("graviton3", "/topology/").physical_cores == 4  # /proc/cpuinfo knows no cores there
    assert without("laptop_avx2", "core_cpus_list").physical_cores == 4
    assert without("laptop_avx2", "/sys/").physical_cores == 4
    assert without("laptop_avx2", "/proc/cpuinfo").physical_cores == 4


def test_hybrid_without_performance_counters() -> None:
    frequency = {
        f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq": f"{4700000 if cpu < 8 else 3400000}\n"
        for cpu in range(16)
    }
    gone = {"/sys/devices/cpu_core/cpus": None, "/sys/devices/cpu_atom/cpus": None}
    assert replay("laptop_hybrid", **gone).efficiency_cores == 0  # cannot tell
    profile = replay("laptop_hybrid", **gone, **frequency)
    assert (profile.performance_cores, profile.efficiency_cores) == (4, 8)
