"""Machines replayed from `fixtures/hardware`, and what is to be found in each."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from accelerator.hardware import (
    HardwareProfile,
    RecordedMachine,
    detect,
)
from tests import ROOT

FIXTURES = ROOT / "tests" / "fixtures" / "hardware"
GIB = 1 << 30
KIB = 1 << 10


def recording(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


def replay(name: str, **changed: str | None) -> HardwareProfile:
    """`changed` maps a path to new contents; None removes it."""
    data = recording(name)
    for path, text in changed.items():
        data["files"].pop(path, None)
        if text is not None:
            data["files"][path] = text
    return detect(machine=RecordedMachine(data))


@dataclasses.dataclass(frozen=True)
class Expected:
    brand: str
    arch: str
    isa: str
    logical: int
    physical: int
    performance: int
    efficiency: int
    usable_cpus: float
    usable_cores: int
    quota: float | None
    memory_limit: int | None
    caches_kib: tuple[int | None, int | None, int | None]
    virtualised: bool
    tier: tuple[str, str, int]  # name, precision, threads


MICROVM_ISA = "avx2 fma f16c avx512f avx512_vnni avx_vnni avx512_bf16 avx512_fp16 amx_int8 amx_bf16"
AVX2 = "avx2 fma f16c"
RYZEN = "AMD Ryzen 7 5800X 8-Core Processor"


# fmt: off
EXPECTED = {
    "laptop_avx2": Expected("Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz", "x86_64", AVX2,
        8, 4, 4, 0, 8.0, 4, None, None, (32, 256, 6144), False, ("x86-avx2", "int4", 4)),
    "laptop_hybrid": Expected("12th Gen Intel(R) Core(TM) i7-1260P", "x86_64", AVX2 + " avx_vnni",
        16, 12, 4, 8, 16.0, 12, None, None, (48, 1280, 18432), False, ("x86-vnni", "int4", 4)),
    "server_avx512": Expected("Intel(R) Xeon(R) Silver 4309Y CPU @ 2.80GHz", "x86_64", AVX2 + " avx512f avx512_vnni",
        32, 16, 16, 0, 32.0, 16, None, None, (48, 1280, 12288), False, ("x86-vnni", "int4", 8)),
    "vm_epyc": Expected("AMD EPYC 7B13", "x86_64", AVX2,
        2, 1, 1, 0, 2.0, 1, None, None, (32, 512, 32768), True, ("x86-avx2", "int4", 1)),
    "microvm": Expected("Intel(R) Xeon(R) Processor", "x86_64", MICROVM_ISA,
        2, 2, 2, 0, 2.0, 2, None, None, (48, 2048, 491520), True, ("x86-vnni", "int4", 2)),
    "apple_m2": Expected("Apple M2", "aarch64", "neon asimddp i8mm bf16",
        8, 8, 4, 4, 8.0, 8, None, None, (128, 16384, None), False, ("arm-i8mm", "int4", 4)),
    "graviton3": Expected("Neoverse-V1", "aarch64", "neon asimddp i8mm bf16 sve",
        4, 4, 4, 0, 4.0, 4, None, None, (64, 1024, 32768), True, ("arm-i8mm", "int4", 4)),
    "pi4": Expected("Raspberry Pi 4 Model B Rev 1.4 (Cortex-A72)", "aarch64", "neon",
        4, 4, 4, 0, 4.0, 4, None, None, (None, None, None), False, ("arm-neon", "int4", 4)),
    "pi5": Expected("Raspberry Pi 5 Model B Rev 1.0 (Cortex-A76)", "aarch64", "neon asimddp",
        4, 4, 4, 0, 4.0, 4, None, None, (64, 512, 2048), False, ("arm-dotprod", "int4", 4)),
    "rk3588": Expected("Cortex-A76 + Cortex-A55", "aarch64", "neon asimddp",
        8, 8, 4, 4, 8.0, 8, None, None, (64, 512, 3072), False, ("arm-dotprod", "int4", 4)),
    "container_v2": Expected(RYZEN, "x86_64", AVX2,
        16, 8, 8, 0, 1.5, 1, 1.5, 2 * GIB, (32, 512, 32768), False, ("x86-avx2", "int4", 1)),
    "container_v1": Expected(RYZEN, "x86_64", AVX2,
        16, 8, 8, 0, 1.5, 1, 1.5, GIB, (32, 512, 32768), False, ("x86-avx2", "int4", 1)),
    "nested_v2": Expected(RYZEN, "x86_64", AVX2,
        16, 8, 8, 0, 2.5, 2, 2.5, 6 * GIB, (32, 512, 32768), False, ("x86-avx2", "int4", 2)),
    "container_cpuset": Expected("Neoverse-N1", "aarch64", "neon asimddp",
        64, 64, 64, 0, 2.0, 2, None, None, (64, 1024, None), False, ("arm-dotprod", "int4", 2)),
    "windows": Expected("AMD Ryzen 5 5500U with Radeon Graphics", "x86_64", AVX2,
        12, 6, 6, 0, 12.0, 6, None, None, (None, 3072, 8192), False, ("x86-avx2", "int4", 6)),
    "windows_hybrid": Expected("12th Gen Intel(R) Core(TM) i7-1260P", "x86_64", AVX2,
        16, 12, 4, 8, 16.0, 12, None, None, (None, None, 18432), True, ("x86-avx2", "int4", 4)),
    "old_x86": Expected("Intel(R) Core(TM) i5-3320M CPU @ 2.60GHz", "x86_64", "f16c",
        4, 2, 2, 0, 4.0, 2, None, None, (None, None, None), False, ("generic", "fp32", 2)),
}


# fmt: on

# How control groups of version 2 are mounted

V2 = "30 23 0:26 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n"
PROFILES = {name: replay(name) for name in EXPECTED}
