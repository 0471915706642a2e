"""The cache itself: look up, build, publish, evict.

Correctness does not depend on locks: an entry appears by one rename, and the loser of a race takes the winner's entry.
Locks only save duplicate work.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..errors import CacheError, CorruptEntry, InvalidOption
from ..hardware.forks import renewed_in_children
from . import digest, disk, layout, strict_json
from . import manifest as manifests
from .build import Unfinished, as_json, remove_at_exit, seal
from .entry import Entry, EntryInfo, Layer, Problem
from .keys import absolute, default_root
from .manifest import FileRecord, Generation

__all__ = ["Build", "ContentCache", "Verify"]

Build = Callable[[Path], Mapping[str, Any] | None]
Verify = Literal["full", "background"]

TOUCH_EVERY_S = 60.0
KEEP_RECENT_S = 300.0
KEEP_QUARANTINED = 2
_RENAMES = 4
_EPHEMERAL_PREFIX = "accelerator-tts-"

# Errors of a damaged entry; any other OSError (no permission, too many open files) says nothing about its contents.
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO, errno.ENAMETOOLONG}

logger = logging.getLogger(__name__)

_in_use: set[Path] = set()  # entries handed out by this process: never pruned by it


class ContentCache:
    """Directories of files under the sha256 of everything they were made from, shared by any number of processes.

    `root` defaults to `default_root()` and is created when first written. `parents` are further caches, read only,
    after the primary one. `max_bytes` bounds the entries' size after each publication, least recently used first.
    A lock held by another process is waited for `lock_timeout` seconds at most, then ignored. `clock` gives seconds
    since the epoch.
    """

    def __init__(
        self,
        root: Path | str | None = None,
        *,
        parents: Sequence[Path | str] = (),
        max_bytes: int | None = None,
        lock_timeout: float = 600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_bytes is not None and max_bytes < 0:
            raise InvalidOption(f"max_bytes is {max_bytes}; pass a size in bytes, or None for no bound.")
        if lock_timeout < 0:
            raise InvalidOption(f"lock_timeout is {lock_timeout}; pass seconds, 0 for not waiting.")
        self._root = absolute(default_root() if root is None else root)
        self._parents = tuple(map(absolute, parents))
        self._max_bytes = max_bytes
        self._lock_timeout = lock_timeout
        self._clock = clock
        self._own: dict[str, Entry] = {}  # ephemeral entries of this object
        self._warned = False
        self._forked()
        renewed_in_children(self)

    def _forked(self) -> None:
        """In a forked child no thread is building; file locks show what the parent is building."""
        self._guard = threading.Lock()
        self._flights: dict[str, threading.Lock] = {}

    @property
    def root(self) -> Path:
        """The primary cache directory."""
        return self._root

    @property
    def parents(self) -> tuple[Path, ...]:
        """The caches that are read after the primary one."""
        return self._parents

    @property
    def writable(self) -> bool:
        """Whether entries can be stored at present; tried out, not guessed from permissions."""
        try:
            disk.make_scratch(self._tmp).rmdir()
        except OSError:
            return False
        return True

    # Looking up

    def get(self, key: str, *, verify: Verify = "full") -> Entry | None:
        """The entry of `key` from the primary cache or a parent, or None.

        A corrupt entry is a miss, and is set aside. With `verify="full"` every file's sha256 has been compared once in
        this process and file state; with `"background"` sizes are checked now and sha256 meanwhile: see
        `Entry.verified`.
        Raises InvalidOption if `key` is not from `make_key`, and nothing for whatever is on the disk.
        """
        layout.check_key(key)
        if verify not in ("full", "background"):
            raise InvalidOption(f'verify is {verify!r}; pass "full" or "background".')
        entry = self._read(self._root, "primary", key, verify)
        for parent in self._parents:
            entry = entry or self._read(parent, "parent", key, verify)
        return entry or self._read_own(key)

    def _read(self, root: Path, layer: Layer, key: str, verify: Verify) -> Entry | None:
        path = layout.entry_path(root, key)
        try:
            seen = manifests.generation(path)
        except OSError:
            return None
        if layer == "primary":
            _in_use.add(path)  # before the check, so that it is not pruned just before use
            self._touch(key)
        check = None
        try:
            found = manifests.load(path, key)
            unknown = manifests.check_files(path, found)
            if unknown and verify == "background":
                check = self._check_later(path, seen, layer, unknown)
            else:
                manifests.check_digests(path, unknown)
        except (CorruptEntry, OSError) as error:
            self._reject(path, seen, layer, error)
            return None
        return Entry(key, found.name, path, found.to_dict(), layer=layer, _check=check)

    def _read_own(self, key: str) -> Entry | None:
        entry = self._own.get(key)
        if entry is not None:
            try:
                manifests.check_files(entry.path, manifests.load(entry.path, key))
            except (CorruptEntry, OSError):  # something has cleaned the temporary directory
                del self._own[key]
                return None
            entry = replace(entry, created=False)
        return entry

    def _check_later(
        self, path: Path, seen: Generation, layer: Layer, files: Sequence[FileRecord]
    ) -> Callable[[], None]:
        def check() -> None:
            try:
                manifests.check_digests(path, files)
            except (CorruptEntry, OSError) as error:
                self._reject(path, seen, layer, error)
                raise CorruptEntry(f"{path} is corrupt: {error}. It has been set aside; build it again.") from error

        pool = ThreadPoolExecutor(1, thread_name_prefix="accelerator-verify")
        future: Future[None] = pool.submit(check)
        pool.shutdown(wait=False)
        process = os.getpid()  # a forked child does not have the thread
        return lambda: future.result() if os.getpid() == process else check()

    def _reject(self, path: Path, seen: Generation, layer: Layer, error: Exception) -> None:
        _in_use.discard(path)
        damaged = isinstance(error, CorruptEntry) or (isinstance(error, OSError) and error.errno in _DAMAGE)
        if layer != "primary" or not damaged:
            logger.warning("The cache entry %s is not used: %s.", path, error)
        elif not os.path.lexists(path):
            logger.debug("The cache entry %s was removed by another process.", path)
        elif aside := self._move_away(path, self._root / "quarantine", seen):
            logger.warning("The cache entry %s is corrupt and was moved to %s: %s.", path, aside, error)
        else:
            logger.warning("The cache entry %s is corrupt and cannot be moved: %s.", path, error)

    def _move_away(self, path: Path, to: Path, seen: Generation | None) -> Path | None:
        """Moves an entry out of sight in one step; None if it cannot be moved or is no longer the one `seen`."""
        target = to / disk.scratch_name(f"{path.name[:16]}-")
        try:
            to.mkdir(parents=True, exist_ok=True)
            os.rename(path, target)
            moved = manifests.generation(target)
        except OSError:
            return None
        if seen is not None and moved != seen:
            # Another process has replaced the corrupt entry meanwhile; give its work back.
            with contextlib.suppress(OSError):
                os.rename(target, path)
            return None
        return target

    def _touch(self, key: str) -> None:
        path, now = self._root / "used" / key, self._clock()
        try:
            if abs(now - path.stat().st_mtime) < TOUCH_EVERY_S:
                return
        except OSError:
            pass
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.utime(path, (now, now))

    # Building

    def get_or_create(
        self,
        key: str,
        build: Build,
        *,
        name: str,
        fields: Mapping[str, Any] | None = None,
        verify: Verify = "full",
    ) -> Entry:
        """The entry of `key`; if there is none, `build` writes its files into the directory it is given.

        What `build` returns becomes the entry's `meta` (JSON); `name` and `fields` are for people who read the
        manifest. What `build` raises is passed on unchanged and nothing is left behind, except that a full disk becomes
        a CacheError. Where no cache can be written, the entry is built in a temporary directory that goes away with the
        process. Raises CacheError if that fails too or the files cannot be an entry (links, no files), InvalidOption
        for metadata that is not JSON.
        """
        if not name or len(name) > 200:
            raise InvalidOption("An entry needs a name of 1 to 200 characters, such as the component's.")
        described = as_json(fields or {}, "fields")
        if entry := self.get(key, verify=verify):
            return entry
        self._sweep()
        scratch, layer = self.scratch()
        with Unfinished(scratch) as unfinished, self.single_flight(key, shared=layer == "primary"):
            if entry := self.get(key, verify=verify):
                return entry
            meta = as_json(build(scratch) or {}, "what build returned")
            entry = seal(Entry(key, name, scratch, {"fields": described, "meta": meta}, True, layer), self._clock())
            try:
                entry = self._publish(entry)
            except OSError as error:
                self._warn(error)
                entry = replace(entry, layer="ephemeral")
            if entry.ephemeral:
                unfinished.keep = True
                self._own[key] = entry
                remove_at_exit(scratch)
        if self._max_bytes is not None and not entry.ephemeral:
            self.prune(self._max_bytes)
        return entry

    def scratch(self) -> tuple[Path, Layer]:
        """A new directory on the cache's disk, or else a temporary one, for `Unfinished`. Raises CacheError."""
        try:
            return disk.make_scratch(self._tmp), "primary"
        except OSError as error:
            self._warn(error)
        try:
            place = Path(tempfile.gettempdir())
            disk.remove(path for path in place.glob(f"{_EPHEMERAL_PREFIX}*") if disk.is_stale(path, time.time()))
            return disk.make_scratch(place, _EPHEMERAL_PREFIX), "ephemeral"
        except OSError as error:
            raise CacheError(
                f"Neither the cache {self._root} nor the temporary directory can be written ({error}). "
                "Set ACCELERATOR_CACHE, or TMPDIR, to a directory that can."
            ) from error

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "The cache %s cannot be written (%s): what is built lasts as long as this process. "
                "Set ACCELERATOR_CACHE to a directory that can be written.",
                self._root,
                error,
            )

    def _publish(self, entry: Entry) -> Entry:
        """Makes the sealed entry visible, or returns the one that another process made visible first."""
        if entry.ephemeral:
            return entry
        target = layout.entry_path(self._root, entry.key)
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(_RENAMES):
            try:
                os.rename(entry.path, target)
                break
            except OSError:
                # Taken: by a valid entry, which is as good as ours, or by a corrupt one, which reading moves away.
                if winner := self._read(self._root, "primary", entry.key, "full"):
                    return winner
                if attempt + 1 == _RENAMES:
                    raise
                time.sleep(0.05 * attempt)  # on Windows a virus scanner may hold what was just written
        _in_use.add(target)
        self._touch(entry.key)
        with contextlib.suppress(OSError):  # visible and complete already; lost names would only be a miss
            disk.sync_directory(target.parent)
            disk.sync_directory(target.parent.parent)
        return replace(entry, path=target)

    @contextlib.contextmanager
    def single_flight(self, key: str, *, shared: bool = True) -> Iterator[None]:
        """Makes other callers with the same key wait, for a bounded time; locking errors are ignored.

        shared: also callers in other processes.
        """
        deadline = time.monotonic() + self._lock_timeout
        with self._guard:
            flight = self._flights.setdefault(key, threading.Lock())
        taken = flight.acquire(timeout=self._lock_timeout)
        lock = None
        try:
            if shared:
                lock = self._file_lock(key, max(0.0, deadline - time.monotonic()))
            yield
        finally:
            if lock is not None:
                with contextlib.suppress(OSError, RuntimeError):
                    lock.release()
            if taken:
                flight.release()

    def _file_lock(self, key: str, timeout: float) -> Any:
        import filelock  # imported on use: a hit needs no lock

        path = self._root / "locks" / f"{key}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(path)
            lock.acquire(timeout=timeout)
        except (OSError, RuntimeError) as error:  # Timeout is an OSError, NotImplementedError a RuntimeError
            logger.debug("Building without the lock %s: %s", path, error)
            return None
        return lock

    # Notes and digests

    def read_note(self, key: str, note: str) -> dict[str, Any] | None:
        """The JSON that `write_note` stored beside the entry, here or in a parent; None if there is none to be read."""
        for root in (self._root, *self._parents):
            data = strict_json.read(layout.note_path(root, key, note))
            if data is not None:
                return data
        return None

    def notes(self, pattern: str) -> list[dict[str, Any]]:
        """The notes of all keys whose names match, such as "tuning-*", here and in the parents."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for root in (self._root, *self._parents):
            for path in sorted(root.glob(f"notes/*/{pattern}.json")):
                if (data := strict_json.read(path)) is not None:
                    found.setdefault((path.parent.name, path.name), data)
        return list(found.values())

    def write_note(self, key: str, note: str, data: Mapping[str, Any], *, replace: bool = True) -> bool:
        """Stores small JSON beside the entry in one step; False if it cannot be written, or is there and not replaced.

        Notes are not part of the entry's digest and go away with it. Raises InvalidOption for data that is not JSON or
        longer than 1 MiB.
        """
        path = layout.note_path(self._root, key, note)
        text = strict_json.canonical(as_json(data, "the note"))
        if len(text) > strict_json.MAX_BYTES:
            raise InvalidOption(f"The note {note} has {len(text)} bytes; at most {strict_json.MAX_BYTES} can be kept.")
        try:
            if not replace:
                return disk.create_file(self._tmp, path, text)
            disk.replace_file(self._tmp, path, text)
        except OSError as error:
            logger.debug("The note %s cannot be written: %s", path, error)
            return False
        return True

    def file_digest(self, path: Path | str) -> str:
        """The sha256 of a file's contents, in hexadecimal; computed once per file and change, also across processes.

        A change is seen by size, modification time, change time and inode. Symlinks are followed. Raises OSError if the
        file cannot be read.
        """
        real = os.path.realpath(path)
        status = os.stat(real)
        if known := digest.lookup(real, status):
            return known
        memo = self._root / "digests" / f"{hashlib.sha256(os.fsencode(real)).hexdigest()}.json"
        stored = strict_json.read(memo) or {}
        sha256 = stored.pop("sha256", None)
        if digest.is_sha256(sha256) and stored == digest.identity(status)._asdict():
            digest.remember(real, status, sha256)
            return sha256
        sha256, status = digest.sha256_file(real)
        state = digest.identity(status)
        if digest.is_settled(state):
            with contextlib.suppress(OSError):
                disk.replace_file(self._tmp, memo, strict_json.canonical({**state._asdict(), "sha256": sha256}))
        return sha256

    # Maintenance

    def entries(self) -> list[EntryInfo]:
        """All readable entries, least recently used first, the primary cache before its parents; reads no contents."""
        found = [info for info in self._infos(self._root, "primary") if info.name]
        for parent in self._parents:
            found += [info for info in self._infos(parent, "parent") if info.name]
        return found

    def size(self) -> int:
        """The bytes that entries, and corrupt ones set aside, take in the primary cache."""
        return layout.tree_bytes(self._root / layout.VERSION) + layout.tree_bytes(self._root / "quarantine")

    def verify(self) -> list[Problem]:
        """Reads every file of every entry, also of the parents, and reports what does not match; changes nothing."""
        problems = []
        roots: list[tuple[Path, Layer]] = [(self._root, "primary"), *((parent, "parent") for parent in self._parents)]
        for root, layer in roots:
            for key, path in layout.scan(root):
                try:
                    manifest = manifests.load(path, key)
                    manifests.check_files(path, manifest)
                    manifests.check_digests(path, manifest.files)
                except (CorruptEntry, OSError) as error:
                    problems.append(Problem(key, path, str(error), layer))
        return problems

    def prune(self, max_bytes: int, *, force: bool = False) -> list[EntryInfo]:
        """Removes entries, least recently used first, until at most `max_bytes` are left; returns what was removed.

        Entries used by this process, or by anyone in the last five minutes, stay unless `force`. Processes that have
        mapped a removed file keep it (POSIX); on Windows an entry with open files stays.
        """
        self._sweep()
        total = self.size()
        if total > max_bytes:
            disk.remove(layout.children(self._root / "quarantine"))
            total = self.size()
        freed = []
        for info in self._infos(self._root, "primary"):
            if total <= max_bytes:
                break
            recent = abs(self._clock() - self._last_used(info.key, info.created_at)) < KEEP_RECENT_S
            if (force or not (recent or info.path in _in_use)) and self._discard(info.key, info.path):
                total -= info.bytes
                freed.append(info)
        return freed

    def clear(self) -> None:
        """Removes everything from the primary cache, also what is in use; running builds are not touched."""
        for key, path in layout.scan(self._root):
            self._discard(key, path)
        for name in ("quarantine", "notes", "used", "digests", layout.ENGINES):
            disk.remove(layout.children(self._root / name))
        self._sweep()

    @property
    def _tmp(self) -> Path:
        return self._root / "tmp"

    def _infos(self, root: Path, layer: Layer) -> list[EntryInfo]:
        """Every entry of a root, least recently used first; one with an unreadable manifest has no name."""
        infos = []
        for key, path in layout.scan(root):
            name, created_at, meta = "", 0.0, {}
            try:
                found = manifests.load(path, key)
                name, created_at, meta = found.name, found.created_at, dict(found.meta)
            except (CorruptEntry, OSError):
                pass
            used = self._last_used(key, created_at) if layer == "primary" else created_at
            infos.append(EntryInfo(key, name, path, layout.tree_bytes(path), used, created_at, meta, layer))
        return sorted(infos, key=lambda info: (info.last_used, info.key))

    def _last_used(self, key: str, default: float) -> float:
        try:
            return (self._root / "used" / key).stat().st_mtime
        except OSError:
            return default

    def _discard(self, key: str, path: Path) -> bool:
        removed = self._move_away(path, self._root / "trash", None)
        if removed is None:
            return False
        _in_use.discard(path)
        disk.remove([removed, *(self._root / name / key for name in ("notes", "used", layout.ENGINES))])
        return True

    def _sweep(self) -> None:
        """Removes what dead processes left behind, and all but the latest quarantined entries."""
        now = time.time()
        disk.remove(path for path in layout.children(self._tmp) if disk.is_stale(path, now))
        disk.remove(layout.children(self._root / "trash"))
        quarantined = sorted(layout.children(self._root / "quarantine"), key=layout.changed)
        disk.remove(quarantined[:-KEEP_QUARANTINED])
