"""`accelerator doctor`: what this machine is, what is installed, and what stands in the way."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .. import __version__
from ..installation import install_command
from . import formats
from .console import Output
from .options import CacheDir, Debug, Json, Verbose
from .voices import engine_state, known_engines

if TYPE_CHECKING:
    from ..cache import ContentCache
    from ..hardware import HardwareProfile, Tier
    from ..pipeline.tuning import Tuning

__all__ = ["doctor"]

_PACKAGES = ("torch", "onnxruntime", "onnx", "onnxscript", "numpy")
_OPTIONAL = ("openvino", "redis")  # extras
_LOW_DISK = 2 << 30  # an export of a half-billion model, with its embeddings
_LOW_MEMORY = 2 << 30


def doctor(
    ctx: typer.Context, cache_dir: CacheDir = None, json: Json = False, verbose: Verbose = False, debug: Debug = False
) -> None:
    """Show the hardware, versions, cache and engines as this package sees them, and what to change."""
    from ..cache import ContentCache
    from ..hardware import choose_tier, describe, detect
    from ..hardware.accelerators import accelerators
    from ..inference.rows import ROWS
    from ..pipeline.heard import NOTE

    out: Output = ctx.obj
    cache = ContentCache(cache_dir)
    writable = cache.writable
    profile = detect(store=cache.root if writable else None)
    tier = choose_tier(profile)
    versions = _versions()
    providers, devices = _providers(), list(accelerators())
    engines, kernels, voices = known_engines(), _kernels(), _voices(cache)
    choices, heard = _choices(cache, profile.fingerprint), cache.notes(NOTE)
    place = {
        "path": cache.root,
        "bytes": cache.size(),
        "entries": len(cache.entries()),
        "writable": writable,
        "free_bytes": _free_bytes(cache.root),
        "parents": list(cache.parents),
    }
    warnings = [*_warnings(profile, tier, place, versions, providers), *_waiting(cache, profile.fingerprint)]
    warnings += [f"Voices are encoded in each process: {voices['problem']}."] * bool(voices["problem"])
    out.document(
        {
            "hardware": {**profile.to_dict(), "fingerprint": profile.fingerprint},
            "tier": asdict(tier),
            "versions": versions,
            "providers": providers,
            "accelerators": devices,
            "cache": place,
            "voices": voices,
            "engines": engines,
            "kernels": kernels,
            "choices": choices,
            "heard": heard,
            "warnings": warnings,
        }
    )
    out.rows(_hardware_rows(describe(profile, tier)), title="Hardware")
    out.line()
    rows = [(name, version or _without(name)) for name, version in versions.items()]
    rows += [("providers", ", ".join(providers) or "none"), *(("accelerator", " ".join(d.split())) for d in devices)]
    out.rows(rows, title="Versions")
    out.line()
    out.rows([*_cache_rows(cache, place), ("Voices", _voices_row(voices))], title="Cache")
    out.line()
    out.rows([(e["name"], engine_state(e)) for e in engines], title="Engines")
    out.line()
    compiled = f"yes, for {kernels['instructions']}" if kernels["available"] else f"no: {kernels['reason']}"
    rows = list(dict.fromkeys(map(_choice_row, choices)))
    rows = rows or [("Parts", "nothing was exported and measured here yet")]
    at_once = [("Sequences at once", str(ROWS))]
    out.rows([("Compiled kernels", compiled), *at_once, *rows], title="What runs")
    if verdicts := _heard_rows(heard):
        out.line()
        out.rows(verdicts, title="What was heard")
    if warnings and not out.json:
        out.line()
        out.line("Worth knowing", style="bold")
        for warning in warnings:
            out.line(f"- {warning}")


def _hardware_rows(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A tier is no more than where a large model begins: the size of an engine's, and the probe, decide."""
    guess = " (a first guess, for a large model; what runs is below)"
    return [(label, f"{value}{guess}" if label == "Tier" else value) for label, value in rows]


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"accelerator": __version__, "python": platform.python_version()}
    for name in (*_PACKAGES, *_OPTIONAL):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _without(name: str) -> str:
    return f"not installed, optional: {install_command(name)}" if name in _OPTIONAL else "not installed"


