"""Limits that control groups put on this process: CPUs and memory, version 1 and 2.

A limit anywhere between the process's own group and the topmost visible one binds: the smallest along that path counts.
Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst ("cpu.max", "memory.max", "Namespace"),
Documentation/scheduler/sched-bwc.rst ("cpu.cfs_quota_us"), Documentation/admin-guide/cgroup-v1/memory.rst, and
proc(5) for mountinfo.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from accelerator.hardware.machine import Machine
from accelerator.hardware.parse import integer, read_integer

__all__ = ["cpu_quota", "memory_limit"]

_DEPTH = 64  # levels walked upwards; real trees have fewer than ten
_DEFAULT_PERIOD_US = 100_000
_USUAL = {  # where to look when mountinfo cannot be read
    "": ["/sys/fs/cgroup"],
    "cpu": ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"],
    "memory": ["/sys/fs/cgroup/memory"],
}


class _Mount(NamedTuple):
    root: str  # the group that the mount point shows
    point: str
    controllers: frozenset[str]  # of version 1; {""} for version 2


def _mounts(machine: Machine) -> list[_Mount]:
    # 36 35 98:0 /root /point rw,noatime master:1 - cgroup2 source rw,superoptions
    found = []
    for line in (machine.read_text("/proc/self/mountinfo") or "").splitlines():
        left, separator, right = line.partition(" - ")
        before, after = left.split(), right.split()
        if not separator or len(before) < 6 or not after:
            continue
        root, point = (_unescape(field).rstrip("/") for field in before[3:5])
        if after[0] == "cgroup2":
            found.append(_Mount(root, point, frozenset([""])))
        elif after[0] == "cgroup" and len(after) >= 3:
            found.append(_Mount(root, point, frozenset(after[2].split(","))))
    return found


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-3][0-7]{2})", lambda octal: chr(int(octal[1], 8)), field)


def _own_path(machine: Machine, controller: str) -> str | None:
    """The process's group, e.g. `/system.slice/x.service`; "" is the (namespace's) root."""
    for line in (machine.read_text("/proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        names, colon, path = rest.partition(":")
        if colon and (controller in names.split(",") if controller else (number == "0" and names == "")):
            return path.rstrip("/")
    return None


def _directories(machine: Machine, controller: str) -> Iterator[str]:
    """Directories whose limits bind, the process's own first."""
    path = _own_path(machine, controller)
    if path is None:
        return
    mounts = [mount for mount in _mounts(machine) if controller in mount.controllers]
    ours = [mount for mount in mounts if path == mount.root or path.startswith(mount.root + "/")]
    if not mounts:
        ours = [_Mount("", point, frozenset()) for point in _USUAL[controller]]
    elif not ours and len(mounts) == 1:
        # The path is in another namespace's terms (a container's bind mount): the mount point is all we can see.
        ours = [mounts[0]._replace(root=path)]
    for mount in ours:
        below = path[len(mount.root) :]
        if ".." in below.split("/"):  # outside our namespace
            below = ""
        for _ in range(_DEPTH):
            yield mount.point + below
            if not below:
                break
            below = below.rpartition("/")[0]


def _smallest(machine: Machine, controller: str, limit: Callable[[Machine, str], float | None]) -> float | None:
    limits = (limit(machine, directory) for directory in _directories(machine, controller))
    return min((value for value in limits if value is not None and value > 0), default=None)


def _cpus_v2(machine: Machine, directory: str) -> float | None:
    fields = (machine.read_text(f"{directory}/cpu.max") or "").split()  # "max 100000" or "150000 100000"
    quota = integer(fields[0]) if fields else None
    period = integer(fields[1]) if len(fields) > 1 else _DEFAULT_PERIOD_US
    return quota / period if quota and period and period > 0 else None


def _cpus_v1(machine: Machine, directory: str) -> float | None:
    quota = read_integer(machine, f"{directory}/cpu.cfs_quota_us")  # -1: no limit
    period = read_integer(machine, f"{directory}/cpu.cfs_period_us") or _DEFAULT_PERIOD_US
    return quota / period if quota and period > 0 else None


def _bytes(file: str) -> Callable[[Machine, str], float | None]:
    return lambda machine, directory: read_integer(machine, f"{directory}/{file}")


def cpu_quota(machine: Machine) -> float | None:
    """CPUs' worth of time this process may use per period, fractional; None without a limit."""
    limits = [_smallest(machine, "", _cpus_v2), _smallest(machine, "cpu", _cpus_v1)]
    return min((value for value in limits if value is not None), default=None)


def memory_limit(machine: Machine) -> int | None:
    """Bytes this process may use; None without a limit. Version 1 writes "no limit" as nearly 2**63."""
    limits = [
        _smallest(machine, "", _bytes("memory.max")),
        _smallest(machine, "memory", _bytes("memory.limit_in_bytes")),
    ]
    return min((int(value) for value in limits if value is not None and value < 1 << 60), default=None)
