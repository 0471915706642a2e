"""Encoded voices: what an engine needs of a recording, in memory and on disk, found by content.

    digest of the audio ──> memory (least recently used is evicted first) ──> cache entry (sha256 checked) ──> encode

The cache's guarantees hold for voices too: published in one step, shared by processes, a corrupt file is a miss and is
replaced, and a disk that cannot be read or written costs an encoding, never a request.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..cache import ContentCache, Entry, make_key
from ..engines.base import Arrays
from ..errors import BadOutput, CacheError, InvalidOption
from ..hardware.forks import renewed_in_children

__all__ = ["VoiceStats", "VoiceStore"]

logger = logging.getLogger(__name__)

Encode = Callable[[], Arrays]

_FORMAT = 3  # bump when the files of an entry change their meaning
_FILE = "voice.npz"


@dataclass(frozen=True)
class VoiceStats:
    """How often a voice was found in memory (also by waiting for another thread's), on disk, or had to be encoded."""

    memory: int = 0
    disk: int = 0
    misses: int = 0
    voices: int = 0  # in memory now
    bytes: int = 0  # of them


@dataclass
class _Flight:
    """Threads that want the same voice; the first one gets it for all."""

    lock: threading.Lock
    waiting: int = 0


class VoiceStore:
    """Encoded reference recordings, by the sha256 of their audio; safe for any number of threads.

    encoder_key: identifies the encoder; whatever changes its results must change it. `max_bytes` bounds what is kept in
    memory; on disk, voices are entries of `cache` like any other and pruned with them. Raises InvalidOption for an
    empty key.
    """

    def __init__(self, cache: ContentCache, encoder_key: str, *, max_bytes: int = 32 << 20) -> None:
        if not encoder_key:
            raise InvalidOption("encoder_key is empty: the voices of two encoders would be taken for each other")
        self._cache, self._encoder_key, self._max_bytes = cache, encoder_key, max_bytes
        self._kept: OrderedDict[str, Arrays] = OrderedDict()
        self._forked()
        renewed_in_children(self)
        self._counts = {"memory": 0, "disk": 0, "misses": 0}

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
        """The voice, the caller's own copy, from memory or disk; None if it is not known."""
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
                    try:
                        voice = self._load(reference_digest, encode, keep)
                    except _NotKept as made:
                        return made.voice
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

    def _fields(self, digest: str) -> dict[str, Any]:
        return {"format": _FORMAT, "encoder": self._encoder_key, "reference": digest}

    def _key(self, digest: str) -> str:
        return make_key(kind="voice", **self._fields(digest))

    def _read(self, key: str) -> Arrays | None:
        voice = _read(self._cache.get(key))
        if voice is not None:
            self._count("disk")
        return voice

    def _load(self, digest: str, encode: Encode, keep: Callable[[], bool]) -> Arrays:
        """From the disk, or encoded and stored there if it can be. Raises _NotKept."""
        key = self._key(digest)
        if (voice := self._read(key)) is not None:
            return voice
        made: list[Arrays] = []

        def build(directory: Path) -> None:
            made.append(self._encoded(encode, keep))
            with open(directory / _FILE, "xb") as file:
                np.savez(file, allow_pickle=False, **made[0])

        # Without a disk the cache's temporary entries are of no use: memory serves as well.
        if self._cache.writable:
            try:
                entry = self._cache.get_or_create(key, build, name="voice", fields=self._fields(digest))
            except CacheError as error:  # a full disk, among others
                logger.warning("The voice %s cannot be stored: %s", digest[:16], error)
            else:
                if not made and (voice := _read(entry)) is not None:  # another process was first
                    self._count("disk")
                    return voice
        return made[0] if made else self._encoded(encode, keep)

    def _encoded(self, encode: Encode, keep: Callable[[], bool]) -> Arrays:
        self._count("misses")
        voice = {name: np.asarray(array) for name, array in encode().items()}
        if not _are_numbers(voice):
            kinds = ", ".join(f"{name}: {array.dtype} {array.shape}" for name, array in voice.items()) or "nothing"
            raise BadOutput(f"the encoder answered with {kinds} instead of arrays of numbers")
        if not keep():
            raise _NotKept(voice)
        return voice


class _NotKept(Exception):
    """Carries a voice that must not be stored out of the cache's `build`, whose results are published."""

    def __init__(self, voice: Arrays) -> None:
        super().__init__("this voice is not kept")
        self.voice = voice


def _size(voice: Arrays) -> int:
    return sum(array.nbytes for array in voice.values())


def _copy(voice: Arrays) -> Arrays:
    return {name: array.copy() for name, array in voice.items()}


def _are_numbers(voice: Arrays) -> bool:
    return bool(voice) and all(array.size > 0 and array.dtype.kind in "iuf" for array in voice.values())


def _read(entry: Entry | None) -> Arrays | None:
    """An entry's arrays, whose sha256 has been checked; None if they cannot be read."""
    if entry is None:
        return None
    try:
        with np.load(entry.file(_FILE), allow_pickle=False) as file:
            voice = {name: file[name] for name in file.files}
    except (CacheError, OSError, ValueError, zipfile.BadZipFile) as error:  # removed, or written by something else
        logger.warning("The voice in %s cannot be used: %s", entry.path, error)
        return None
    return voice if _are_numbers(voice) else None
