"""Part -> exports -> backends -> probe: decides what a part runs on here, and how.

The decision is a `tuning`: later processes follow it, and change only what a seed's audio does not depend on. Backends
are rows of a part's table: nothing here knows one by name.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ..cache import ContentCache, make_key
from ..errors import CorruptEntry, ExportError, SessionError
from ..export.component import (
    Component,
    Export,
    Progress,
    ProgressEvent,
    export_beside,
    export_best,
    export_component,
    ignore_progress,
    telling,
)
from ..hardware import choose_tier
from ..hardware.accelerators import accelerators
from ..hardware.busy import BusyClock
from ..hardware.forks import Lock
from ..hardware.pages import return_freed
from ..parts.part import Backend, Call, Machine, Part
from ..runtime.options import ON_CPU, RunOptions
from .tuning import ORIGINAL, Record, Tuning, Way

__all__ = ["Choice", "Selector"]

logger = logging.getLogger(__name__)

_Made = TypeVar("_Made")
_CLOSE = 1.3  # a candidate within this factor of the best so far is timed again


@dataclass(frozen=True)
class Choice:
    """What was decided for a part. `call` is None where the original serves it, and `reason` says why.

    shared: `call` for concurrent callers, on one thread each. probe: the tuning; before: the previous one, if any.
    pruned: what became of the wish to prune it; see `pruned.chosen`.
    """

    call: Call | None
    reason: str
    cause: str = ""  # the reason in one word where the original serves the part: an error's name, or "Slower"
    precision: str = "fp32"
    options: RunOptions | None = None
    exports: Mapping[str, Export] = field(default_factory=dict)
    probe: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)
    shared: Call | None = None
    pruned: Mapping[str, Any] = field(default_factory=dict)

    @property
    def backend(self) -> str | None:
        """The backend's name; None where the original serves the part."""
        if self.call is None:
            return None
        return RunOptions().backend if self.options is None else self.options.backend


@dataclass(frozen=True)
class _Candidate:
    """A backend under one setting, with its exports."""

    backend: Backend
    options: RunOptions
    exports: Mapping[str, Export]

    @property
    def way(self) -> Way:
        return Way(self.backend.name, self.options)


