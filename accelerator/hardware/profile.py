"""`detect() -> HardwareProfile`: what this process may use of the machine it runs on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from accelerator.errors import InvalidOption
from accelerator.hardware import processor, topology
from accelerator.hardware.cgroup import cpu_quota, memory_limit
from accelerator.hardware.machine import LocalMachine, Machine
from accelerator.hardware.parse import blocks, meminfo, read_cpu_list

__all__ = ["HardwareProfile", "detect"]

_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}  # Windows and Apple names -> Linux names
_STORE_FILE = "hardware.json"
_SLOW_FACTS = ("brand_raw", "vendor_id_raw", "family", "model", "stepping", "flags")


@dataclass(frozen=True, kw_only=True)
class HardwareProfile:
    """One machine as one process may use it. Sizes in bytes; None where unknown, or where there is no limit."""

    os: str  # "linux", "darwin", "windows"
    kernel: str
    arch: str  # "x86_64", "aarch64", ...
    brand: str
    vendor: str
    family_model: str  # "6-154-3" (family, model, stepping) or "0x41:0xd0c" (implementer, part); "" if unknown
    isa: tuple[str, ...]  # a subset of `processor.ISA_FLAGS`, in its order
    virtualised: bool
    numa_nodes: int
    logical_cpus: int
    physical_cores: int
    threads_per_core: int
    performance_cores: int  # all of them, unless the processor is hybrid
    efficiency_cores: int
    affinity: tuple[int, ...] | None  # logical CPUs this process may run on
    cpu_quota: float | None  # CPUs' worth of time, from control groups
    usable_cpus: float  # the smaller of affinity and quota
    usable_cores: int  # physical cores within affinity, at most the quota, at least 1
    usable_performance_cores: int  # the fast ones of these, or all if affinity leaves none
    cache_l1d: int | None  # per instance, as a usable fast core sees it
    cache_l2: int | None
    cache_l3: int | None
    memory_total: int | None
    memory_available: int | None  # now, and never more than the limit
    memory_limit: int | None  # from control groups

    @property
    def memory_usable(self) -> int | None:
        """Bytes this process could ever have: the total or the limit, whichever is smaller."""
        return min((value for value in (self.memory_total, self.memory_limit) if value is not None), default=None)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when tuning might: not with free memory, the kernel or which CPUs are ours."""
        facts = asdict(self)
        for passing in ("kernel", "numa_nodes", "affinity", "memory_total", "memory_available", "memory_limit"):
            del facts[passing]
        # The power of two above: what the kernel keeps for itself varies by a little.
        facts["memory"] = (self.memory_usable or 0).bit_length()
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        facts = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in facts.items()}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> HardwareProfile:
        """The inverse of `to_dict`. Raises `InvalidOption` unless exactly the fields are there."""
        names = {field.name for field in fields(cls)}
        if wrong := names.symmetric_difference(facts):
            raise InvalidOption(f"not a hardware profile of this version: {sorted(wrong)}; call detect() again")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in facts.items()}
        return cls(**values)


def detect(
    root: str | os.PathLike[str] | None = None,
    *,
    store: str | os.PathLike[str] | None = None,
    machine: Machine | None = None,
) -> HardwareProfile:
    """Look at the machine. Never raises; what cannot be read is None, or the most careful value.

    `root` is put before every path that is read. `store` is a directory for `hardware.json`, which keeps the answers
    that take over a second (py-cpuinfo's, needed only where neither /proc/cpuinfo nor sysctl names the processor) until
    the next boot. `machine` replaces the operating system, e.g. by a `RecordedMachine`.
    """
    machine = machine or LocalMachine(root)
    system = machine.platform()
    os_name, arch = system.system.lower(), system.machine.lower()
    arch = _ARCHITECTURES.get(arch, arch)
    cpuinfo = blocks(machine.read_text("/proc/cpuinfo"))
    slow: Mapping[str, Any] = {}
    brand = processor.brand(machine, cpuinfo)
    if not brand:
        slow = _slow_facts(machine, Path(store) if store is not None else None)
        brand = str(slow.get("brand_raw", ""))
    cpus = topology.linux(machine, cpuinfo) or topology.apple(machine)
    if cpus is None:
        cpus = topology.counted(*machine.cpu_counts(), x86=arch in ("x86_64", "x86"))
    flags = processor.flags(machine, cpuinfo, slow)
    affinity = machine.affinity()
    online = frozenset(cpus.core_of)
    allowed = online if affinity is None else (affinity & online or online)
    fast_allowed = allowed & cpus.performance or allowed
    quota = cpu_quota(machine)
    at_most = len(online) if quota is None else max(1, math.floor(quota))
    total, available, limit = _memory(machine)
    performance = cpus.cores(cpus.performance)
    return HardwareProfile(
        os=os_name,
        kernel=system.release,
        arch=arch,
        brand=brand or arch or "unknown",
        vendor=processor.vendor(machine, cpuinfo, slow),
        family_model=processor.family_model(machine, cpuinfo, slow),
        isa=tuple(flag for flag in processor.ISA_FLAGS if flag in flags),
        virtualised=processor.virtualised(machine, flags),
        numa_nodes=len(read_cpu_list(machine, "/sys/devices/system/node/online")) or 1,
        logical_cpus=len(online),
        physical_cores=cpus.cores(online),
        threads_per_core=cpus.threads_per_core,
        performance_cores=performance,
        efficiency_cores=cpus.cores(online) - performance,
        affinity=None if affinity is None else tuple(sorted(affinity)),
        cpu_quota=quota,
        usable_cpus=float(len(allowed)) if quota is None else min(float(len(allowed)), quota),
        usable_cores=min(cpus.cores(allowed), at_most),
        usable_performance_cores=min(cpus.cores(fast_allowed), at_most),
        memory_total=total,
        memory_available=available,
        memory_limit=limit,
        **processor.caches(machine, min(fast_allowed), slow),
    )


def _memory(machine: Machine) -> tuple[int | None, int | None, int | None]:
    """Total, available and limit."""
    known = meminfo(machine.read_text("/proc/meminfo"))
    total, available = known.get("MemTotal"), known.get("MemAvailable")
    if total is None:
        total, available = machine.virtual_memory() or (None, None)
    limit = memory_limit(machine)
    if limit is not None and total is not None and limit >= total:
        limit = None
    if available is not None and limit is not None:
        available = min(available, limit)
    return total, available, limit


def _slow_facts(machine: Machine, store: Path | None) -> Mapping[str, Any]:
    """py-cpuinfo's answers, from the store if it holds this boot's."""
    boot = machine.read_text("/proc/sys/kernel/random/boot_id") or machine.sysctl("kern.bootsessionuuid") or ""
    key = [1, *machine.platform(), boot.strip(), machine.cpu_counts()[0]]
    try:
        kept = json.loads((store / _STORE_FILE).read_text(encoding="utf-8")) if store else None
        if isinstance(kept, dict) and kept.get("key") == key and isinstance(kept.get("facts"), dict):
            return kept["facts"]
    except (OSError, ValueError, RecursionError):
        pass  # missing or damaged: look again
    info = machine.cpu_info()
    facts = {name: info[name] for name in (*_SLOW_FACTS, *processor.CACHES.values()) if info.get(name) is not None}
    if facts and store:
        _publish(store, {"key": key, "facts": facts})
    return facts


def _publish(store: Path, content: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(content)
        store.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=store, prefix=f".{_STORE_FILE}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, store / _STORE_FILE)
        except OSError:
            os.unlink(name)
            raise
    except (OSError, TypeError, ValueError):
        pass  # a store that cannot be written only costs the second next time
