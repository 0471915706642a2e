"""Which logical CPUs share a core, and which cores are the fast ones.

Sources: the kernel's Documentation/admin-guide/cputopology.rst and Documentation/ABI/testing/sysfs-devices-system-cpu
("core_cpus_list", "cpu_capacity"), Apple's "Determining system capabilities" (hw.perflevelN, hw.nperflevels).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from accelerator.hardware.machine import Machine
from accelerator.hardware.parse import integer, read_cpu_list, read_integer

__all__ = ["Topology", "apple", "counted", "linux"]

_CPU = "/sys/devices/system/cpu"
# Below this share of the fastest core's figure a core counts as an efficiency core. Capacity: an RK3588's A55 has 0.52
# of its A76, a phone's middle cores 0.6 and more. Frequency says less, and favoured cores of one kind differ by a few
# per cent: an i7-1260P has 0.72, a Core Ultra 7 155H 0.79.
_CAPACITY_SHARE, _FREQUENCY_SHARE = 0.6, 0.8


@dataclass(frozen=True)
class Topology:
    """`core_of`: logical CPU -> the number of its core; `performance`: logical CPUs of the fast cores."""

    core_of: Mapping[int, int]
    performance: frozenset[int]

    def cores(self, cpus: Iterable[int]) -> int:
        return len({self.core_of.get(cpu, cpu) for cpu in cpus})

    @property
    def threads_per_core(self) -> int:
        return max(Counter(self.core_of.values()).values(), default=1)


def linux(machine: Machine, cpuinfo: Sequence[Mapping[str, str]]) -> Topology | None:
    """From sysfs; what is missing there from the paragraphs of `/proc/cpuinfo`. None when neither names a CPU."""
    paragraphs = {cpu: block for block in cpuinfo if (cpu := integer(block.get("processor"))) is not None}
    online = read_cpu_list(machine, f"{_CPU}/online") or frozenset(paragraphs)
    if not online:
        return None
    core_of: dict[int, int] = {}
    named: dict[tuple[str, str], int] = {}
    for cpu in sorted(online):
        if cpu in core_of:
            continue
        topology = f"{_CPU}/cpu{cpu}/topology"
        # Sibling lists, never core_id: a core_id is unique only within a package, which ARM may report as -1.
        siblings = read_cpu_list(machine, f"{topology}/core_cpus_list")
        siblings = siblings or read_cpu_list(machine, f"{topology}/thread_siblings_list")
        block = paragraphs.get(cpu, {})
        if siblings:
            for sibling in {cpu} | (siblings & online):
                core_of.setdefault(sibling, cpu)
        elif "physical id" in block and "core id" in block:  # x86 writes both
            core_of[cpu] = named.setdefault((block["physical id"], block["core id"]), cpu)
        else:
            core_of[cpu] = cpu
    return Topology(core_of, _performance(machine, online))


def _performance(machine: Machine, online: frozenset[int]) -> frozenset[int]:
    # Hybrid Intel has a performance counter device for each kind of core.
    fast = read_cpu_list(machine, "/sys/devices/cpu_core/cpus") & online
    if fast:
        return fast
    for file, share in (("cpu_capacity", _CAPACITY_SHARE), ("cpufreq/cpuinfo_max_freq", _FREQUENCY_SHARE)):
        figures = {cpu: read_integer(machine, f"{_CPU}/cpu{cpu}/{file}") for cpu in online}
        known = {cpu: figure for cpu, figure in figures.items() if figure is not None and figure > 0}
        if len(known) == len(online):
            return frozenset(cpu for cpu, figure in known.items() if figure >= share * max(known.values()))
    return online


def apple(machine: Machine) -> Topology | None:
    """From sysctl: level 0 is the fastest. macOS has no CPU numbers to speak of, so they are made up, fastest first."""
    levels = []
    for level in range(min(integer(machine.sysctl("hw.nperflevels")) or 0, 8)):
        logical = integer(machine.sysctl(f"hw.perflevel{level}.logicalcpu"))
        physical = integer(machine.sysctl(f"hw.perflevel{level}.physicalcpu")) or logical
        if physical is not None and physical > 0:
            levels.append(_numbered(logical or physical, physical))
    if not levels:
        logical, physical = integer(machine.sysctl("hw.logicalcpu")), integer(machine.sysctl("hw.physicalcpu"))
        return counted(logical, physical, x86=False) if logical else None
    core_of: dict[int, int] = {}
    for numbered in levels:
        base = len(core_of)
        core_of.update({base + cpu: base + core for cpu, core in numbered.items()})
    return Topology(core_of, frozenset(range(len(levels[0]))))


def counted(logical: int | None, physical: int | None, *, x86: bool) -> Topology:
    """From the two counts alone (Windows), siblings side by side; one CPU without a count.

    Fewer than two threads per core on average means a hybrid processor on x86: only its fast cores have two threads, so
    there are `logical - physical` of them, and Windows numbers them first.
    """
    logical = min(max(logical or 1, 1), 1 << 16)
    physical = min(physical, logical) if physical is not None and physical > 0 else logical
    fast = 2 * (logical - physical)
    if x86 and 0 < fast < logical:
        return Topology({cpu: cpu - cpu % 2 if cpu < fast else cpu for cpu in range(logical)}, frozenset(range(fast)))
    return Topology(_numbered(logical, physical), frozenset(range(logical)))


def _numbered(logical: int, physical: int) -> dict[int, int]:
    logical = min(max(logical, 1), 1 << 16)
    physical = min(max(physical, 1), logical)
    return {cpu: cpu * physical // logical for cpu in range(logical)}
