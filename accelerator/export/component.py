"""Component: key -> cache -> build -> prove -> publish.

A component is one exportable part of an engine. Its export is published in the cache only when the proof says that ONNX
Runtime answers as PyTorch does; a rejected precision is remembered with its figures, so that it is not built again.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import hashlib
import importlib.metadata
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..cache import ContentCache, Entry, make_key
from ..errors import BadOutput, ExportError, ProofFailed
from .graph.graph import OPSET
from .tracing import on_one_thread

__all__ = [
    "PRECISIONS",
    "Component",
    "Export",
    "Progress",
    "ProgressEvent",
    "export_best",
    "export_component",
    "tell",
    "telling",
]

logger = logging.getLogger(__name__)

PRECISIONS = ("int4", "int8", "fp32")  # each one's successor is the next better
Proof = Literal["strict", "warn"]
_FORMAT = 1  # bump when the files of an entry change their meaning
_VERSIONED = ("onnxruntime", "torch", "onnx", "onnxscript")


@dataclass(frozen=True)
class ProgressEvent:
    """What is being done: `stage` is hash, build, prove, compile, load, probe or ready; done of total, in steps."""

    component: str
    stage: str
    done: int = 0
    total: int = 0
    precision: str = ""


Progress = Callable[[ProgressEvent], None]


def ignore_progress(_: ProgressEvent) -> None:
    """The default: nobody is told."""


_receiver: contextvars.ContextVar[Progress] = contextvars.ContextVar("accelerator_progress", default=ignore_progress)


@contextlib.contextmanager
def telling(progress: Progress) -> Iterator[None]:
    """Let `tell` reach this receiver within the block: for what happens too deep to be handed one."""
    token = _receiver.set(progress)
    try:
        yield
    finally:
        _receiver.reset(token)


def tell(event: ProgressEvent) -> None:
    """Pass an event to whoever listens here."""
    _receiver.get()(event)


@dataclass(frozen=True)
class Component:
    """One exportable part of an engine, and PyTorch's answer to compare with.

    identity: sha256 of the weights. config: JSON-able; everything beside the weights that shapes the graph.
    precisions: those
    the component can be built in. build(directory, precision, progress) writes the files. prove(directory, precision)
    returns
    figures, with "passed" (bool) and "bar" among them. sources: Python files whose text takes part in the key.
    """

    name: str
    identity: Callable[[], str]
    config: Mapping[str, Any]
    precisions: tuple[str, ...]
    build: Callable[[Path, str, Progress], None]
    prove: Callable[[Path, str], dict[str, Any]]
    sources: tuple[str, ...] = ()
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # precision -> what defines it
    weight_bytes: int | None = None  # in float32; helps to guess a precision
    engine: str = ""  # whose part it is, for people who look into the cache


@dataclass(frozen=True)
class Export:
    """A usable export: where it lies, how precise it is, and what was rejected on the way."""

    entry: Entry
    precision: str
    proof: Mapping[str, Any]
    rejected: tuple[Mapping[str, Any], ...] = ()

    @property
    def path(self) -> Path:
        return self.entry.path


def key_fields(component: Component, precision: str) -> dict[str, Any]:
    """Everything an export depends on. Weights, graph, configuration, recipe, operator set and the tools' versions."""
    return {
        "format": _FORMAT,
        "component": component.name,
        "weights": component.identity(),
        "config": dict(component.config),
        "precision": precision,
        "recipe": dict(component.recipes.get(precision, {})),
        "opset": OPSET,
        "sources": _source_digest(component.sources),
        "versions": _versions(),
    }


def export_component(
    component: Component,
    precision: str,
    cache: ContentCache,
    *,
    proof: Proof = "strict",
    progress: Progress = ignore_progress,
) -> Export:
    """The component's export in exactly this precision, from the cache or built, proven and published now.

    Raises ProofFailed (with its report) when the proof rejects it and `proof` is "strict", ExportError for any other
    failure of the exporter, CacheError when there is no place at all to put it.
    """
    progress(ProgressEvent(component.name, "hash", precision=precision))
    fields = key_fields(component, precision)
    key = make_key(**fields)
    if (entry := cache.get(key, verify="background")) is not None:
        if entry.meta["proof"]["passed"] or proof == "warn":
            return Export(entry, precision, entry.meta["proof"])
    elif proof == "strict" and (report := cache.read_note(key, "rejected")) and report.get("passed") is False:
        raise ProofFailed(_rejection(component, precision, report), report)

    def build(directory: Path) -> dict[str, Any]:
        try:
            with on_one_thread():  # one key, one content: whatever the engine's own number of threads is
                component.build(directory, precision, progress)
                progress(ProgressEvent(component.name, "prove", precision=precision))
                report = _finite(_proven(component, directory, precision))
        except (ExportError, MemoryError):
            raise
        except Exception as error:  # whatever the exporter's many layers raise
            raise ExportError(f"{component.name} could not be exported as {precision}: {error}") from error
        if not report["passed"]:
            message = _rejection(component, precision, report)
            if proof == "strict":
                cache.write_note(key, "rejected", report)
                raise ProofFailed(message, report)
            warnings.warn(f"{message}; published all the same because of proof='warn'", RuntimeWarning, stacklevel=2)
        owner = {"engine": component.engine} if component.engine else {}
        return {"proof": report, "precision": precision, **owner}

    if entry is not None:  # published under proof="warn", not good enough for "strict"
        raise ProofFailed(_rejection(component, precision, entry.meta["proof"]), entry.meta["proof"])
    entry = cache.get_or_create(key, build, name=component.name, fields=fields)
    if proof == "strict" and not entry.meta["proof"]["passed"]:  # published meanwhile by a process that only warns
        raise ProofFailed(_rejection(component, precision, entry.meta["proof"]), entry.meta["proof"])
    return Export(entry, precision, entry.meta["proof"])


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


def _from(precision: str, offered: Sequence[str]) -> list[str]:
    """The offered precisions from `precision` upwards; the best one offered if none is as good."""
    wanted = [p for p in PRECISIONS[PRECISIONS.index(precision) :] if p in offered]
    return wanted or [p for p in PRECISIONS if p in offered][-1:]


def _proven(component: Component, directory: Path, precision: str) -> dict[str, Any]:
    try:
        return component.prove(directory, precision)
    except BadOutput as error:  # an answer that cannot be right is an answer, not a failure of the exporter
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
def _source_digest(sources: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()


@functools.cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _VERSIONED}
