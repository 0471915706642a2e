"""Part -> exports -> sessions -> probe: decides once per machine whether a part runs in ONNX Runtime, and how."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .cache import ContentCache
from .engines.base import Call, Part
from .errors import CorruptEntry
from .export import Export, Progress, ProgressEvent, export_best
from .hardware import HardwareProfile, Tier, choose_tier
from .session import SHORT_SPIN_US, SessionOptions, can_bound_spinning

__all__ = ["Choice", "Loader"]

logger = logging.getLogger(__name__)

MARGIN = 1.0  # ONNX Runtime must need less than this share of PyTorch's time


@dataclass(frozen=True)
class Choice:
    """What was decided for a part. `call` is None when it stays in PyTorch, and `reason` says why."""

    call: Call | None
    reason: str
    cause: str = ""  # the reason in one word, when it stays in PyTorch: an error's name, or "Slower"
    precision: str = "fp32"
    options: SessionOptions | None = None
    exports: Mapping[str, Export] = field(default_factory=dict)
    probe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def backend(self) -> str:
        return "pytorch" if self.call is None else "onnxruntime"


@dataclass(frozen=True)
class Loader:
    """The settings shared by all parts of one engine."""

    cache: ContentCache
    profile: HardwareProfile
    tier: Tier  # the first guess for a typical model; a part's own size may suggest another precision
    precision: str  # "auto" or the first one to try
    proof: Any
    threads: int | None
    probe: bool
    progress: Progress

    def load(self, part: Part) -> Choice:
        """Export (or find) the part's components, load them, and keep what is faster. Raises what goes wrong."""
        try:
            return self._load(part)
        except CorruptEntry as error:  # found while the sessions loaded, and set aside: build it anew
            logger.warning("%s: %s", part.name, error)
            return self._load(part)

    def _load(self, part: Part) -> Choice:
        precision = self.precision
        if precision == "auto":
            sizes = [component.weight_bytes for component in part.components if component.weight_bytes]
            precision = choose_tier(self.profile, model_bytes_fp32=sum(sizes) or None).precision
        exports = {
            component.name: export_best(component, precision, self.cache, proof=self.proof, progress=self.progress)
            for component in part.components
        }
        main = list(exports.values())[-1]  # a part's last component is the one that computes
        base = Choice(None, "", precision=main.precision, exports=exports)
        if not self.probe:
            return self._open(part, base, SessionOptions(threads=self.threads or self.tier.threads), "not probed")
        note = f"tuning-{self.profile.fingerprint}-{self.threads or 'auto'}"
        tuned = self.cache.read_note(main.entry.key, note)
        if tuned is None or (options := _tuned_options(tuned)) is None:
            return self._probe(part, base, main.entry.key, note)
        if tuned["backend"] == "pytorch":
            return replace(base, reason=_slower(tuned), cause="Slower", probe=tuned)
        return self._open(part, replace(base, probe=tuned), options, "fastest when probed before")

    def _probe(self, part: Part, base: Choice, key: str, note: str) -> Choice:
        """Time the part under each setting and in PyTorch, remember the winner."""
        seconds: dict[str, float] = {}
        best: Choice | None = None
        candidates = self._candidates()
        for done, options in enumerate(candidates):
            self.progress(ProgressEvent(part.name, "probe", done, len(candidates) + 1, base.precision))
            choice = self._open(part, base, options, "fastest when probed")
            taken = min(part.probe(choice.call), part.probe(choice.call))  # type: ignore[arg-type]
            if best is None or taken < min(seconds.values()):
                best = choice
            seconds[_name(options)] = taken
        assert best is not None
        assert best.options is not None
        self.progress(ProgressEvent(part.name, "probe", len(candidates), len(candidates) + 1, base.precision))
        fastest, pytorch = min(seconds.values()), part.probe(part.torch)
        backend = "onnxruntime" if fastest < MARGIN * pytorch else "pytorch"
        result = {
            "backend": backend,
            "options": best.options.to_dict(),
            "seconds": {**seconds, "pytorch": pytorch},
        }
        self.cache.write_note(key, note, result)
        if backend == "pytorch":
            logger.warning("%s stays in PyTorch: %s", part.name, _slower(result))
            return replace(base, reason=_slower(result), cause="Slower", probe=result)
        return replace(best, probe=result)

    def _open(self, part: Part, base: Choice, options: SessionOptions, reason: str) -> Choice:
        """Load while the files' digests are still being checked, and wait for these before anything is used."""
        self.progress(ProgressEvent(part.name, "load", precision=base.precision))
        try:
            call = part.load({name: export.path for name, export in base.exports.items()}, options)
        finally:  # whatever a corrupt file made the loader say: what matters is that it is corrupt
            for export in base.exports.values():
                export.entry.verified()
        return replace(base, call=call, options=options, reason=reason)

    def _candidates(self) -> list[SessionOptions]:
        """One thread, the tier's guess, and beyond it; several threads also with a short spin."""
        counts = {1, self.tier.threads, min(self.profile.usable_cores, 2 * self.tier.threads)}
        threads = sorted(counts) if self.threads is None else [self.threads]
        spins = (0, SHORT_SPIN_US) if can_bound_spinning() else (0,)
        return [SessionOptions(threads=n, spin_us=spin) for n in threads for spin in (spins if n > 1 else (0,))]


def _name(options: SessionOptions) -> str:
    return f"onnxruntime-{options.threads}{f'-spin{options.spin_us}' if options.spin_us else ''}"


def _tuned_options(note: Mapping[str, Any]) -> SessionOptions | None:
    """The settings a tuning note holds, or None if it is not one."""
    try:
        if note["backend"] not in ("pytorch", "onnxruntime"):
            return None
        _slower(note)  # the figures are there
        options = SessionOptions.from_dict(note["options"])
        return options if isinstance(options.threads, int) and options.threads > 0 else None
    except (KeyError, TypeError, ValueError):
        return None


def _slower(tuning: Mapping[str, Any]) -> str:
    seconds = dict(tuning["seconds"])
    pytorch = seconds.pop("pytorch")
    return f"ONNX Runtime is slower here ({min(seconds.values()) * 1e3:.1f} ms against {pytorch * 1e3:.1f} ms a unit)"
