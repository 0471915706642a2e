"""Component: key -> cache -> build -> prove -> publish.

A component is one exportable part of an engine. Its export is published in the cache only when a proof shows that it
answers as PyTorch does.

An export does not depend on the processor, so that one cache serves many. The result of a proof does depend on it, and
on the code that judges. So it is a note beside the export, one for each version of that code, instruction set and kind
of kernels; where the note is missing, the existing export is proven again. A note also records a rejection with its
figures, so that a rejected export is not built again.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.metadata
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..cache import ContentCache, Entry, make_key
from ..cache.build import Unfinished
from ..errors import BadOutput, ExportError, ProofFailed
from ..hardware import detect
from ..hardware.accelerators import accelerators
from ..runtime.options import ON_CPU, RunOptions
from . import sources
from .graph.specs import OPSET, Weights
from .tracing import on_one_thread

__all__ = [
    "PRECISIONS",
    "Built",
    "Component",
    "Export",
    "Progress",
    "ProgressEvent",
    "counted",
    "export_beside",
    "export_best",
    "export_component",
    "key_fields",
    "tell",
    "telling",
]

logger = logging.getLogger(__name__)

PRECISIONS = ("int4", "int8", "fp32")  # each one's successor is the next better
Proof = Literal["strict", "warn"]
_FORMAT = 1  # bump when the files of an entry change their meaning
_VERSIONED = ("onnxruntime", "torch", "onnx", "onnxscript")
_NAMED = 16  # hexadecimal digits of a digest in a note's name

_unwritten: dict[tuple[Path, str, str], dict[str, Any]] = {}  # notes of caches that cannot be written, for this process


@dataclass(frozen=True)
class ProgressEvent:
    """What is being done: `stage` is hash, build, prove, compile, load, probe or ready; done of total, in steps."""

    component: str
    stage: str
    done: int = 0
    total: int = 0
    precision: str = ""


Progress = Callable[[ProgressEvent], None]


def counted(weights: Weights, total: int, event: ProgressEvent, progress: Progress) -> Weights:
    """The weights, and of about `total` of them how many have been asked for."""
    seen = 0

    def asked(name: str) -> np.ndarray:
        nonlocal seen
        seen += 1
        progress(replace(event, done=min(seen, total), total=total))
        return weights(name)

    return asked


def ignore_progress(_: ProgressEvent) -> None:
    """The default: does nothing."""


_receiver: contextvars.ContextVar[Progress] = contextvars.ContextVar("accelerator_progress", default=ignore_progress)


@contextlib.contextmanager
def telling(progress: Progress) -> Iterator[None]:
    """Within the block, `tell` calls this receiver: for code too deep to be passed one."""
    token = _receiver.set(progress)
    try:
        yield
    finally:
        _receiver.reset(token)


def tell(event: ProgressEvent) -> None:
    """Pass an event to the receiver that `telling` has set."""
    _receiver.get()(event)


@dataclass(frozen=True)
class Built:
    """What a proof is about.

    path: the export's files, which must not be changed. scratch: a directory for temporary files. beside: the export of
    the component that this one belongs to, if any. on: how ONNX Runtime is to run it, but for the number of threads.
    """

    path: Path
    precision: str
    scratch: Path
    beside: Export | None = None
    on: RunOptions = ON_CPU
    _ran: list[RunOptions] = field(default_factory=list, repr=False, compare=False)

    def options(self, **changes: Any) -> RunOptions:
        """How to open the export in a proof, for what it proves to be true of where it is to run."""
        self._ran.append(replace(self.on, **changes))
        return self._ran[-1]

    @property
    def ran(self) -> list[str]:
        """The execution providers on which a proof opened the export; [] if it asked for no `options`."""
        return list(self.on.providers) if self._ran else []


@dataclass(frozen=True)
class Component:
    """One exportable part of an engine, and PyTorch's answer to compare with.

    identity: sha256 of the weights. config: JSON-able; everything beside the weights that shapes the graph. precisions:
    those the component can be built in. build(directory, precision, progress) writes the files. prove(built) returns
    figures, with "passed" (bool) and "bar" among them.

    beside: the name of another component that this one makes faster, and which can run without it. It is exported in
    the other's precision, and its `build` also gets the other's export.

    builders, judges: further code that determines what `build` and `prove` do; it goes into their `sources.digest`.
    kernels: which compiled kernels the proof covers here; each kind has a proof of its own. in_torch: whether `build`
    or `prove` may run PyTorch; what does not can be exported where it is not to be imported.
    """

    name: str
    identity: Callable[[], str]
    config: Mapping[str, Any]
    precisions: tuple[str, ...]
    build: Callable[..., None]
    prove: Callable[[Built], dict[str, Any]]
    builders: tuple[Any, ...] = ()
    judges: tuple[Any, ...] = ()
    kernels: Callable[[], str] = str
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # precision -> what defines it
    weight_bytes: int | None = None  # in float32; helps to guess a precision
    engine: str = ""  # the engine's name, for people who look into the cache
    beside: str = ""
    runs: bool = True  # whether sessions open it; False for tables
    in_torch: bool = True


@dataclass(frozen=True)
class Export:
    """A usable export: its entry, its precision, its proof on this machine, and what was rejected before it."""

    entry: Entry
    precision: str
    proof: Mapping[str, Any]
    rejected: tuple[Mapping[str, Any], ...] = ()

    @property
    def path(self) -> Path:
        return self.entry.path

    @property
    def content(self) -> str:
        """A digest of its files, which may differ between machines: cache scales depend on a processor's sums."""
        return make_key(files=self.entry.manifest["files"])


