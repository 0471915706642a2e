"""Which processor it is and what it can do: brand, instruction sets, caches, virtual or not.

`slow` is py-cpuinfo's answer, or empty where the faster sources suffice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerator.hardware.machine import Machine
from accelerator.hardware.parse import integer, read_integer, size

__all__ = ["CACHES", "ISA_FLAGS", "brand", "caches", "family_model", "flags", "vendor", "virtualised"]

X86_FLAGS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16"),
)
ARM_FLAGS = ("neon", "asimddp", "i8mm", "bf16", "sve")
ISA_FLAGS = X86_FLAGS + ARM_FLAGS
_ALIASES = {
    # py-cpuinfo's names
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avxvnni": "avx_vnni",
    # arm64's hwcaps (Documentation/arch/arm64/elf_hwcaps.rst)
    "asimd": "neon",
    "dotprod": "asimddp",
    # Apple's sysctls
    "hw.optional.avx2_0": "avx2",
    "hw.optional.fma": "fma",
    "hw.optional.f16c": "f16c",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.neon": "neon",
    "hw.optional.AdvSIMD": "neon",
    "hw.optional.arm.AdvSIMD": "neon",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}
_ARM = 0x41
_ARM_PARTS = {  # "CPU part" of that implementer: PartNum of MIDR_EL1 in each core's reference manual
    0xD03: "Cortex-A53",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD49: "Neoverse-N2",
    0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD84: "Neoverse-V3",
    0xD8E: "Neoverse-N3",
}
_VIRTUAL_PRODUCTS = (
    *("kvm", "qemu", "vmware", "virtualbox", "virtual machine", "google compute engine", "xen", "parallels"),
)
CACHES = {"l1d": "l1_data_cache_size", "l2": "l2_cache_size", "l3": "l3_cache_size"}  # ours -> py-cpuinfo's


def _first(cpuinfo: Sequence[Mapping[str, str]], *keys: str) -> str:
    return next((block[key] for key in keys for block in cpuinfo if block.get(key)), "")


def _arm_parts(cpuinfo: Sequence[Mapping[str, str]]) -> list[tuple[int, int]]:
    """Distinct (implementer, part) pairs; a big.LITTLE processor has several."""
    pairs = []
    for block in cpuinfo:
        try:
            pairs.append((int(block["CPU implementer"], 16), int(block["CPU part"], 16)))
        except (KeyError, ValueError):
            continue
    return sorted(set(pairs), reverse=True)


def brand(machine: Machine, cpuinfo: Sequence[Mapping[str, str]]) -> str:
    name = _first(cpuinfo, "model name", "cpu model", "cpu")
    parts = _arm_parts(cpuinfo)
    if parts:  # there "model name" is missing, or says only "ARMv8 Processor rev 3 (v8l)"
        names = [
            _ARM_PARTS.get(part, f"{part:#x}") if maker == _ARM else f"{maker:#x}:{part:#x}" for maker, part in parts
        ]
        board = (machine.read_text("/proc/device-tree/model") or _first(cpuinfo, "Model")).strip("\0 \n")
        name = f"{board} ({' + '.join(names)})" if board else " + ".join(names)
    return (name if name != "unknown" else "") or machine.sysctl("machdep.cpu.brand_string") or ""


def vendor(machine: Machine, cpuinfo: Sequence[Mapping[str, str]], slow: Mapping[str, Any]) -> str:
    vendor = _first(cpuinfo, "vendor_id") or ("ARM" if any(maker == _ARM for maker, _ in _arm_parts(cpuinfo)) else "")
    vendor = vendor or machine.sysctl("machdep.cpu.vendor") or str(slow.get("vendor_id_raw", ""))
    return vendor or ("Apple" if (machine.sysctl("machdep.cpu.brand_string") or "").startswith("Apple") else "")


def family_model(machine: Machine, cpuinfo: Sequence[Mapping[str, str]], slow: Mapping[str, Any]) -> str:
    if parts := _arm_parts(cpuinfo):
        return " ".join(f"{maker:#x}:{part:#x}" for maker, part in parts)
    names = ("family", "model", "stepping")
    x86 = [_first(cpuinfo, key) for key in ("cpu family", "model", "stepping")]
    mac = [machine.sysctl(f"machdep.cpu.{name}") or "" for name in names]
    known = [str(slow[name]) for name in names if name in slow]
    return next(("-".join(filter(None, values)) for values in (x86, mac, known) if any(values)), "")


def flags(machine: Machine, cpuinfo: Sequence[Mapping[str, str]], slow: Mapping[str, Any]) -> frozenset[str]:
    """Flags that every CPU has, under the kernel's x86 names (arch/x86/include/asm/cpufeatures.h)."""
    lines = [line for block in cpuinfo if (line := block.get("flags") or block.get("Features"))]
    found = set.intersection(*({*line.lower().split()} for line in lines)) if lines else set()
    listed = slow.get("flags", [])
    found.update(flag.lower() for flag in (listed if isinstance(listed, list) else []) if isinstance(flag, str))
    found.update(name for name in _ALIASES if name.startswith("hw.") and machine.sysctl(name) == "1")
    return frozenset(_ALIASES.get(flag, flag) for flag in found)


def virtualised(machine: Machine, present: frozenset[str]) -> bool:
    if "hypervisor" in present or machine.sysctl("kern.hv_vmm_present") == "1":
        return True
    # ARM has no such flag; the firmware's product name tells. Amazon's bare metal types end in ".metal".
    maker, product = (
        (machine.read_text(f"/sys/class/dmi/id/{name}") or "").strip().lower()
        for name in ("sys_vendor", "product_name")
    )
    amazon = maker == "amazon ec2" and ".metal" not in product
    return amazon or any(name in f"{maker} {product}" for name in _VIRTUAL_PRODUCTS)


def caches(machine: Machine, cpu: int, slow: Mapping[str, Any]) -> dict[str, int | None]:
    sizes: dict[str, int | None] = {name: integer(slow.get(key)) for name, key in CACHES.items()}
    for name in sizes:
        apple = {"l1d": "l1dcachesize", "l2": "l2cachesize", "l3": "l3cachesize"}[name]
        mac = size(machine.sysctl(f"hw.perflevel0.{apple}")) or size(machine.sysctl(f"hw.{apple}"))
        known = sizes[name]
        sizes[name] = mac or (known if known is not None and known > 0 else None)
    base = f"/sys/devices/system/cpu/cpu{cpu}/cache"
    for index in machine.listdir(base):
        kind = (machine.read_text(f"{base}/{index}/type") or "").strip()
        level = read_integer(machine, f"{base}/{index}/level")
        name = "l1d" if level == 1 else f"l{level}"
        if kind in ("Data", "Unified") and name in sizes:
            sizes[name] = size(machine.read_text(f"{base}/{index}/size")) or sizes[name]
    return {f"cache_{name}": value for name, value in sizes.items()}
