"""What one optimizer runs on, determined on first use."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..cache import ContentCache, layout, untrusted
from ..errors import Closed
from ..hardware import choose_tier, detect
from ..hardware.forks import renewed_in_children
from ..parts.part import Machine, Part
from ..runtime.onnx import available_providers
from ..runtime.providers import chains
from ..voices import DiskVoices, VoiceStore
from . import heard, pruned
from .fallback import Route
from .pooled import Workers
from .selection import Choice, Selector
from .settings import Settings

__all__ = ["Runtime"]


class Runtime:
    """The cache, the machine and the selector of one optimizer. Safe to use from several threads."""

    def __init__(self, settings: Settings, engine: str) -> None:
        """engine: the engine's name, recorded in cache entries."""
        self.settings, self._engine = settings, engine
        self.closed = False
        self._selector: Selector | None = None
        self._workers: Workers | None = None
        self._forked()
        renewed_in_children(self)

    def _forked(self) -> None:
        """In a forked child the lock is free."""
        self._lock = threading.RLock()

    @property
    def selector(self) -> Selector:
        """Decides what parts run on; detects the hardware on first use."""
        with self._lock:
            if self._selector is None:
                settings, place = self.settings, self.settings.cache_dir
                cache = place if isinstance(place, ContentCache) else ContentCache(place)
                profile = detect(store=cache.root)
                machine = Machine(profile, choose_tier(profile), settings.threads, settings.precision)
                self._selector = Selector(
                    cache,
                    self._with_providers(machine, cache),
                    proof=settings.proof,
                    probe=settings.probe,
                    progress=settings.progress,
                    engine=self._engine,
                )
            return self._selector

    def _with_providers(self, machine: Machine, cache: ContentCache) -> Machine:
        """Also on the execution providers that are asked for and installed."""
        if not (asked := self.settings.providers):
            return machine
        engines = cache.root / layout.ENGINES
        # What TensorRT keeps there is machine code, as compiled kernels are.
        kept = str(engines) if cache.writable and untrusted(cache.root) is None else ""
        return replace(machine, providers=chains(asked, available_providers()), engines=kept)

    @property
    def cache(self) -> ContentCache:
        return self.selector.cache

    @property
    def voices(self) -> VoiceStore:
        """Where voices are kept: `voices`, `voices_dir`, what `ACCELERATOR_VOICES` names, or the cache of exports."""
        settings, place = self.settings, self.settings.voices_dir
        if settings.voices is not None:
            assert not isinstance(settings.voices, str)
            return settings.voices
        if place is None:
            return DiskVoices(self.cache)
        return DiskVoices(place if isinstance(place, ContentCache) else ContentCache(place))

    @property
    def workers(self) -> Workers:
        """The pool shared by all requests of a pooled engine: as many concurrent segments as usable cores."""
        with self._lock:
            if self._workers is None:
                self._workers = Workers(self.settings.threads or self.selector.machine.profile.usable_cores)
            return self._workers

    def check_open(self) -> None:
        """Raises Closed."""
        if self.closed:
            raise Closed("this optimizer was closed: wrap the engine again")

    def close(self) -> bool:
        """Refuse new work; False if it was closed already."""
        with self._lock:
            was, self.closed = self.closed, True
            return not was

    def load(self, part: Part) -> Choice:
        """See `Selector.load`."""
        return self._chosen(part, self.selector.load)

    def tune(self, part: Part, *, again: bool) -> Choice:
        """See `Selector.tune`."""
        return self._chosen(part, functools.partial(self.selector.tune, again=again))

    def _chosen(self, part: Part, choose: Callable[[Part], Choice]) -> Choice:
        share = self.settings.prune
        return choose(part) if share is None else pruned.chosen(part, share, self.selector.exported, choose)

    def status(self, routes: Mapping[str, Route]) -> dict[str, Any]:
        """The tier and the cache, None before their first use, and what a listening test said; JSON-able."""
        found = self._selector
        return {
            "tier": None if found is None else vars(found.machine.tier).copy(),
            "cache": None if found is None else str(found.cache.root),
            "heard": None if found is None else heard.recalled(found.cache, self._engine, routes),
        }