def _providers() -> list[str]:
    from ..runtime.onnx import available_providers

    try:
        return available_providers()
    except ImportError:
        return []


def _kernels() -> dict[str, Any]:
    """Whether kernels are compiled for this processor, and why not."""
    from ..errors import InvalidOption
    from ..kernels import features

    try:
        reason = features.missing()
        kind = "" if reason else "AVX512-VNNI" if features.uses_avx512() else "AVX2"
    except InvalidOption as error:
        reason, kind = str(error), ""
    return {"available": not reason, "instructions": kind or None, "reason": reason or None}


def _choices(cache: ContentCache, fingerprint: str) -> list[dict[str, Any]]:
    """What was found fastest on this machine, for each part that was exported and measured."""
    from ..pipeline.tuning import known

    return [
        {
            "engine": tuning.engine or None,
            "part": tuning.part,
            "backend": tuning.way.backend,
            "precision": tuning.precision or None,
            "way": tuning.way.name,
            "threads": tuning.way.options.threads,
            "seconds": dict(tuning.seconds),
            "others_cpus": tuning.others_cpus,
        }
        for tuning in sorted(known(cache, fingerprint), key=_whose)
    ]


def _whose(tuning: Tuning) -> tuple[bool, str, str]:
    """Sorts by engine and part; last what an earlier version measured, which did not note the engine."""
    return not tuning.engine, tuning.engine, tuning.part


def _label(engine: str | None, part: str) -> str:
    return f"{engine or 'some engine'} {part}"


def _choice_row(choice: dict[str, Any]) -> tuple[str, str]:
    from ..pipeline.tuning import SEGMENTS

    seconds = dict(choice["seconds"])
    original = seconds.pop("original", None)
    best = seconds.get(choice["way"], min(seconds.values(), default=None))
    against = f"{formats.seconds(best)} a unit of work, the engine itself {formats.seconds(original)}"
    kept, threads, precision = choice["backend"] == "original", choice["threads"], choice["precision"]
    if choice["part"] == SEGMENTS:
        against = f"{formats.seconds(original)} one after the other, {formats.seconds(best)} at once"
        what = f"one after the other ({against})" if kept else f"{threads} at once, on one thread each ({against})"
    elif kept:
        what = f"the engine itself, as it is faster here ({against})"
    else:
        how = choice["backend"].removesuffix(f"-{precision}") + (f" {precision}" if precision else "")
        what = f"{how}, {threads} thread{'s' if threads != 1 else ''} ({against})"
    return _label(choice["engine"], choice["part"]), what


