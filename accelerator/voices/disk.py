"""Voices as entries of the artifact cache."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from ..cache import ContentCache, make_key
from ..errors import CacheError

__all__ = ["DiskVoices"]

logger = logging.getLogger(__name__)

_FILE = "voice.safetensors"


class DiskVoices:
    """A `VoiceStore` with the cache's guarantees: published in one step, checked by sha256, pruned with the rest."""

    def __init__(self, cache: ContentCache) -> None:
        self.cache = cache

    def __str__(self) -> str:
        return str(self.cache.root)

    def get(self, key: str) -> bytes | None:
        entry = self.cache.get(key)
        try:
            return None if entry is None else entry.file(_FILE).read_bytes()
        except (CacheError, OSError) as error:  # removed, or written by something else
            logger.warning("The voice in %s cannot be used: %s", entry and entry.path, error)
            return None

    def put(self, key: str, value: bytes) -> None:
        def build(directory: Path) -> None:
            (directory / _FILE).write_bytes(value)

        if not self.cache.writable:  # then its temporary entries are of no use: memory serves as well
            return
        try:
            self.cache.get_or_create(key, build, name="voice")
        except CacheError as error:  # a full disk, among others
            logger.warning("The voice %s cannot be stored: %s", key[:16], error)

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bytes | None]:
        if (value := self.get(key)) is not None:
            yield value
            return
        with self.cache.single_flight(make_key(claim=key)):
            yield self.get(key)
