"""The layout of a cache below its root.

v1/<key[:2]>/<key>/    an entry: real files and manifest.json, complete from the moment it is visible
notes/<key>/           small JSON beside an entry, or for a key of its own (tunings)
used/<key>             its modification time is when the entry was last used
digests/               what file_digest has computed
engines/<key>/         what TensorRT made of an entry's graphs; goes away with it
tmp/ trash/ locks/     unfinished, removed and locked; swept
quarantine/            the latest corrupt entries, for inspection
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import InvalidOption
from . import digest

__all__ = ["changed", "check_key", "children", "entry_path", "note_path", "scan", "tree_bytes"]

VERSION, ENGINES = "v1", "engines"

_NOTE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_key(key: str) -> None:
    """Raises InvalidOption for what `make_key` cannot have returned."""
    if not digest.is_sha256(key):
        raise InvalidOption(f"{key!r} is no cache key; make one with make_key(...).")


def entry_path(root: Path, key: str) -> Path:
    """The directory of an entry."""
    return root / VERSION / key[:2] / key


def note_path(root: Path, key: str, note: str) -> Path:
    """The file of a note; raises InvalidOption for an invalid name or key."""
    check_key(key)
    if not _NOTE.fullmatch(note):
        raise InvalidOption(f"{note!r} is no name for a note; use letters, digits, '.', '_' and '-'.")
    return root / "notes" / key / f"{note}.json"


def children(directory: Path) -> list[Path]:
    """What a directory holds; nothing if it cannot be read."""
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def scan(root: Path) -> Iterator[tuple[str, Path]]:
    """Key and directory of every entry, valid or not."""
    for shard in children(root / VERSION):
        for path in children(shard):
            if digest.is_sha256(path.name) and path.name[:2] == shard.name:
                yield path.name, path


def changed(path: Path) -> float:
    """When a path was last changed or moved, in seconds since the epoch."""
    try:
        return os.lstat(path).st_ctime
    except OSError:
        return 0.0


def tree_bytes(path: Path) -> int:
    """The size of all files below a directory."""
    total = 0
    for directory, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(directory, name)).st_size
            except OSError:  # removed meanwhile
                continue
    return total
