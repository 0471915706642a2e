"""Part -> exports -> sessions -> probe: decides once per machine whether a part runs in ONNX Runtime, and how."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .cache import ContentCache
from .engines.base import Call, Part, torch_threads
from .errors import CorruptEntry, ExportError, SessionError
from .export import Export, Progress, ProgressEvent, export_best, export_component, telling
from .hardware import HardwareProfile, Tier, choose_tier
from .hardware.busy import BusyClock
from .session import BF16_FLAGS, SHORT_SPIN_US, Dtype, SessionOptions, can_bound_spinning

__all__ = ["Choice", "Loader", "tuning_note"]

logger = logging.getLogger(__name__)

BUSY = 0.25  # CPUs that others kept busy during a probe, above which it is not believed for good
PROBES = 3  # at most, while the machine is busy each time
_CLOSE = 1.3  # times the best so far, below which a candidate is timed once more
MARGIN = 1.0  # ONNX Runtime must need less than this share of PyTorch's time


def tuning_note(fingerprint: str, threads: int | None = None) -> str:
    """The name of the cache's note that says what was fastest on a machine."""
    return f"tuning-{fingerprint}-{threads or 'auto'}"


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
        """ "pytorch", "onnxruntime", "onednn" for the part's twin in PyTorch, or "native" for compiled kernels."""
        if self.call is None:
            return "pytorch"
        return "onnxruntime" if self.options is None else self.options.backend


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
    clock: Callable[[], BusyClock] = BusyClock
    engine: str = ""  # its name, which entries of the cache are given

    def load(self, part: Part) -> Choice:
        """Export (or find) the part's components, load them, and keep what is faster. Raises what goes wrong."""
        with telling(self.progress):
            try:
                return self._load(part)
            except CorruptEntry as error:  # found while the sessions loaded, and set aside: build it anew
                logger.warning("%s: %s", part.name, error)
                return self._load(part)

    def _load(self, part: Part) -> Choice:
        note = tuning_note(self.profile.fingerprint, self.threads)
        if part.twin is not None and self.precision == "fp32":
            note += "-fp32"  # what wins in bfloat16 says nothing here
        twin = self._twin(part) if self.probe else None
        if twin is not None and (tuned := self._tuned(twin, note)) and tuned["backend"] == "onednn":
            try:  # without so much as looking at the other export
                base = Choice(None, "", exports={part.twin.name: twin}, probe=tuned)  # type: ignore[union-attr]
                options = SessionOptions.from_dict(tuned["options"])
                if options in self._twins(twin):
                    return self._open(part, base, options, "fastest when probed before")
            except SessionError as error:
                logger.warning("%s: %s; ONNX Runtime is used", part.name, error)
                twin = None
        precision = self.precision
        if precision == "auto":
            sizes = [component.weight_bytes for component in part.components if component.weight_bytes]
            precision = choose_tier(self.profile, model_bytes_fp32=sum(sizes) or None).precision
        exports = {
            component.name: export_best(
                replace(component, engine=self.engine), precision, self.cache, proof=self.proof, progress=self.progress
            )
            for component in part.components
        }
        main = list(exports.values())[-1]  # a part's last component is the one that computes
        base = Choice(None, "", precision=main.precision, exports=exports)
        if not self.probe:
            options = SessionOptions(threads=self.threads or self.tier.threads)
            if self._natives(part, exports):
                try:
                    return self._open(part, base, replace(options, backend="native"), "not probed")
                except SessionError as error:
                    logger.warning("%s: %s; ONNX Runtime is used", part.name, error)
            return self._open(part, base, options, "not probed")
        tuned = self._tuned(main, note)
        if tuned is None or tuned["backend"] == "onednn":
            return self._probe(part, base, main, twin, note)
        if tuned["backend"] == "pytorch":
            return replace(base, reason=_slower(tuned), cause="Slower", probe=tuned)
        options = SessionOptions.from_dict(tuned["options"])
        try:
            return self._open(part, replace(base, probe=tuned), options, "fastest when probed before")
        except SessionError as error:
            if options.backend == "onnxruntime":
                raise
            logger.warning("%s: %s; it is probed again", part.name, error)
            return self._probe(part, base, main, twin, note)

    def _twin(self, part: Part) -> Export | None:
        """The weights of the part's twin, or None if it has none or it cannot be had."""
        if part.twin is None:
            return None
        try:
            twin = replace(part.twin, engine=self.engine)
            return export_component(twin, "fp32", self.cache, proof=self.proof, progress=self.progress)
        except ExportError as error:
            logger.warning("%s has no twin: %s", part.name, error)
            return None

    def _twins(self, twin: Export | None) -> list[SessionOptions]:
        """The settings a twin may run with here: less than float32 only where it was proven, is fast, and is not ruled
        out."""
        threads = torch_threads()
        if twin is None or self.threads not in (None, threads):
            return []
        has_bf16 = any(flag in self.profile.isa for flag in BF16_FLAGS)
        exact = SessionOptions(threads=threads, backend="onednn")
        low: Dtype = "bf16" if has_bf16 else "int16"
        proven = twin.proof.get(low, {}).get("passed") is True
        return [exact, replace(exact, dtype=low)] if proven and self.precision != "fp32" else [exact]

    def _tuned(self, export: Export, note: str) -> dict[str, Any] | None:
        """What was measured before, unless that is to be measured again."""
        tuned = self.cache.read_note(export.entry.key, note)
        if tuned is None or not _is_tuning(tuned):
            return None
        again = (tuned.get("others_cpus") or 0.0) > BUSY and tuned.get("probes", PROBES) < PROBES
        return None if again else dict(tuned)

    def _probe(self, part: Part, base: Choice, main: Export, twin: Export | None, note: str) -> Choice:
        """Time the part under each setting and in PyTorch, remember the winner, and how busy the machine was."""
        seconds: dict[str, float] = {}
        best: Choice | None = None
        clock, before = self.clock(), self.cache.read_note(main.entry.key, note)
        # What mostly wins comes first: what is far behind then is timed only once.
        candidates = [*self._natives(part, base.exports), *self._twins(twin), *self._candidates()]
        for done, options in enumerate(candidates):
            self.progress(ProgressEvent(part.name, "probe", done, len(candidates) + 1, base.precision))
            try:
                choice = self._open(part, _with(base, part, twin, options), options, "fastest when probed")
                taken = part.probe(choice.call)  # type: ignore[arg-type]
                if not seconds or taken < _CLOSE * min(seconds.values()):
                    taken = min(taken, part.probe(choice.call))  # type: ignore[arg-type]
            except SessionError as error:
                if options.backend == "onnxruntime":
                    raise
                logger.warning("%s: %s; ONNX Runtime is used", part.name, error)
                continue
            if best is None or taken < min(seconds.values()):
                best = choice
            seconds[_name(options)] = taken
        assert best is not None
        assert best.options is not None
        self.progress(ProgressEvent(part.name, "probe", len(candidates), len(candidates) + 1, base.precision))
        fastest, pytorch = min(seconds.values()), part.probe(part.torch)
        backend = best.options.backend if fastest < MARGIN * pytorch else "pytorch"
        result = {
            "backend": backend,
            "options": best.options.to_dict(),
            "seconds": {**seconds, "pytorch": pytorch},
            "others_cpus": clock.others_cpus(),
            "probes": 1 + (before.get("probes", 0) if before is not None and _is_tuning(before) else 0),
        }
        for export in (main, twin):
            if export is not None:
                self.cache.write_note(export.entry.key, note, result)
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
        precision = options.dtype if options.backend == "onednn" else base.precision
        return replace(base, call=call, options=options, reason=reason, precision=precision)

    def _natives(self, part: Part, exports: Mapping[str, Export]) -> list[SessionOptions]:
        """The settings that compiled kernels may run with, if the part has some for these exports."""
        if not part.compiled({name: export.path for name, export in exports.items()}):
            return []
        return [replace(o, backend="native") for o in self._candidates() if not o.spin_us]

    def _candidates(self) -> list[SessionOptions]:
        """One thread, the tier's guess, and beyond it; several threads also with a short spin."""
        counts = {1, self.tier.threads, min(self.profile.usable_cores, 2 * self.tier.threads)}
        threads = sorted(counts) if self.threads is None else [self.threads]
        spins = (0, SHORT_SPIN_US) if can_bound_spinning() else (0,)
        return [SessionOptions(threads=n, spin_us=spin) for n in threads for spin in (spins if n > 1 else (0,))]


