"""Part -> exports -> sessions -> probe: decides whether a part runs in ONNX Runtime on this machine, and how.

What is decided is a `tuning`: later processes follow it, and change of it only what the audio of a seed does not depend
on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..cache import ContentCache
from ..engines.base import Call, Part
from ..errors import CorruptEntry, ExportError, SessionError
from ..export.component import Component, Export, Progress, ProgressEvent, export_best, export_component, telling
from ..hardware import HardwareProfile, Tier, choose_tier
from ..hardware.busy import BusyClock
from ..runtime.onnx import BF16_FLAGS, SHORT_SPIN_US, Dtype, SessionOptions, can_bound_spinning
from ..runtime.threads import torch_threads
from .tuning import Record, Tuning, Way

__all__ = ["Choice", "Loader"]

logger = logging.getLogger(__name__)

_CLOSE = 1.3  # times the best so far, below which a candidate is timed once more


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
    before: Mapping[str, Any] = field(default_factory=dict)  # the tuning that it was measured against, if it was

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
    now: Callable[[], float] = time.time
    engine: str = ""  # its name, which entries of the cache are given

    def load(self, part: Part) -> Choice:
        """Export (or find) the part's components, load them, and keep what is faster. Raises what goes wrong."""
        return self._rebuilt(part, None)

    def tune(self, part: Part, *, again: bool = False) -> Choice:
        """Load it as `load` does, but change at once to what is proposed, and measure what is known of a busy machine.

        again: measure in any case. Raises what goes wrong.
        """
        return self._rebuilt(part, again)

    def _rebuilt(self, part: Part, tune: bool | None) -> Choice:
        with telling(self.progress):
            try:
                return self._load(part, tune)
            except CorruptEntry as error:  # found while the sessions loaded, and set aside: build it anew
                logger.warning("%s: %s", part.name, error)
                return self._load(part, tune)

    def _load(self, part: Part, tune: bool | None) -> Choice:
        """tune: None, or what `tune` was asked for."""
        twin = self._twin(part) if self.probe else None
        record, failed = None, False
        if twin is not None and part.twin is not None:
            record = self._record(part, part.twin, *(options.dtype for options in self._twins(twin)))
            if tune is None and (tuning := self._settled(record)) is not None and tuning.way.backend == "onednn":
                try:  # without so much as looking at the other export
                    return self._chosen(part, Choice(None, ""), twin, tuning)
                except SessionError as error:
                    logger.warning("%s: %s; ONNX Runtime is used", part.name, error)
                    twin, failed = None, True
        base = self._exported(part)
        if not self.probe:
            return self._unprobed(part, base)
        if record is None:
            native = ["native"] if self._natives(part, base.exports) else []
            record = self._record(part, part.components[-1], base.precision, *native)
        if tune is None and not failed and (tuning := self._settled(record)) is not None:
            try:
                return self._chosen(part, base, twin, tuning)
            except SessionError as error:
                if tuning.way.backend == "onnxruntime":
                    raise
                logger.warning("%s: %s; it is probed again", part.name, error)
                failed = True
        with record.measuring():
            return self._tuned(part, base, twin, record, tune, failed)

    def _exported(self, part: Part) -> Choice:
        """The part's exports in the precision asked for, or in what suits its size."""
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
        return Choice(None, "", precision=main.precision, exports=exports)

    def _unprobed(self, part: Part, base: Choice) -> Choice:
        options = SessionOptions(threads=self.threads or self.tier.threads)
        if self._natives(part, base.exports):
            try:
                return self._open(part, base, replace(options, backend="native"), "not probed")
            except SessionError as error:
                logger.warning("%s: %s; ONNX Runtime is used", part.name, error)
        return self._open(part, base, options, "not probed")

    def _record(self, part: Part, component: Component, *kinds: str) -> Record:
        """kinds: what there is to choose from; what was chosen among more, or less, says nothing here."""
        names = self.profile.fingerprint, str(self.threads or "auto"), *kinds
        return Record.of(self.cache, part.name, component.identity(), *names, now=self.now)

    def _settled(self, record: Record) -> Tuning | None:
        """What was measured before, unless that is to be measured again."""
        tuning = record.read()
        return None if tuning is None or record.is_due(tuning) else tuning

    def _tuned(
        self, part: Part, base: Choice, twin: Export | None, record: Record, tune: bool | None, failed: bool
    ) -> Choice:
        """Measure the part, or take what another process has measured while this one waited for its turn.

        failed: what was chosen before cannot be had in this process.
        """
        before, opened = record.read(), None
        if before is None or failed or tune or (record.is_due(before) if tune is None else not before.calm):
            tuning, opened = self._probed(part, base, twin, before)
        else:
            tuning = before
        if tune is not None:
            tuning = tuning.accepted()
            if tuning != before:
                record.write(tuning)
        elif tuning != before and (before is None or tuning.way.sound == before.way.sound):
            tuning = record.publish(tuning, before)
        choice = self._chosen(part, base, twin, tuning, opened)
        return replace(choice, before={} if before is None else before.to_dict())

    def _chosen(
        self,
        part: Part,
        base: Choice,
        twin: Export | None,
        tuning: Tuning,
        opened: Mapping[Way, Choice] | None = None,
    ) -> Choice:
        """The part as a tuning says. opened: what was kept of measuring it, if that was now. Raises SessionError."""
        way, probe = tuning.way, tuning.to_dict()
        if way.backend == "pytorch":
            if opened is not None:
                logger.warning("%s stays in PyTorch: %s", part.name, tuning.slower)
            return replace(base, reason=tuning.slower, cause="Slower", probe=probe)
        reason = "fastest when probed before" if opened is None else "fastest when probed"
        if tuning.proposed is not None:
            logger.info("%s: %s", part.name, tuning.waits)
            reason = f"kept, as when it was first probed; {tuning.waits}"
        if opened is not None and way in opened:
            return replace(opened[way], reason=reason, probe=probe)
        options = way.options
        if way.backend == "onednn":
            if twin is None:
                raise SessionError("its twin in PyTorch cannot be had")
            options = replace(options, threads=torch_threads())
        return self._open(part, _with(replace(base, probe=probe), part, twin, options), options, reason)

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

    def _probed(
        self, part: Part, base: Choice, twin: Export | None, before: Tuning | None
    ) -> tuple[Tuning, dict[Way, Choice]]:
        """Time the part under each setting and in PyTorch; also what was opened of the fastest."""
        seconds: dict[Way, float] = {}
        opened: dict[Way, Choice] = {}
        clock = self.clock()
        # What mostly wins comes first: what is far behind then is timed only once.
        candidates = [*self._natives(part, base.exports), *self._twins(twin), *self._candidates()]
        for done, options in enumerate(candidates):
            self.progress(ProgressEvent(part.name, "probe", done, len(candidates) + 1, base.precision))
            way = Way(options.backend, options)
            try:
                choice = self._open(part, _with(base, part, twin, options), options, "")
                taken = part.probe(choice.call)  # type: ignore[arg-type]
                if not seconds or taken < _CLOSE * min(seconds.values()):
                    taken = min(taken, part.probe(choice.call))  # type: ignore[arg-type]
            except SessionError as error:
                if options.backend == "onnxruntime":
                    raise
                logger.warning("%s: %s; ONNX Runtime is used", part.name, error)
                continue
            seconds[way], opened[way] = taken, choice
            alike = [w for w in seconds if before is not None and w.sound == before.way.sound]
            best = [min(ways, key=seconds.__getitem__) for ways in (list(seconds), alike) if ways]
            opened = {w: each for w, each in opened.items() if w in best}
        self.progress(ProgressEvent(part.name, "probe", len(candidates), len(candidates) + 1, base.precision))
        seconds[Way("pytorch", SessionOptions())] = part.probe(part.torch)
        return Tuning.of(part.name, seconds, clock.others_cpus(), self.now(), before), opened

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
