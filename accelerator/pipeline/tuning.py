"""Tuning: what a probe measured for a part on this machine, and what later probes may change.

A tuning belongs to a part's weights and to the hardware, not to an export, so that a new version of a graph does not
cause a new choice. The first tuning settles what a seed's audio depends on (`Way.sound`). A part that was measured
while other processes used the processor is measured again later, but then only settings that do not change the sound
take effect: a faster way with another sound is *proposed*, and waits for `accelerator tune`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ..cache import ContentCache, make_key
from ..runtime.options import RunOptions
from ..runtime.providers import short

__all__ = ["BUSY", "ORIGINAL", "POOL", "SEGMENTS", "WORTH", "Record", "Tuning", "Way", "known", "waiting"]

BUSY = 0.25  # CPUs kept busy by others during a probe, above which it is repeated later
WORTH = 1.1  # times faster: no seed may sound different for less
_LONGEST, _KEPT = 100, 60  # letters of a record's name; of one that would be longer, with the hardware's among them
SEGMENTS, POOL = "segments", "pool"  # tuned like a part: whether they are spoken at once (`pooling`)
SOON_S, LATE_S = 60.0, 86_400.0  # until measuring again after a busy probe: four times longer each time, up to a day


class Way(NamedTuple):
    """A backend under one setting."""

    backend: str
    options: RunOptions

    @property
    def sound(self) -> tuple[Any, ...]:
        """What a seed's audio depends on: ways of one sound give bit-identical answers.

        Compiled kernels divide work by rows, and one thread does each sum; ONNX Runtime divides some sums between
        threads (measured with three and four in a codec's convolutions), and OpenVINO between two. Spinning changes no
        result. Parts in PyTorch use PyTorch's own number of threads, which is up to the user.
        """
        if self.options.backend == "onnxruntime":  # in whichever precision
            return self.backend, self.options.threads, self.options.providers
        if self.options.backend == "openvino":
            return self.backend, self.options.threads, self.options.dtype
        return self.backend, self.options.dtype

    @property
    def name(self) -> str:
        """ "original", "native-2", "onnxruntime-2-spin50", "onnxruntime-cuda-2", "onednn-bf16-2", "pool-2": a key of
        `Tuning.seconds`.
        """
        options = self.options
        if self == ORIGINAL:
            return self.backend
        dtype = f"-{options.dtype}" if options.backend in ("onednn", "openvino") else ""
        dtype += f"-{on}" if (on := short(options.providers)) else ""
        return f"{self.backend}{dtype}-{options.threads}{f'-spin{options.spin_us}' if options.spin_us else ''}"

    def to_dict(self) -> dict[str, Any]:
        return {"backend": self.backend, "options": self.options.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Way:
        """Raises KeyError, TypeError or ValueError for what `to_dict` did not write."""
        options = RunOptions.from_dict(data["options"])
        if not isinstance(data["backend"], str) or not isinstance(options.threads, int) or options.threads < 1:
            raise ValueError("no way to run a part")
        return cls(data["backend"], options)


ORIGINAL = Way("original", RunOptions(backend="original"))  # the engine's own code


@dataclass(frozen=True)
class Tuning:
    """The way a part runs on this machine, and what was measured.

    seconds: per unit of the part's work, by the ways' names. precisions: what each way computes in. others_cpus: CPUs
    kept busy by others meanwhile (None: not known on this system). probes: how often it was measured; measured_at: when
    last, in seconds since the epoch. proposed: a faster way with another sound. engine: whose part it is, "" in notes
    of earlier versions.
    """

    part: str
    way: Way
    seconds: Mapping[str, float]
    others_cpus: float | None = None
    probes: int = 1
    measured_at: float = 0.0
    proposed: Way | None = None
    engine: str = ""
    precisions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        part: str,
        seconds: Mapping[Way, float],
        others_cpus: float | None,
        measured_at: float,
        before: Tuning | None = None,
        *,
        engine: str = "",
        precisions: Mapping[Way, str] | None = None,
    ) -> Tuning:
        """The tuning that follows from the seconds of each way, including the original, and the tuning before."""
        fastest = _fastest(seconds)
        names = {way.name: taken for way, taken in seconds.items()}
        computed = {way.name: precision for way, precision in (precisions or {}).items()}
        new = cls(part, fastest, names, others_cpus, 1, measured_at, engine=engine, precisions=computed)
        if before is None:
            return new
        new = replace(new, probes=before.probes + 1)
        alike = {way: taken for way, taken in seconds.items() if way.sound == before.way.sound}
        if not alike:  # not available in this process
            return new
        if not new.calm and (before.others_cpus or 0.0) < (others_cpus or 0.0):  # the earlier one is better
            return replace(before, probes=new.probes, measured_at=measured_at, engine=engine, precisions=new.precisions)
        kept = min(alike, key=alike.__getitem__)
        faster = new.calm and fastest.sound != kept.sound and seconds[kept] >= WORTH * seconds[fastest]
        return replace(new, way=kept, proposed=fastest if faster else None)

    @property
    def calm(self) -> bool:
        """Whether nothing else kept the machine busy while it was measured."""
        return (self.others_cpus or 0.0) <= BUSY

    @property
    def precision(self) -> str:
        """What the part computes in; "" for the original, and in notes of earlier versions."""
        return self.precisions.get(self.way.name, "")

    def is_due(self, now: float) -> bool:
        """Whether it is to be measured again: `now`, in seconds since the epoch."""
        return not self.calm and abs(now - self.measured_at) >= min(SOON_S * 4.0 ** (self.probes - 1), LATE_S)

    def accepted(self) -> Tuning:
        """The tuning with the proposed way adopted."""
        return self if self.proposed is None else replace(self, way=self.proposed, proposed=None)

    @property
    def slower(self) -> str:
        """Why the original serves the part."""
        seconds = dict(self.seconds)
        original = seconds.pop(ORIGINAL.name)
        best = min(seconds.values())
        if self.proposed is not None:
            return f"kept as it was when it was first measured; {self.waits}"
        return f"its replacement is slower here ({best * 1e3:.1f} ms against {original * 1e3:.1f} ms a unit)"

    @property
    def waits(self) -> str:
        """What `accelerator tune` would change; empty if nothing."""
        if self.proposed is None:
            return ""
        now, then = self.seconds[self.way.name], self.seconds[self.proposed.name]
        return f"`accelerator tune` changes it to {self.proposed.name}, {now / then:.2f} times as fast"

    def to_dict(self) -> dict[str, Any]:
        """The note that is kept, and what `status()` shows: JSON."""
        return {
            **self.way.to_dict(),
            "engine": self.engine,
            "part": self.part,
            "seconds": dict(self.seconds),
            "precisions": dict(self.precisions),
            "others_cpus": self.others_cpus,
            "calm": self.calm,
            "probes": self.probes,
            "measured_at": self.measured_at,
            "proposed": None if self.proposed is None else self.proposed.to_dict(),
        }

    @classmethod
    def from_dict(cls, note: Mapping[str, Any] | None) -> Tuning | None:
        """The inverse of `to_dict`, or None for anything else in a note."""
        if note is None:
            return None
        try:
            others, proposed = note["others_cpus"], note["proposed"]
            tuning = cls(
                str(note["part"]),
                Way.from_dict(note),
                {str(name): float(taken) for name, taken in note["seconds"].items()},
                None if others is None else float(others),
                int(note["probes"]),
                float(note["measured_at"]),
                None if proposed is None else Way.from_dict(proposed),
                str(note.get("engine", "")),
                {str(name): str(precision) for name, precision in note.get("precisions", {}).items()},
            )
            _ = tuning.slower, tuning.waits  # checks that the figures exist
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return tuning


def _fastest(seconds: Mapping[Way, float]) -> Way:
    """The way that takes least; the original where none is faster."""
    others = {way: taken for way, taken in seconds.items() if way != ORIGINAL}
    best = min(others, key=others.__getitem__)
    return best if others[best] < seconds[ORIGINAL] else ORIGINAL


@dataclass(frozen=True)
class Record:
    """Where one tuning is kept. The first process that publishes one decides for all that measured at the same time."""

    cache: ContentCache
    key: str
    note: str
    backends: Collection[str]  # those available here
    now: Callable[[], float] = time.time

    @classmethod
    def of(
        cls,
        cache: ContentCache,
        part: str,
        weights: str,
        *names: str,
        backends: Collection[str],
        now: Callable[[], float],
    ) -> Record:
        """names: of the hardware and of the choices."""
        note = "-".join(("tuning", *names))
        if len(note) > _LONGEST:  # than a cache's names may be
            note = f"{note[:_KEPT]}-{make_key(names=list(names))[:16]}"
        return cls(cache, make_key(tuning=part, weights=weights), note, backends, now)

    def read(self) -> Tuning | None:
        tuning = Tuning.from_dict(self.cache.read_note(self.key, self.note))
        if tuning is None:
            return None
        ways = (tuning.way, *filter(None, [tuning.proposed]))
        return tuning if all(way == ORIGINAL or way.backend in self.backends for way in ways) else None

    def is_due(self, tuning: Tuning) -> bool:
        """Whether to measure again; never where the result could not be stored."""
        return tuning.is_due(self.now()) and self.cache.writable

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """One process at a time: concurrent measurements would disturb each other."""
        with self.cache.single_flight(make_key(key=self.key, note=self.note)):
            yield

    def publish(self, new: Tuning, before: Tuning | None) -> Tuning:
        """Store it; returns the tuning in effect, which another process may have published since `before` was read."""
        if before is None and self.cache.write_note(self.key, self.note, new.to_dict(), replace=False):
            return new
        found = self.read()
        if found is not None and found != before:
            return found
        self.write(new)
        return new

    def write(self, new: Tuning) -> bool:
        """Store it unconditionally; False if it cannot be written."""
        return self.cache.write_note(self.key, self.note, new.to_dict())


def known(cache: ContentCache, fingerprint: str) -> list[Tuning]:
    """The tunings for this hardware."""
    found = (Tuning.from_dict(note) for note in cache.notes(f"tuning-{fingerprint}-*"))
    return [tuning for tuning in found if tuning is not None]


def waiting(cache: ContentCache, fingerprint: str) -> list[Tuning]:
    """The tunings that wait for a calm machine or for `accelerator tune`."""
    return [tuning for tuning in known(cache, fingerprint) if tuning.proposed or not tuning.calm]
