"""What compiled kernels there can be: by the processor's instructions, the installation, and what the user asks for."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from importlib.metadata import PackageNotFoundError, version

from ..errors import InvalidOption
from ..hardware import detect
from ..installation import install_command

__all__ = [
    "available",
    "chain_kind",
    "kind",
    "missing",
    "multiplies_bf16",
    "multiplies_chains",
    "multiplies_tiles",
    "uses_avx512",
    "wanted",
]

_NEEDED = ("avx2", "fma", "f16c")
_WANTED = ("auto", "avx2", "none")
_ARCH_PRCTL, _REQUEST, _TILES = 158, 0x1023, 18  # of Linux: ARCH_REQ_XCOMP_PERM for XFEATURE_XTILEDATA


@functools.cache
def available() -> bool:
    """Whether this processor has the instructions, and this installation the compiler; tried on Linux only.

    Raises InvalidOption for an `ACCELERATOR_KERNELS` that means nothing.
    """
    return not missing()


def missing() -> str:
    """Why there are no compiled kernels here; "" where they are `available`."""
    if wanted() == "none":
        return "ACCELERATOR_KERNELS=none"
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return f"they are made for Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
    if lacks := sorted(set(_NEEDED) - set(detect().isa)):
        return f"the processor lacks {', '.join(lacks)}"
    absent = [name for name in ("numba", "llvmlite") if not _installed(name)]
    return f"{' and '.join(absent)} not installed: {install_command()}" if absent else ""


def kind() -> str:
    """Which kernels there are here, "" for none, and who compiles them: what they answer may depend on that."""
    if not available():
        return ""
    return f"{'avx512_vnni' if uses_avx512() else 'avx2'} numba {version('numba')} llvmlite {version('llvmlite')}"


def chain_kind() -> str:
    """As `kind`, of what multiplies in chains of convolutions."""
    if not multiplies_chains():
        return kind()
    return f"{kind()} {'amx' if multiplies_tiles() else 'bf16'}"


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def uses_avx512() -> bool:
    """Whether AVX512-VNNI is used; other processors use AVX2."""
    return wanted() != "avx2" and {"avx512f", "avx512_vnni"} <= set(detect().isa)


def wanted() -> str:
    """What the environment asks for: "auto", "avx2" (also where there is more) or "none"."""
    value = os.environ.get("ACCELERATOR_KERNELS", "").strip().lower() or "auto"
    if value not in _WANTED:
        raise InvalidOption(f"ACCELERATOR_KERNELS is {value!r}; it can be {', '.join(_WANTED)}")
    return value


def multiplies_bf16() -> bool:
    """Whether this processor multiplies pairs of bfloat16."""
    return uses_avx512() and "avx512_bf16" in detect().isa


def multiplies_chains() -> bool:
    """Whether there are kernels for chains of convolutions here: by AMX, or by products of pairs of bfloat16."""
    return multiplies_tiles() or (available() and multiplies_bf16())


@functools.cache
def multiplies_tiles() -> bool:
    """Whether this processor multiplies tiles of bfloat16 (AMX), and this process may: Linux wants to be asked."""
    has = available() and multiplies_bf16() and "amx_bf16" in detect().isa
    return has and ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILES) == 0