def key_fields(component: Component, precision: str, beside: Export | None = None) -> dict[str, Any]:
    """Everything an export depends on. Weights, graph, configuration, recipe, operator set and the tools' versions."""
    return {
        "format": _FORMAT,
        "component": component.name,
        "weights": component.identity(),
        "config": dict(component.config),
        "precision": precision,
        "recipe": dict(component.recipes.get(precision, {})),
        "opset": OPSET,
        "sources": sources.digest(component.build, *component.builders),
        "versions": _versions(),
        **({} if beside is None else {"beside": beside.content}),
    }


def proof_note(component: Component, on: RunOptions = ON_CPU) -> str:
    """The name of the note with a proof's result: it covers the code that judges and what is judged, and where."""
    judge = sources.digest(component.prove, *component.judges)
    elsewhere: dict[str, Any] = {}
    if on.providers != ON_CPU.providers:
        elsewhere = {"providers": on.providers, "devices": accelerators()}
    here = make_key(isa=sorted(detect().isa), kernels=component.kernels(), **elsewhere)
    return f"proof-{judge[:_NAMED]}-{here[:_NAMED]}"


def export_component(
    component: Component,
    precision: str,
    cache: ContentCache,
    *,
    proof: Proof = "strict",
    progress: Progress = ignore_progress,
    beside: Export | None = None,
    on: RunOptions = ON_CPU,
) -> Export:
    """The component's export in exactly this precision, from the cache or built, proven and published now.

    on: what it is proven on, beside the CPU alone: the execution providers of these options.

    Raises ProofFailed (with its report) when the proof rejects it and `proof` is "strict", ExportError for any other
    failure of the exporter, CacheError when there is nowhere to put it.
    """
    progress(ProgressEvent(component.name, "hash", precision=precision))
    return _Making(component, precision, cache, proof, progress, beside, on).export()


