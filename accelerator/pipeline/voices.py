"""Voices that were encoded once: reference audio's codes, in memory and on disk, found again by content.

    digest of the audio ──> memory (least recently used goes first) ──> cache entry (sha256 checked) ──> encode

The cache's guarantees hold for voices too: published in one step, shared by processes, a corrupt file is a miss and is
replaced, and a disk that cannot be read or written costs an encoding, never a request.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..cache import ContentCache, Entry, make_key
from ..errors import BadOutput, CacheError, InvalidOption
from ..hardware.forks import renewed_in_children

__all__ = ["VoiceStats", "VoiceStore"]

logger = logging.getLogger(__name__)

Encode = Callable[[], np.ndarray]

_FORMAT = 1  # bump when the files of an entry change their meaning
_FILE = "codes.npy"


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
    """Threads that want one voice; the first one gets it for all."""

    lock: threading.Lock
    waiting: int = 0


class VoiceStore:
    """Codes of reference recordings, int64 [C, T], by the sha256 of their audio; safe for any number of threads.

    encoder_key: names what makes the codes; whatever changes them must change it. `max_bytes` bounds what is kept in
    memory; on disk, voices are entries of `cache` like any other and pruned with them. Raises InvalidOption for an
    encoder without a name.
    """

    def __init__(self, cache: ContentCache, encoder_key: str, *, max_bytes: int = 32 << 20) -> None:
        if not encoder_key:
            raise InvalidOption("encoder_key is empty: the codes of two encoders would be taken for each other")
        self._cache, self._encoder_key, self._max_bytes = cache, encoder_key, max_bytes
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._forked()
        renewed_in_children(self)
        self._counts = {"memory": 0, "disk": 0, "misses": 0}

    def _forked(self) -> None:
        """In a child nobody encodes yet; what is known stays known."""
        self._lock = threading.Lock()  # of all that follows
        self._kept_bytes = sum(codes.nbytes for codes in self._kept.values())
        self._flights: dict[str, _Flight] = {}

    @property
    def stats(self) -> VoiceStats:
        """The figures so far."""
        with self._lock:
            return VoiceStats(**self._counts, voices=len(self._kept), bytes=self._kept_bytes)

    def get(self, reference_digest: str) -> np.ndarray | None:
        """The voice's codes, the caller's own copy, from memory or disk; None if it is not known."""
        codes = self._recall(reference_digest)
        if codes is None:
            with self._alone(reference_digest):
                codes = self._recall(reference_digest)
                if codes is None and (codes := self._read(self._key(reference_digest))) is not None:
                    self._keep(reference_digest, codes)
        return None if codes is None else codes.copy()

    def get_or_encode(
        self, reference_digest: str, encode: Encode, *, keep: Callable[[], bool] = lambda: True
    ) -> np.ndarray:
        """The voice's codes, the caller's own copy; `encode` is called when they are found nowhere.

        keep: asked after `encode`; the codes of a stand-in for the encoder are handed out, and forgotten.
        Threads that ask for the same voice meanwhile wait for it; processes too, a bounded time. What `encode` raises
        is passed on, and the next one that waits tries itself. Raises BadOutput for codes that are not integers [C, T].
        """
        codes = self._recall(reference_digest)
        if codes is None:
            with self._alone(reference_digest):
                codes = self._recall(reference_digest)  # by the one that was waited for
                if codes is None:
                    try:
                        codes = self._load(reference_digest, encode, keep)
                    except _NotKept as made:
                        return made.codes
                    self._keep(reference_digest, codes)
        return codes.copy()

    @contextlib.contextmanager
    def _alone(self, digest: str) -> Iterator[None]:
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

    def _recall(self, digest: str) -> np.ndarray | None:
        with self._lock:
            codes = self._kept.get(digest)
            if codes is not None:
                self._kept.move_to_end(digest)
                self._counts["memory"] += 1
            return codes

    def _keep(self, digest: str, codes: np.ndarray) -> None:
        with self._lock:
            self._kept[digest] = codes
            self._kept_bytes += codes.nbytes
            while self._kept_bytes > self._max_bytes:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _fields(self, digest: str) -> dict[str, Any]:
        return {"format": _FORMAT, "encoder": self._encoder_key, "reference": digest}

    def _key(self, digest: str) -> str:
        return make_key(kind="voice", **self._fields(digest))

    def _read(self, key: str) -> np.ndarray | None:
        codes = _read(self._cache.get(key))
        if codes is not None:
            self._count("disk")
        return codes

    def _load(self, digest: str, encode: Encode, keep: Callable[[], bool]) -> np.ndarray:
        """From the disk, or encoded and stored there if it can be. Raises _NotKept."""
        key = self._key(digest)
        if (codes := self._read(key)) is not None:
            return codes
        made: list[np.ndarray] = []

        def build(directory: Path) -> None:
            made.append(self._encoded(encode, keep))
            with open(directory / _FILE, "xb") as file:
                np.lib.format.write_array(file, made[0], allow_pickle=False)

        # Without a disk there is no use in the cache's temporary entries: memory does as well.
        if self._cache.writable:
            try:
                entry = self._cache.get_or_create(key, build, name="voice", fields=self._fields(digest))
            except CacheError as error:  # a full disk, among others
                logger.warning("The voice %s cannot be stored: %s", digest[:16], error)
            else:
                if not made and (codes := _read(entry)) is not None:  # another process was first
                    self._count("disk")
                    return codes
        return made[0] if made else self._encoded(encode, keep)

    def _encoded(self, encode: Encode, keep: Callable[[], bool]) -> np.ndarray:
        self._count("misses")
        codes = np.asarray(encode())
        if not _are_codes(codes):
            raise BadOutput(f"the encoder answered with {codes.dtype} of shape {codes.shape} instead of codes [C, T]")
        codes = codes.astype(np.int64)
        if not keep():
            raise _NotKept(codes)
        return codes


class _NotKept(Exception):
    """Carries codes that must not be stored past the cache, which publishes whatever is built."""

    def __init__(self, codes: np.ndarray) -> None:
        super().__init__("these codes are not kept")
        self.codes = codes


def _are_codes(codes: np.ndarray) -> bool:
    return codes.ndim == 2 and codes.size > 0 and codes.dtype.kind in "iu"


def _read(entry: Entry | None) -> np.ndarray | None:
    """An entry's codes, whose sha256 has been checked; None if there are none to be had."""
    if entry is None:
        return None
    try:
        with open(entry.file(_FILE), "rb") as file:
            codes = np.lib.format.read_array(file, allow_pickle=False)
    except (CacheError, OSError, ValueError) as error:  # removed meanwhile, or written by something else
        logger.warning("The voice in %s cannot be used: %s", entry.path, error)
        return None
    return codes.astype(np.int64) if _are_codes(codes) else None
