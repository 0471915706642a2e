"""The first guess at how to run on a machine; a probe on the machine itself decides later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from accelerator.hardware.profile import HardwareProfile

__all__ = ["TIERS", "Precision", "Tier", "TierRule", "choose_tier", "describe"]

Precision = Literal["fp32", "int8", "int4"]

_GIB = 1 << 30
_TYPICAL_MODEL = 2 * _GIB  # half a billion fp32 weights: a dual autoregressive model of today
_THREADS = 8  # decoding reads every weight once per step: about this many cores use all of the memory's bandwidth
_CACHE_PER_CORE = 4 << 20  # a virtual machine reports its host's whole L3; count no more than a core's fair share
# Bytes per fp32 byte: 4 (8) bits and one fp32 scale for each block of 32 weights.
_WEIGHT = {"fp32": 1.0, "int8": 9 / 32, "int4": 5 / 32}


@dataclass(frozen=True)
class Tier:
    """How to run: weight precision of the matrix products, threads per session, and why."""

    name: str
    precision: Precision
    threads: int
    reason: str


@dataclass(frozen=True)
class TierRule:
    """One row: `fits(profile, model_bytes_fp32)` -> `precision`."""

    name: str
    fits: Callable[[HardwareProfile, int | None], bool]
    precision: Precision
    reason: str


def _has(arch: str, *flags: str) -> Callable[[HardwareProfile, int | None], bool]:
    return lambda profile, _: profile.arch == arch and (not flags or any(flag in profile.isa for flag in flags))


def _in_cache(profile: HardwareProfile, model: float | None) -> bool:
    shared = min(profile.cache_l3 or 0, _CACHE_PER_CORE * profile.usable_cores)
    return model is not None and model <= max(shared, profile.cache_l2 or 0)


def _in_cache_as_int8(profile: HardwareProfile, model: int | None) -> bool:
    kernels = _has("x86_64", "avx2"), _has("aarch64", "asimddp")
    fast = any(fits(profile, model) for fits in kernels)
    return fast and model is not None and _in_cache(profile, model * _WEIGHT["int8"])


def _too_big(profile: HardwareProfile, model: int | None) -> bool:
    memory = profile.memory_usable
    # Twice: the engine's own weights are in memory beside the exported ones until it drops them.
    return memory is not None and 2 * (model or _TYPICAL_MODEL) > memory


# The first row that fits is used. The kernels behind each row are those that ONNX Runtime's MLAS installs in
# QNBitGemmDispatch (onnxruntime/core/mlas/lib/platform.cpp) for MatMulNBits; "accuracy level 4" multiplies in int8.
TIERS: tuple[TierRule, ...] = (
    TierRule("in-cache", _in_cache, "fp32", "the weights fit the cache, so reading fewer bytes gains little"),
    TierRule(
        "int8-in-cache", _in_cache_as_int8, "int8", "in eight bits the weights fit the cache; four would gain little"
    ),
    TierRule("x86-vnni", _has("x86_64", "avx512_vnni", "avx_vnni"), "int4", "int4 at accuracy level 4 runs on VNNI"),
    TierRule("x86-avx512", _has("x86_64", "avx512f"), "int4", "int4 at accuracy level 4 has AVX512 kernels"),
    TierRule("x86-avx2", _has("x86_64", "avx2"), "int4", "int4 has AVX2 kernels; an eighth of the bytes to read"),
    TierRule("arm-i8mm", _has("aarch64", "i8mm"), "int4", "int4 at accuracy level 4 runs on dot products"),
    TierRule("arm-dotprod", _has("aarch64", "asimddp"), "int4", "int4 at accuracy level 4 runs on dot products"),
    # Without dot products MLAS has neither accuracy level 4 nor any 8-bit block kernel; but an int4 one that computes
    # in fp32, and memory on such boards is so slow that an eighth of the bytes should outweigh the unpacking.
    TierRule("arm-neon", _has("aarch64"), "int4", "no dot products: int4 weights, computed in fp32 (no 8-bit kernel)"),
    # Elsewhere MatMulNBits unpacks the whole matrix at every step: only worth it if nothing else fits.
    TierRule("low-memory", _too_big, "int4", "no fast quantized kernels, but fp32 weights do not fit in memory"),
    TierRule("generic", lambda profile, model: True, "fp32", "no fast quantized kernels for this processor"),
)


def choose_tier(profile: HardwareProfile, *, model_bytes_fp32: int | None = None) -> Tier:
    """The first row of `TIERS` that fits, with threads for the profile.

    `model_bytes_fp32`: what the model's weights take in fp32, in bytes; without it a typical size is assumed.
    """
    rule = next(rule for rule in TIERS if rule.fits(profile, model_bytes_fp32))
    threads = max(1, min(profile.usable_performance_cores, _THREADS))
    return Tier(rule.name, rule.precision, threads, rule.reason)


def describe(profile: HardwareProfile, tier: Tier) -> list[tuple[str, str]]:
    """(label, value) rows for people."""
    cores = f"{profile.physical_cores} physical, {profile.logical_cpus} logical"
    if profile.efficiency_cores:
        cores += f" ({profile.performance_cores} performance, {profile.efficiency_cores} efficiency)"
    usable = f"{_count(profile.usable_cores, 'core')} ({profile.usable_cpus:g} CPUs)"
    if profile.cpu_quota is not None:
        usable += f", control group quota {profile.cpu_quota:g}"
    if profile.affinity is not None and len(profile.affinity) < profile.logical_cpus:
        usable += f", affinity {len(profile.affinity)} of {profile.logical_cpus}"
    memory = f"{_size(profile.memory_total)}, {_size(profile.memory_available)} available"
    if profile.memory_limit is not None:
        memory += f", control group limit {_size(profile.memory_limit)}"
    caches = (f"{name} {_size(value)}" for name, value in _caches(profile) if value is not None)
    virtual = "yes; two CPUs may share one core unseen" if profile.threads_per_core == 1 else "yes"
    return [
        ("Processor", profile.brand),
        ("Platform", f"{profile.os} {profile.kernel} {profile.arch}".strip()),
        ("Cores", cores),
        ("Usable", usable),
        ("Instructions", " ".join(profile.isa) or "none of interest"),
        ("Caches", ", ".join(caches) or "unknown"),
        ("Memory", memory),
        ("NUMA nodes", str(profile.numa_nodes)),
        ("Virtual machine", virtual if profile.virtualised else "no"),
        ("Tier", f"{tier.name}: {tier.precision}, {_count(tier.threads, 'thread')}"),
        ("Reason", tier.reason),
        ("Fingerprint", profile.fingerprint),
    ]


def _caches(profile: HardwareProfile) -> list[tuple[str, int | None]]:
    return [("L1d", profile.cache_l1d), ("L2", profile.cache_l2), ("L3", profile.cache_l3)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(size: int | None) -> str:
    if size is None:
        return "unknown"
    for unit, factor in (("GiB", _GIB), ("MiB", 1 << 20)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}".replace(".0 ", " ")
    return f"{size / 1024:g} KiB"