@dataclass(frozen=True)
class Selector:
    """The settings shared by all parts of one engine."""

    cache: ContentCache
    machine: Machine
    proof: Any = "strict"
    probe: bool = True
    progress: Progress = ignore_progress
    clock: Callable[[], BusyClock] = BusyClock
    now: Callable[[], float] = time.time
    engine: str = ""  # the engine's name, recorded in cache entries

    def load(self, part: Part) -> Choice:
        """Export (or find) what a part's backends need, load it, and keep what is fastest. Raises any failure."""
        return self._rebuilt(part.name, lambda: self._load(part, None))

    def tune(self, part: Part, *, again: bool = False) -> Choice:
        """As `load`, but adopt a proposed change at once, and measure again what was measured on a busy machine.

        again: measure in any case. Raises any failure.
        """
        return self._rebuilt(part.name, lambda: self._load(part, again))

    def exported(self, component: Component) -> Export:
        """One component in float32, only if it passes its proof. Raises ExportError."""
        owned = replace(component, engine=self.engine)
        make = functools.partial(export_component, owned, "fp32", self.cache, progress=self.progress)
        return self._rebuilt(component.name, make)

    def _rebuilt(self, name: str, make: Callable[[], _Made]) -> _Made:
        with telling(self.progress):
            try:
                return make()
            except CorruptEntry as error:  # found and set aside while loading: build it again
                logger.warning("%s: %s", name, error)
                return make()
            finally:  # of what was exported, proven and probed
                return_freed()

    def _load(self, part: Part, tune: bool | None) -> Choice:
        """tune: None for `load`, otherwise the `again` of `tune`."""
        here = [backend for backend in part.backends if backend.dtypes(self.machine)]
        if not here:
            return Choice(None, "there is nothing else to run it on here", "Unavailable")
        if not self.probe:
            return self._unprobed(part, here)
        record, failed = self._record(part, here), False
        if tune is None and (tuning := record.read()) is not None and not record.is_due(tuning):
            try:  # without looking at what other backends need
                return self._known(part, here, tuning)
            except (SessionError, ExportError) as error:
                logger.warning("%s: %s; it is probed again", part.name, error)
                failed = True
        with record.measuring():
            return self._tuned(part, here, record, tune, failed)

    def _record(self, part: Part, here: Sequence[Backend]) -> Record:
        """The record for this choice of backends and settings; choices made among others do not apply."""
        wishes = str(self.machine.threads or "auto"), self.machine.precision
        kinds = {f"{backend.name}-{dtype}" for backend in here for dtype in backend.dtypes(self.machine)}
        names = self.machine.profile.fingerprint, *wishes, *sorted(kinds), *self._devices()
        backends = [backend.name for backend in here]
        components = here[0].components
        identity = part.identity or (components[-1].identity if components else lambda: part.name)
        return Record.of(self.cache, part.name, identity(), *names, backends=backends, now=self.now)

    def _devices(self) -> list[str]:
        """What tells tunings with execution providers from those without, and those of other devices."""
        providers = self.machine.providers
        return [make_key(providers=providers, devices=accelerators())[:16]] if providers else []

    # Exports

    def _candidates(
        self, part: Part, backends: Sequence[Backend], among: Callable[[Way], bool] = lambda way: True
    ) -> Iterator[_Candidate]:
        """All proven settings among some. Raises the last ExportError if no backend could be exported."""
        known: dict[str, Export | None] = {}
        failure, found = None, False
        for backend in backends:
            try:
                exports = self._exported(backend, known)
            except ExportError as error:
                logger.warning("%s cannot run on %s: %s", part.name, backend.name, error)
                failure = error
                continue
            for options in backend.offers(self.machine):
                wanted = among(Way(backend.name, options)) and backend.proven(options, exports)
                if wanted and self._proven_on(backend, exports, options):
                    found = True
                    yield _Candidate(backend, options, exports)
        if failure is not None and not found:
            raise failure

    def _proven_on(self, backend: Backend, exports: Mapping[str, Export], options: RunOptions) -> bool:
        """Whether the exports answer as they should on the execution providers of these options, too."""
        if options.providers == ON_CPU.providers:
            return True
        if not self.probe:  # nor would be known whether they are faster there
            return False
        for component in (each for each in backend.components if each.runs and each.name in exports):
            export, beside = exports[component.name], exports.get(component.beside)
            owned, how = replace(component, engine=self.engine), {"progress": self.progress, "beside": beside}
            try:
                there = export_component(owned, export.precision, self.cache, on=options, **how)  # type: ignore[arg-type]
            except ExportError as error:
                logger.warning("%s does not run on %s: %s", component.name, options.providers[0], error)
                return False
            if there.proof.get("providers") != list(options.providers):  # it opened sessions of its own, on the CPU
                return False
        return True

    def _exported(self, backend: Backend, known: dict[str, Export | None]) -> dict[str, Export]:
        """A backend's exports in the precision asked for, or in one that suits their size; optional ones may be absent.

        known: what was exported so far; None for what could not be.
        """
        precision = self.machine.precision
        if precision == "auto":
            sizes = [component.weight_bytes for component in backend.components if component.weight_bytes]
            precision = choose_tier(self.machine.profile, model_bytes_fp32=sum(sizes) or None).precision
        for component in backend.components:
            if component.name not in known:
                known[component.name] = self._export(component, precision, known)
        names = (component.name for component in backend.components)
        return {name: export for name in names if (export := known[name]) is not None}

    def _export(self, component: Component, precision: str, known: Mapping[str, Export | None]) -> Export | None:
        owned = replace(component, engine=self.engine)
        if (other := known.get(component.beside)) is not None:
            return export_beside(owned, other, self.cache, progress=self.progress)
        return export_best(owned, precision, self.cache, proof=self.proof, progress=self.progress)

    # Choosing

    def _unprobed(self, part: Part, here: Sequence[Backend]) -> Choice:
        wanted = self.machine.threads or self.machine.tier.threads
        failure: Exception | None = None
        for backend in (b for b in here if not b.probed):
            try:
                candidates = list(self._candidates(part, [backend]))
                plain = [c for c in candidates if c.options.threads == wanted and not c.options.spin_us] or candidates
                if plain:
                    return self._open(part, plain[0], "not probed")
            except (SessionError, ExportError) as error:
                logger.warning("%s: %s; another backend is used", part.name, error)
                failure = error
        raise failure or SessionError(f"nothing that {part.name} could run on was proven")

    def _known(self, part: Part, here: Sequence[Backend], tuning: Tuning) -> Choice:
        """The part as a tuning has it. Raises SessionError, ExportError."""
        if tuning.way == ORIGINAL:
            return _stays(tuning)
        backends = [backend for backend in here if backend.name == tuning.way.backend]
        alike = list(self._candidates(part, backends, lambda way: way.sound == tuning.way.sound))
        exact = [c for c in alike if c.way == tuning.way] or alike
        if not exact:
            raise SessionError(f"{tuning.way.name} is not available here")
        return replace(
            self._open(part, exact[0], _reason(tuning, "fastest when probed before")), probe=tuning.to_dict()
        )

    def _tuned(self, part: Part, here: Sequence[Backend], record: Record, tune: bool | None, failed: bool) -> Choice:
        """Measure the part, or take what another process measured while this one waited for the lock.

        failed: whether the earlier choice cannot be loaded in this process.
        """
        before, opened = record.read(), None
        if before is None or failed or tune or (record.is_due(before) if tune is None else not before.calm):
            tuning, opened = self._probed(part, here, before)
        else:
            tuning = before
        if tune is not None:
            tuning = tuning.accepted()
            if tuning != before:
                record.write(tuning)
        elif tuning != before and (before is None or tuning.way.sound == before.way.sound):
            tuning = record.publish(tuning, before)
        return replace(self._chosen(part, here, tuning, opened), before={} if before is None else before.to_dict())

    def _chosen(
        self, part: Part, here: Sequence[Backend], tuning: Tuning, opened: Mapping[Way, Choice] | None
    ) -> Choice:
        """opened: calls kept from measuring, if that was done now. Raises SessionError, ExportError."""
        if tuning.proposed is not None:
            logger.info("%s: %s", part.name, tuning.waits)
        if opened is None:
            return self._known(part, here, tuning)
        if tuning.way == ORIGINAL:
            level = logging.WARNING if part.components else logging.INFO  # nothing was exported in vain
            logger.log(level, "%s stays as it was: %s", part.name, tuning.slower)
            kept = list(opened.values())
            return replace(_stays(tuning), exports=kept[0].exports if kept else {})
        if tuning.way not in opened:
            return self._known(part, here, tuning)
        return replace(opened[tuning.way], reason=_reason(tuning, "fastest when probed"), probe=tuning.to_dict())

    def _probed(self, part: Part, here: Sequence[Backend], before: Tuning | None) -> tuple[Tuning, dict[Way, Choice]]:
        """Time the part under each setting and as the original; also returns the opened calls of the fastest."""
        seconds: dict[Way, float] = {}
        opened: dict[Way, Choice] = {}
        failure: SessionError | None = None
        clock, candidates = self.clock(), list(self._candidates(part, here))
        for done, candidate in enumerate(candidates):
            way = candidate.way
            self.progress(ProgressEvent(part.name, "probe", done, len(candidates) + 1, _precision(candidate)))
            try:
                choice = self._open(part, candidate, "")
                taken = _timed(part, choice, min(seconds.values(), default=None))
            except SessionError as error:
                logger.warning("%s: %s; another backend is used", part.name, error)
                failure = error
                continue
            seconds[way], opened[way] = taken, choice
            alike = [w for w in seconds if before is not None and w.sound == before.way.sound]
            best = [min(ways, key=seconds.__getitem__) for ways in (list(seconds), alike) if ways]
            opened = {w: each for w, each in opened.items() if w in best}
        if not seconds:
            raise failure or SessionError(f"nothing that {part.name} could run on was proven")
        self.progress(ProgressEvent(part.name, "probe", len(candidates), len(candidates) + 1))
        seconds[ORIGINAL] = part.probe(part.original)
        precisions = {each.way: _precision(each) for each in candidates}
        tuning = Tuning.of(
            part.name,
            seconds,
            clock.others_cpus(),
            self.now(),
            before,
            engine=self.engine,
            precisions=precisions,
        )
        return tuning, opened

    def _open(self, part: Part, candidate: _Candidate, reason: str) -> Choice:
        """Load while the files' digests are still being checked, and wait for the check before anything is used."""
        backend, options, exports = candidate.backend, candidate.options, candidate.exports
        paths = {name: export.path for name, export in exports.items()}
        self.progress(ProgressEvent(part.name, "load", precision=_precision(candidate)))
        try:
            call = backend.load(paths, options)
        finally:  # a corrupt file takes precedence over whatever the loader raised
            for export in exports.values():
                export.entry.verified()
        call, shared = _calls(backend, call, paths, options)
        return Choice(call, reason, precision=_precision(candidate), options=options, exports=exports, shared=shared)


