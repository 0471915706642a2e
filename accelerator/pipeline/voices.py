"""Encoded voices: what an engine needs of a recording, in memory and in a store, found by content.

    digest of the audio ──> memory (least recently used is evicted first) ──> VoiceStore (digest checked) ──> encode

Nothing that a store does fails a request: what is lost, damaged or cannot be kept costs an encoding.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..cache import make_key
from ..engines.base import Arrays
from ..errors import BadOutput, CorruptEntry, InvalidOption
from ..hardware.forks import renewed_in_children
from ..voices import VoiceStore
from ..voices.packed import are_numbers, packed, unpacked

__all__ = ["KnownVoices", "VoiceStats"]

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Encode = Callable[[], Arrays]

_FORMAT = 4  # bump when what is stored changes its meaning


@dataclass(frozen=True)
class VoiceStats:
    """How often a voice was found in memory (also by waiting for another thread's), in the store, or was encoded.

    failures: how often the store had, or did, what cannot be used.
    """

    memory: int = 0
    stored: int = 0
    misses: int = 0
    failures: int = 0
    voices: int = 0  # in memory now
    bytes: int = 0  # of them


@dataclass
class _Flight:
    """Threads that want the same voice; the first one gets it for all."""

    lock: threading.Lock
    waiting: int = 0


class KnownVoices:
    """Encoded reference recordings, by the sha256 of their audio; safe for any number of threads.

    store: where they are kept. encoder_key: identifies the encoder; whatever changes its results must change it.
    `max_bytes` bounds what is kept in memory. Raises InvalidOption for an empty key.
    """

    def __init__(self, store: VoiceStore, encoder_key: str, *, max_bytes: int = 32 << 20) -> None:
        if not encoder_key:
            raise InvalidOption("encoder_key is empty: the voices of two encoders would be taken for each other")
        self.store = store
        self._encoder_key, self._max_bytes = encoder_key, max_bytes
        self._kept: OrderedDict[str, Arrays] = OrderedDict()
        self._forked()
        renewed_in_children(self)
        self._counts = {"memory": 0, "stored": 0, "misses": 0, "failures": 0}
        self._told = set[str]()

    def _forked(self) -> None:
        """In a forked child nothing is being encoded; voices in memory stay."""
        self._lock = threading.Lock()  # of all that follows
        self._kept_bytes = sum(map(_size, self._kept.values()))
        self._flights: dict[str, _Flight] = {}

    @property
    def stats(self) -> VoiceStats:
        """The figures so far."""
        with self._lock:
            return VoiceStats(**self._counts, voices=len(self._kept), bytes=self._kept_bytes)

    def get(self, reference_digest: str) -> Arrays | None:
        """The voice, the caller's own copy, from memory or the store; None if it is not known."""
        voice = self._recall(reference_digest)
        if voice is None:
            with self._exclusively(reference_digest):
                voice = self._recall(reference_digest)
                if voice is None and (voice := self._read(self._key(reference_digest))) is not None:
                    self._keep(reference_digest, voice)
        return None if voice is None else _copy(voice)

    def get_or_encode(
        self, reference_digest: str, encode: Encode, *, keep: Callable[[], bool] = lambda: True
    ) -> Arrays:
        """The voice, the caller's own copy; `encode` is called when it is found nowhere.

        keep: asked after `encode`; if False, the voice is returned but not stored (a stand-in for the encoder made it).
        Threads that ask for the same voice meanwhile wait for it; processes too, for a bounded time. What `encode`
        raises is passed on, and the next waiting caller tries itself. Raises BadOutput for anything but arrays of
        numbers.
        """
        voice = self._recall(reference_digest)
        if voice is None:
            with self._exclusively(reference_digest):
                voice = self._recall(reference_digest)  # by the caller that was waited for
                if voice is None:
                    voice, kept = self._load(reference_digest, encode, keep)
                    if not kept:
                        return voice
                    self._keep(reference_digest, voice)
        return _copy(voice)

    @contextlib.contextmanager
    def _exclusively(self, digest: str) -> Iterator[None]:
        with self._lock:
            flight = self._flights.setdefault(digest, _Flight(threading.Lock()))
            flight.waiting += 1
        try:
            with flight.lock:
                yield
        finally:
            with self._lock:
                flight.waiting -= 1
                if not flight.waiting:
                    self._flights.pop(digest, None)

    def _recall(self, digest: str) -> Arrays | None:
        with self._lock:
            voice = self._kept.get(digest)
            if voice is not None:
                self._kept.move_to_end(digest)
                self._counts["memory"] += 1
            return voice

    def _keep(self, digest: str, voice: Arrays) -> None:
        with self._lock:
            self._kept[digest] = voice
            self._kept_bytes += _size(voice)
            while self._kept_bytes > self._max_bytes:
                self._kept_bytes -= _size(self._kept.popitem(last=False)[1])

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _key(self, digest: str) -> str:
        return make_key(kind="voice", format=_FORMAT, encoder=self._encoder_key, reference=digest)

    def _read(self, key: str) -> Arrays | None:
        return self._unpacked(key, self._tried(lambda: self.store.get(key)))

    def _load(self, digest: str, encode: Encode, keep: Callable[[], bool]) -> tuple[Arrays, bool]:
        """From the store, or encoded and stored there; and whether it may be kept."""
        key = self._key(digest)
        with self._claimed(key) as value:
            if (found := self._unpacked(key, value)) is not None:
                return found, True
            voice, kept = self._encoded(encode), keep()
            if kept:
                about = {"encoder": self._encoder_key, "reference": digest}
                self._tried(lambda: self.store.put(key, packed(key, voice, about)))
            return voice, kept

    @contextlib.contextmanager
    def _claimed(self, key: str) -> Iterator[bytes | None]:
        """The store's `claim`, whatever becomes of it."""
        claims = contextlib.ExitStack()
        value = self._tried(lambda: claims.enter_context(self.store.claim(key)))
        try:
            yield value
        finally:
            self._tried(claims.close)

    def _unpacked(self, key: str, value: bytes | None) -> Arrays | None:
        if value is None:
            return None
        voice = self._tried(lambda: unpacked(key, value))
        if voice is not None:
            self._count("stored")
        return voice

    def _tried(self, function: Callable[[], Answer]) -> Answer | None:
        """What it answers; None where it fails, which is said once for each kind of failure."""
        try:
            return function()
        except Exception as error:  # a store may be anybody's, and its errors, too, which may quote what is secret
            self._count("failures")
            reason = str(error) if isinstance(error, CorruptEntry) else f"{type(error).__name__} within it"
            if reason not in self._told:
                self._told.add(reason)
                logger.warning("A voice is not shared by %s: %s. It is encoded here; said once.", self.store, reason)
                logger.debug("It was raised here:\n%s", "".join(traceback.format_tb(error.__traceback__)))
            return None

    def _encoded(self, encode: Encode) -> Arrays:
        self._count("misses")
        voice = {name: np.asarray(array) for name, array in encode().items()}
        if not are_numbers(voice):
            kinds = ", ".join(f"{name}: {array.dtype} {array.shape}" for name, array in voice.items()) or "nothing"
            raise BadOutput(f"the encoder answered with {kinds} instead of arrays of numbers")
        return voice


def _size(voice: Arrays) -> int:
    return sum(array.nbytes for array in voice.values())


def _copy(voice: Arrays) -> Arrays:
    return {name: array.copy() for name, array in voice.items()}