def _with(base: Choice, part: Part, twin: Export | None, options: SessionOptions) -> Choice:
    """What is opened for these settings: the part's own exports, or its twin's."""
    if options.backend != "onednn" or twin is None or part.twin is None:
        return base
    return replace(base, exports={part.twin.name: twin})


def _name(options: SessionOptions) -> str:
    if options.backend == "onednn":
        return f"onednn-{options.dtype}-{options.threads}"
    return f"{options.backend}-{options.threads}{f'-spin{options.spin_us}' if options.spin_us else ''}"


def _is_tuning(note: Mapping[str, Any]) -> bool:
    """Whether it is a note as `_probe` writes them."""
    try:
        if note["backend"] not in ("pytorch", "onnxruntime", "onednn", "native"):
            return False
        _slower(note)  # the figures are there
        float(note.get("others_cpus") or 0.0), int(note.get("probes", 0))
        options = SessionOptions.from_dict(note["options"])
        return isinstance(options.threads, int) and options.threads > 0
    except (KeyError, TypeError, ValueError):
        return False


def _slower(tuning: Mapping[str, Any]) -> str:
    seconds = dict(tuning["seconds"])
    pytorch = seconds.pop("pytorch")
    return f"ONNX Runtime is slower here ({min(seconds.values()) * 1e3:.1f} ms against {pytorch * 1e3:.1f} ms a unit)"
