"""Sealing a directory that `build` has filled for publication, and removing those that are not published."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CacheError, CorruptEntry, InvalidOption
from . import disk, layout, strict_json
from . import manifest as manifests
from .entry import Entry
from .manifest import FileRecord, Manifest

__all__ = ["Unfinished", "as_json", "remove_at_exit", "seal"]

_ephemeral: dict[Path, int] = {}  # directories to remove at exit, and the process that made them


class Unfinished:
    """Removes a scratch directory unless it is kept; on a full disk, raises an error that says what to do."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.keep = False
        self._handled = sys.exc_info()[1]

    def __enter__(self) -> Unfinished:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.keep:
            return
        written = layout.tree_bytes(self.scratch)
        disk.remove([self.scratch])
        if isinstance(error, Exception) and disk.is_full(error, self._handled):
            raise CacheError(
                f"The disk of {self.scratch.parent} is full: more than {written} bytes are needed. Free some space, "
                "or set ACCELERATOR_CACHE to a directory on a larger disk."
            ) from error


def seal(draft: Entry, now: float) -> Entry:
    """Hashes what was built, writes its manifest and syncs both to disk. Raises CacheError.

    `draft.manifest` has the fields and meta for the manifest.
    """
    try:
        return _seal(draft, now)
    except OSError as error:
        raise CacheError(
            f"What {draft.name} wrote in {draft.path.parent} cannot be kept ({error}); check its disk."
        ) from error


def _seal(draft: Entry, now: float) -> Entry:
    names = list(manifests.walk(draft.path))
    try:
        for name in names:
            manifests.check_relative(name)
            manifests.check_regular(draft.path / name, name)
    except CorruptEntry as error:
        raise CacheError(f"The build of {draft.name} cannot be cached: {error}. Write plain files.") from error
    if not names:
        raise CacheError(f"The build of {draft.name} wrote no files; write them into the directory it is given.")
    hashes = manifests.hash_files([draft.path / name for name in names])
    files = tuple(FileRecord(name, state.st_size, sha) for name, (sha, state) in zip(names, hashes, strict=True))
    sealed = Manifest(draft.key, draft.name, draft.manifest["fields"], files, now, draft.manifest["meta"])
    (draft.path / manifests.FILE_NAME).write_bytes(sealed.to_bytes())
    if not draft.ephemeral:
        for name in (*names, manifests.FILE_NAME):
            disk.sync(draft.path / name)
        for directory in {draft.path / parent for name in names for parent in Path(name).parents}:
            disk.sync_directory(directory)
    return replace(draft, manifest=sealed.to_dict())


def as_json(data: Any, what: str) -> dict[str, Any]:
    """A plain copy of a mapping that JSON can represent; raises InvalidOption for any other."""
    if not isinstance(data, Mapping):
        raise InvalidOption(f"{what} is a {type(data).__name__}; pass a mapping.")
    try:
        return strict_json.plain(data, what)
    except (TypeError, ValueError) as error:
        raise InvalidOption(f"Only JSON can be stored: {error}.") from error


def remove_at_exit(path: Path) -> None:
    """Removes a directory when this process ends (if it is killed, a later process sweeps it)."""
    if not _ephemeral:
        atexit.register(_remove_ephemeral)
    _ephemeral[path] = os.getpid()


def _remove_ephemeral() -> None:
    disk.remove(path for path, owner in _ephemeral.items() if owner == os.getpid())  # a forked child owns none of them