class _Making:
    """One component in one precision, on its way into a cache or out of it."""

    def __init__(
        self,
        component: Component,
        precision: str,
        cache: ContentCache,
        proof: Proof,
        progress: Progress,
        beside: Export | None,
        on: RunOptions,
    ) -> None:
        self._component, self._precision, self._cache = component, precision, cache
        self._strict, self._progress, self._beside, self._on = proof == "strict", progress, beside, on
        self._fields = key_fields(component, precision, beside)
        self._key, self._note = make_key(**self._fields), proof_note(component, on)
        self._report: dict[str, Any] | None = None

    def export(self) -> Export:
        entry, self._report = self._cache.get(self._key, verify="background"), self._known()
        self._check()
        if entry is None:  # a good report is useless without the export
            self._report = None
            entry = self._cache.get_or_create(self._key, self._build, name=self._component.name, fields=self._fields)
        if self._report is None:  # made by another machine, an earlier version, or another process just now
            self._prove_again(entry)
        self._check()
        assert self._report is not None
        return Export(entry, self._precision, self._report)

    def _build(self, directory: Path) -> dict[str, Any]:
        with self._on_one_thread():  # one key, one content, whatever the engine's number of threads
            with self._as_export_error():
                beside = [] if self._beside is None else [self._beside]
                self._component.build(directory, self._precision, self._progress, *beside)
            self._prove(directory)
        owner = {"engine": self._component.engine} if self._component.engine else {}
        return {"precision": self._precision, **owner}

    def _prove_again(self, entry: Entry) -> None:
        with self._cache.single_flight(make_key(key=self._key, note=self._note)):
            self._report = self._known()
            if self._report is None:
                entry.verified()  # a damaged file would fail its proof, and that would be recorded
                with self._on_one_thread():
                    self._prove(entry.path)

    def _on_one_thread(self) -> contextlib.AbstractContextManager[None]:
        return on_one_thread() if self._component.in_torch else contextlib.nullcontext()

    def _prove(self, directory: Path) -> None:
        self._progress(ProgressEvent(self._component.name, "prove", precision=self._precision))
        scratch, _ = self._cache.scratch()
        with Unfinished(scratch), self._as_export_error():
            built = Built(directory, self._precision, scratch, self._beside, self._on)
            report = _proven(self._component, built)
        if self._on.providers != ON_CPU.providers:
            report["providers"] = built.ran
        if not self._cache.write_note(self._key, self._note, report):
            _unwritten[self._cache.root, self._key, self._note] = report
        self._report = report
        self._check()
        if not report["passed"]:
            message = f"{_rejection(self._component, self._precision, report)}; published all the same"
            warnings.warn(f"{message} because of proof='warn'", RuntimeWarning, stacklevel=2)

    def _known(self) -> dict[str, Any] | None:
        """The result of an earlier proof on this kind of machine, if there is one."""
        kept = _unwritten.get((self._cache.root, self._key, self._note))
        report = self._cache.read_note(self._key, self._note) or kept
        return report if report is not None and isinstance(report.get("passed"), bool) else None

    def _check(self) -> None:
        """Raises ProofFailed for a failed report under "strict"."""
        if self._report is not None and not self._report["passed"] and self._strict:
            raise ProofFailed(_rejection(self._component, self._precision, self._report), self._report)

    @contextlib.contextmanager
    def _as_export_error(self) -> Iterator[None]:
        try:
            yield
        except (ExportError, MemoryError):
            raise
        except Exception as error:  # whatever the exporter's many layers raise
            name, precision = self._component.name, self._precision
            raise ExportError(f"{name} could not be exported as {precision}: {error}") from error


def export_best(
    component: Component,
    precision: str,
    cache: ContentCache,
    *,
    proof: Proof = "strict",
    progress: Progress = ignore_progress,
) -> Export:
    """The export in `precision`, or in the next better one that can be built and passes its proof.

    Raises ExportError when none does; ProofFailed if it was the last one's proof.
    """
    rejected: list[Mapping[str, Any]] = []
    for candidate in _from(precision, component.precisions):
        try:
            export = export_component(component, candidate, cache, proof=proof, progress=progress)
        except ExportError as error:
            report = error.report if isinstance(error, ProofFailed) else {"passed": False, "error": str(error)}
            rejected.append({"precision": candidate, **report})
            logger.warning("%s", error)
            failure = error
            continue
        return Export(export.entry, candidate, export.proof, tuple(rejected))
    raise failure


def export_beside(
    component: Component, export: Export, cache: ContentCache, *, progress: Progress = ignore_progress
) -> Export | None:
    """The export of a component that belongs to another one's `export`; None if it fails: the other can do without."""
    if export.precision not in component.precisions:
        return None
    try:
        return export_component(component, export.precision, cache, progress=progress, beside=export)
    except ExportError as error:
        logger.warning("%s; %s does without it", error, component.beside)
        return None


def _from(precision: str, offered: Sequence[str]) -> list[str]:
    """The offered precisions from `precision` upwards; the best one offered if none is as good."""
    wanted = [p for p in PRECISIONS[PRECISIONS.index(precision) :] if p in offered]
    return wanted or [p for p in PRECISIONS if p in offered][-1:]


def _proven(component: Component, built: Built) -> dict[str, Any]:
    try:
        return _finite(component.prove(built))
    except BadOutput as error:  # the model answered, wrongly: no failure of the exporter
        return {"passed": False, "error": str(error)}


def _finite(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with NaN and infinities as text: JSON has neither."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return {k: plain(v) for k, v in report.items()}


def _rejection(component: Component, precision: str, report: Mapping[str, Any]) -> str:
    figures = [f"{k} {v:.3g}" for k, v in report.items() if isinstance(v, float)]
    figures += [f"{k}: {v}" for k, v in report.items() if isinstance(v, str)]
    return f"{component.name} as {precision} is not faithful to PyTorch ({', '.join(figures)}; bar {report.get('bar')})"


@functools.cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _VERSIONED}