def _timed(part: Part, choice: Choice, best: float | None) -> float:
    """Seconds of a probe; of the better of two if close to the best so far."""
    taken = part.probe(choice.call)  # type: ignore[arg-type]
    if best is None or taken < _CLOSE * best:
        taken = min(taken, part.probe(choice.call))  # type: ignore[arg-type]
    return taken


def _precision(candidate: _Candidate) -> str:
    """The precision of the computing export, a backend's last; float32 weights may be multiplied in less."""
    stored = [export.precision for export in candidate.exports.values()][-1:]
    return candidate.options.dtype if stored in ([], ["fp32"]) else stored[0]


def _reason(tuning: Tuning, reason: str) -> str:
    return reason if tuning.proposed is None else f"kept, as when it was first probed; {tuning.waits}"


def _stays(tuning: Tuning) -> Choice:
    return Choice(None, tuning.slower, "Slower", probe=tuning.to_dict())


def _calls(backend: Backend, call: Call, paths: Mapping[str, Path], options: RunOptions) -> tuple[Call, Call]:
    """A backend's call for an exclusive caller, and for concurrent ones."""
    if not backend.concurrent:
        both = _one_by_one(call)
        return both, both
    return call, call if options.threads == 1 or backend.shared else _on_one_thread(backend, paths, options)


def _one_by_one(call: Call) -> Call:
    lock = Lock()

    def locked(*arguments: Any, **options: Any) -> Any:
        with lock:
            return call(*arguments, **options)

    return locked


def _on_one_thread(backend: Backend, paths: Mapping[str, Path], options: RunOptions) -> Call:
    """A call on one thread, which any number of threads may make at once; loaded on first use."""
    lock, opened = Lock(), list[Call]()

    def call(*arguments: Any, **given: Any) -> Any:
        with lock:
            if not opened:
                opened.append(backend.load(paths, replace(options, threads=1, spin_us=0)))
        return opened[0](*arguments, **given)

    return call