def _heard_rows(notes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """A verdict of a listening test a line, the latest first."""
    from ..pipeline.heard import described

    rows = []
    for note in sorted(notes, key=lambda note: float(note.get("heard_at", 0)), reverse=True):
        with contextlib.suppress(KeyError, TypeError, ValueError):  # of another version
            rows.append((f"{note['engine']} {note['checkpoint']}", described(note)))
    return rows


def _cache_rows(cache: ContentCache, place: dict[str, Any]) -> list[tuple[str, str]]:
    free = place["free_bytes"]
    return [
        ("Path", str(cache.root)),
        ("Size", f"{formats.size(place['bytes'])} in {place['entries']} entries"),
        ("Writable", "yes" if place["writable"] else "no"),
        ("Free", "unknown" if free is None else formats.size(free)),
        *[("Also read", ", ".join(map(str, cache.parents)))] * bool(cache.parents),
    ]


def _voices(cache: ContentCache) -> dict[str, str | None]:
    """Where encoded recordings are kept unless told otherwise, and why they cannot be now."""
    from ..errors import InvalidOption
    from ..voices.places import VARIABLE, by_environment
    from ..voices.redis import RedisVoices

    try:
        store = by_environment()
    except InvalidOption as error:
        return {"store": VARIABLE, "problem": str(error)}
    problem = store.problem() if isinstance(store, RedisVoices) else None
    return {"store": str(store or cache.root), "problem": problem and f"of {store} it is known that {problem}"}


def _voices_row(voices: dict[str, str | None]) -> str:
    return f"{voices['store']}{', which cannot be used now' if voices['problem'] else ''}"


def _free_bytes(root: Path) -> int | None:
    for place in (root, *root.parents):
        if place.is_dir():
            try:
                return shutil.disk_usage(place).free
            except OSError:
                return None
    return None


def _waiting(cache: ContentCache, fingerprint: str) -> list[str]:
    """What `accelerator tune` is for, each said once: an engine may have many checkpoints, each with these parts."""
    from ..pipeline.tuning import waiting

    found = sorted(waiting(cache, fingerprint), key=_whose)
    proposals = [
        f"{_label(each.engine, each.part)}: {each.waits}; a seed then sounds different."
        for each in found
        if each.proposed is not None
    ]
    busy = [each for each in found if each.proposed is None]
    if busy:
        most = max(each.others_cpus or 0.0 for each in busy)
        parts = ", ".join(dict.fromkeys(_label(each.engine, each.part) for each in busy))
        proposals.append(
            f"Measured while others kept up to {most:.2g} CPUs busy: {parts}. A later start measures again, "
            "`accelerator tune` does it now."
        )
    return list(dict.fromkeys(proposals))


def _warnings(
    profile: HardwareProfile,
    tier: Tier,
    place: dict[str, Any],
    versions: dict[str, str | None],
    providers: list[str],
) -> list[str]:
    found = []
    if missing := [name for name, version in versions.items() if version is None and name not in _OPTIONAL]:
        found.append(f"Not installed: {', '.join(missing)}. Install them: {install_command()}")
    if versions["onnxruntime"] is not None and not providers:
        found.append(
            "ONNX Runtime cannot be imported, so every engine stays in PyTorch: "
            "pip install --force-reinstall --no-deps onnxruntime"
        )
    if not place["writable"]:
        found.append(_read_only(place))
    elif place["free_bytes"] is not None and place["free_bytes"] < _LOW_DISK:
        found.append(f"The cache's disk has {formats.size(place['free_bytes'])} left; a large engine may not fit.")
    if profile.cpu_quota is not None and profile.cpu_quota < 1:
        found.append(
            f"The control group allows {profile.cpu_quota:g} CPUs: a thread is paused most of the time, "
            "and speech will stutter. Give the container at least one CPU."
        )
    elif profile.cpu_quota is not None and profile.cpu_quota != int(profile.cpu_quota):
        found.append(f"Of the quota of {profile.cpu_quota:g} CPUs only whole ones are used: {profile.usable_cores}.")
    if profile.virtualised and profile.threads_per_core == 1 and profile.logical_cpus > 1:
        found.append(
            f"This virtual machine shows its {profile.logical_cpus} CPUs as cores; two may share one. "
            "The probe measures how many threads pay."
        )
    if profile.usable_cores < profile.physical_cores and profile.cpu_quota is None:
        found.append(f"This process may use {profile.usable_cores} of {profile.physical_cores} cores (affinity).")
    if tier.name in ("generic", "low-memory", "arm-neon"):
        found.append(f"No fast quantized kernels for this processor ({tier.reason}).")
    if profile.memory_available is not None and profile.memory_available < _LOW_MEMORY:
        found.append(f"Only {formats.size(profile.memory_available)} of memory are available.")
    if threads := os.environ.get("OMP_NUM_THREADS"):
        found.append(f"OMP_NUM_THREADS={threads} limits PyTorch only: ONNX Runtime takes its threads from the probe.")
    return found


def _read_only(place: dict[str, Any]) -> str:
    """What a cache that cannot be written means, which depends on what is in it."""
    if place["entries"]:
        return (
            f"The cache {place['path']} cannot be written: its {place['entries']} entries are used, and what is not in "
            "it each process exports, measures and compiles anew. Run `accelerator export` as a user who may write it."
        )
    return (
        f"The cache {place['path']} is empty and cannot be written, so every process exports anew. "
        "Set ACCELERATOR_CACHE to a directory that can."
    )
