"""Where facts about a machine come from: the operating system, or a recording of one.

Everything `detect` learns passes through a `Machine`, so a machine that is not at hand can be replayed from a JSON
file. A method returns None (or something empty) for what it cannot find out; it never raises.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

__all__ = ["LocalMachine", "Machine", "Platform", "RecordedMachine", "Recorder"]


class Platform(NamedTuple):
    """`platform.system()`, `platform.machine()` and `platform.release()`."""

    system: str
    machine: str
    release: str


class Machine(Protocol):
    """The only interface to the system that detection uses."""

    def read_text(self, path: str) -> str | None: ...
    def listdir(self, path: str) -> list[str]: ...
    def sysctl(self, name: str) -> str | None: ...
    def affinity(self) -> frozenset[int] | None: ...
    def virtual_memory(self) -> tuple[int, int] | None: ...  # total, available in bytes
    def cpu_counts(self) -> tuple[int | None, int | None]: ...  # logical, physical
    def cpu_info(self) -> dict[str, Any]: ...  # slow: over a second
    def platform(self) -> Platform: ...


@functools.cache
def _py_cpuinfo() -> dict[str, Any]:
    try:
        import cpuinfo

        info = cpuinfo.get_cpu_info()  # starts sys.executable, which an embedding program may not have
    except (ImportError, OSError, TypeError, ValueError):
        return {}
    return dict(info or {})


@functools.cache
def _darwin_sysctl() -> dict[str, str]:
    # One process for all names: unknown ones only add a line on stderr.
    names = ["hw", "machdep.cpu", "kern.hv_vmm_present", "kern.bootsessionuuid"]
    try:
        out = subprocess.run(["/usr/sbin/sysctl", *names], capture_output=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = (line.partition(":") for line in out.decode(errors="replace").splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


class LocalMachine:
    """This machine. `root` is put before every path, for a host mounted elsewhere."""

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = Path(root) if root is not None else Path("/")

    def read_text(self, path: str) -> str | None:
        try:
            return (self.root / path.lstrip("/")).read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError):
            return None

    def listdir(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root / path.lstrip("/")))
        except (OSError, ValueError):
            return []

    def sysctl(self, name: str) -> str | None:
        return _darwin_sysctl().get(name) if platform.system() == "Darwin" else None

    def affinity(self) -> frozenset[int] | None:
        try:
            if hasattr(os, "sched_getaffinity"):
                return frozenset(os.sched_getaffinity(0))
            import psutil

            return frozenset(psutil.Process().cpu_affinity())
        except (ImportError, AttributeError, OSError):  # macOS has no affinity
            return None

    def virtual_memory(self) -> tuple[int, int] | None:
        try:
            import psutil

            memory = psutil.virtual_memory()
        except (ImportError, OSError, RuntimeError):
            return None
        return int(memory.total), int(memory.available)

    def cpu_counts(self) -> tuple[int | None, int | None]:
        try:
            import psutil

            return psutil.cpu_count(), psutil.cpu_count(logical=False)
        except (ImportError, OSError, RuntimeError):
            return os.cpu_count(), None

    def cpu_info(self) -> dict[str, Any]:
        return dict(_py_cpuinfo())

    def platform(self) -> Platform:
        return Platform(platform.system(), platform.machine(), platform.release())


class RecordedMachine:
    """A machine replayed from a recording, as `Recorder.data` holds it. What is not in it does not exist."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data

    def read_text(self, path: str) -> str | None:
        return self.data.get("files", {}).get(path)

    def listdir(self, path: str) -> list[str]:
        prefix = path.rstrip("/") + "/"
        below = (name[len(prefix) :] for name in self.data.get("files", {}) if name.startswith(prefix))
        return sorted({name.split("/")[0] for name in below})

    def sysctl(self, name: str) -> str | None:
        return self.data.get("sysctl", {}).get(name)

    def affinity(self) -> frozenset[int] | None:
        cpus = self.data.get("affinity")
        return None if cpus is None else frozenset(cpus)

    def virtual_memory(self) -> tuple[int, int] | None:
        memory = self.data.get("virtual_memory")
        return None if memory is None else (memory[0], memory[1])

    def cpu_counts(self) -> tuple[int | None, int | None]:
        logical, physical = self.data.get("cpu_counts") or (None, None)
        return logical, physical

    def cpu_info(self) -> dict[str, Any]:
        return dict(self.data.get("cpu_info", {}))

    def platform(self) -> Platform:
        return Platform(*self.data.get("platform", ("", "", "")))


class Recorder:
    """Passes every question on to `machine` and keeps the answers in `data`, ready for JSON and `RecordedMachine`.

    A recording may be shared: control group names that look like identifiers are replaced, the boot id is left out, and
    of `/proc/self/mountinfo` only control groups are kept.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.data: dict[str, Any] = {"platform": list(machine.platform()), "files": {}, "sysctl": {}}

    def read_text(self, path: str) -> str | None:
        text = self.machine.read_text(path)
        if text is not None and not path.endswith("boot_id"):
            if path.endswith("mountinfo"):
                text = "".join(line for line in text.splitlines(keepends=True) if " - cgroup" in line)
            scrub = functools.partial(re.compile(r"[0-9a-f]{12,}(-[0-9a-f]+)*").sub, "0" * 12)
            in_cgroup = "cgroup" in path or path.endswith("mountinfo")
            self.data["files"][scrub(path) if in_cgroup else path] = (
                scrub(text) if path.startswith("/proc/self") else text
            )
        return text

    def listdir(self, path: str) -> list[str]:
        return self.machine.listdir(path)

    def sysctl(self, name: str) -> str | None:
        value = self.machine.sysctl(name)
        if value is not None and name != "kern.bootsessionuuid":
            self.data["sysctl"][name] = value
        return value

    def affinity(self) -> frozenset[int] | None:
        cpus = self.machine.affinity()
        self.data["affinity"] = None if cpus is None else sorted(cpus)
        return cpus

    def virtual_memory(self) -> tuple[int, int] | None:
        memory = self.machine.virtual_memory()
        self.data["virtual_memory"] = None if memory is None else list(memory)
        return memory

    def cpu_counts(self) -> tuple[int | None, int | None]:
        counts = self.machine.cpu_counts()
        self.data["cpu_counts"] = list(counts)
        return counts

    def cpu_info(self) -> dict[str, Any]:
        info = self.machine.cpu_info()
        self.data["cpu_info"] = info
        return info

    def platform(self) -> Platform:
        return self.machine.platform()
