"""What callers get from the cache: entries, information about them, and problems with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import CacheError

__all__ = ["Entry", "EntryInfo", "Layer", "Problem"]

Layer = Literal["primary", "parent", "ephemeral"]


@dataclass(frozen=True)
class Entry:
    """A directory of files that were built once under one key.

    `created` is True if this call built it, `ephemeral` if it is removed when this process ends, because no
    cache could be written. `layer` says where it is.
    """

    key: str
    name: str
    path: Path
    manifest: Mapping[str, Any]
    created: bool = False
    layer: Layer = "primary"
    _check: Callable[[], None] | None = field(default=None, repr=False, compare=False)

    @property
    def ephemeral(self) -> bool:
        """Whether the entry is removed when this process ends."""
        return self.layer == "ephemeral"

    @property
    def meta(self) -> dict[str, Any]:
        """What `build` returned."""
        return dict(self.manifest["meta"])

    @property
    def files(self) -> tuple[str, ...]:
        """The relative paths of the entry's files."""
        return tuple(file["path"] for file in self.manifest["files"])

    def file(self, name: str) -> Path:
        """The path of one of the entry's files. Raises CacheError for a name the manifest does not list."""
        if name not in self.files:
            raise CacheError(f"{self.name} has no file {name!r} in the cache; it has {', '.join(self.files)}.")
        return self.path / name

    def verified(self) -> Entry:
        """Waits for the check that `verify="background"` left running, and returns the entry itself.

        Raises CorruptEntry if the files are not what was built; the entry has then been set aside, so that the next
        `get_or_create` builds it anew. Call it before the first result of the files is used.
        """
        if self._check is not None:
            self._check()
        return self


@dataclass(frozen=True)
class EntryInfo:
    """What is known about an entry without reading its files; sizes in bytes, times in seconds since the epoch."""

    key: str
    name: str
    path: Path
    bytes: int
    last_used: float
    created_at: float
    meta: Mapping[str, Any]
    layer: Layer


@dataclass(frozen=True)
class Problem:
    """An entry that `verify` found wanting, and why."""

    key: str
    path: Path
    reason: str
    layer: Layer
