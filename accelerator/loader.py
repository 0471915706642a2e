"""Part -> exports -> sessions -> probe: decides once per machine whether a part runs in ONNX Runtime, and how."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .cache import ContentCache
from .engines.base import Call, Part
from .export import Export, Progress, ProgressEvent, export_best
from .hardware import HardwareProfile, Tier
from .session import SessionOptions

__all__ = ["Choice", "Loader"]

logger = logging.getLogger(__name__)

MARGIN = 1.0  # ONNX Runtime must need less than this share of PyTorch's time


@dataclass(frozen=True)
class Choice:
    """What was decided for a part. `call` is None when it stays in PyTorch, and `reason` says why."""

    call: Call | None
    reason: str
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
    tier: Tier
    precision: str
    proof: Any
    threads: int | None
    probe: bool
    progress: Progress

    def load(self, part: Part) -> Choice:
        """Export (or find) the part's components, load them, and keep what is faster. Raises what goes wrong."""
        exports: dict[str, Export] = {}
        for component in part.components:
            exports[component.name] = export_best(
                component, self.precision, self.cache, proof=self.proof, progress=self.progress
            )
        main = list(exports.values())[-1]  # a part's last component is the one that computes
        note = f"tuning-{self.profile.fingerprint}-{self.threads or 'auto'}"
        tuned = self.cache.read_note(main.entry.key, note) if self.probe else None
        base = Choice(None, "", main.precision, exports=exports)
        if not self.probe:
            return self._open(part, base, self._options(self.threads or self.tier.threads), "not probed")
        if tuned is None or not _is_tuning(tuned):
            return self._probe(part, base, note)
        if tuned["backend"] == "pytorch":
            return replace(base, reason=_slower(tuned), probe=tuned)
        return self._open(part, replace(base, probe=tuned), SessionOptions.from_dict(tuned["options"]), "probed before")

    def _probe(self, part: Part, base: Choice, note: str) -> Choice:
        """Time the part under each setting and in PyTorch, remember the winner."""
        measured: dict[str, float] = {}
        best: Choice | None = None
        candidates = self._candidates()
        for done, options in enumerate(candidates):
            self.progress(ProgressEvent(part.name, "probe", done, len(candidates) + 1, base.precision))
            choice = self._open(part, base, options, "fastest when probed")
            assert choice.call is not None
            measured[f"onnxruntime-{options.threads}"] = seconds = part.probe(choice.call)
            if best is None or seconds < min(v for k, v in measured.items() if k != f"onnxruntime-{options.threads}"):
                best = choice
        assert best is not None
        assert best.options is not None
        fastest = min(measured.values())
        self.progress(ProgressEvent(part.name, "probe", len(candidates), len(candidates) + 1, base.precision))
        measured["pytorch"] = part.probe(part.torch)
        backend = "onnxruntime" if fastest < MARGIN * measured["pytorch"] else "pytorch"
        result = {"backend": backend, "options": best.options.to_dict(), "seconds": measured}
        self.cache.write_note(self._key(base), note, result)
        if backend == "pytorch":
            logger.warning("%s stays in PyTorch: %s", part.name, _slower(result))
            return replace(base, reason=_slower(result), probe=result)
        return replace(best, probe=result)

    def _open(self, part: Part, base: Choice, options: SessionOptions, reason: str) -> Choice:
        self.progress(ProgressEvent(part.name, "load", precision=base.precision))
        call = part.load({name: export.path for name, export in base.exports.items()}, options)
        return replace(base, call=call, options=options, reason=reason)

    def _candidates(self) -> list[SessionOptions]:
        if self.threads is not None:
            return [self._options(self.threads)]
        return [
            self._options(n)
            for n in sorted({1, self.tier.threads, min(self.profile.usable_cores, 2 * self.tier.threads)})
        ]

    def _options(self, threads: int) -> SessionOptions:
        return SessionOptions(threads=threads)

    @staticmethod
    def _key(base: Choice) -> str:
        return list(base.exports.values())[-1].entry.key


def _is_tuning(note: Mapping[str, Any]) -> bool:
    return note.get("backend") in ("pytorch", "onnxruntime") and {"options", "seconds"} <= set(note)


def _slower(tuning: Mapping[str, Any]) -> str:
    seconds = dict(tuning["seconds"])
    pytorch = seconds.pop("pytorch")
    return f"ONNX Runtime is slower here ({min(seconds.values()) * 1e3:.1f} ms against {pytorch * 1e3:.1f} ms a unit)"


Load = Callable[[Part], Choice]
