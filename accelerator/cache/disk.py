"""The few file operations for publishing and removing, each safe while other processes do the same."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = [
    "create_file",
    "is_full",
    "is_stale",
    "make_scratch",
    "remove",
    "replace_file",
    "scratch_name",
    "sync",
    "sync_directory",
]

STALE_S = 86400.0

_SCRATCH = re.compile(r"(?:.*-)?([0-9a-f]{12})-([0-9]{1,10})-[0-9a-f]{16}")
_NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR}


@functools.lru_cache(maxsize=1)
def _machine() -> str:
    # A process id means something only within one boot and one PID namespace; containers may share cache and host name.
    identity = hashlib.sha256(socket.gethostname().encode("utf-8", "replace"))
    with contextlib.suppress(OSError):
        identity.update(Path("/proc/sys/kernel/random/boot_id").read_bytes())
        identity.update(os.fsencode(os.readlink("/proc/self/ns/pid")))
    return identity.hexdigest()[:12]


def scratch_name(prefix: str = "") -> str:
    """A unique name, by which `is_stale` knows its owner."""
    return f"{prefix}{_machine()}-{os.getpid()}-{secrets.token_hex(8)}"


def make_scratch(parent: Path, prefix: str = "") -> Path:
    """A new directory below `parent`, with the permissions of the umask (mkdtemp's would shut out other users)."""
    parent.mkdir(parents=True, exist_ok=True)
    path = parent / scratch_name(prefix)
    path.mkdir()
    return path


def is_stale(path: Path, now: float) -> bool:
    """Whether a scratch file or directory is abandoned: its process is dead, or nothing in it changed for a day."""
    match = _SCRATCH.fullmatch(path.name)
    if match is None:
        return False
    if match[1] == _machine() and sys.platform != "win32":  # there, signal 0 would end the process
        try:
            os.kill(int(match[2]), 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            pass  # another user's process, perhaps with a reused number
        if int(match[2]) == os.getpid():
            return False
    return now - _newest(path) > STALE_S


def _is_tree(path: Path) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)  # unlike Path.is_dir, never raises


def _newest(path: Path) -> float:
    items = [path]
    for directory, _, files in os.walk(path):  # unlike Path.rglob, tolerates files that vanish meanwhile
        items += [Path(directory), *(Path(directory, name) for name in files)]
    newest = 0.0
    for item in items:
        with contextlib.suppress(OSError):
            newest = max(newest, os.lstat(item).st_mtime)
    return newest


def is_full(error: BaseException | None, handled: BaseException | None = None) -> bool:
    """Whether an error, or its cause, is a full disk or quota. Native libraries show it only in their messages.

    `handled`: an error that was already being handled before, where the search through causes stops.
    """
    seen: list[BaseException] = []
    while error is not None and error is not handled and error not in seen:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def sync(path: Path) -> None:
    """Forces a file's contents to the disk. Raises OSError where they may be lost (full disk, broken disk)."""
    descriptor = os.open(path, (os.O_RDWR if os.name == "nt" else os.O_RDONLY) | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Forces a directory's names to the disk, where the system can (Windows cannot). Raises OSError like `sync`."""
    if os.name != "nt":
        sync(path)


def replace_file(scratch: Path, path: Path, data: bytes) -> None:
    """Writes `path` in one step: readers see the old bytes or the new ones. Raises OSError and leaves nothing behind.

    `scratch` is a directory on the same file system for the unfinished file.
    """
    with _written(scratch, path, data) as unfinished:
        os.replace(unfinished, path)


def create_file(scratch: Path, path: Path, data: bytes) -> bool:
    """As `replace_file`, but only one of several concurrent callers succeeds; False if the file already exists."""
    with _written(scratch, path, data) as unfinished:
        try:
            os.link(unfinished, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: not atomic, but the window is short
            if path.exists():
                return False
            os.replace(unfinished, path)
        return True


@contextlib.contextmanager
def _written(scratch: Path, path: Path, data: bytes) -> Iterator[Path]:
    """A temporary file with that content for the block; also creates the parent of `path`."""
    scratch.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = scratch / scratch_name()
    try:
        with open(unfinished, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)


def remove(paths: Iterable[Path]) -> None:
    """Removes files and trees; what cannot be removed now (an open file on Windows) stays for the next sweep."""
    for path in paths:
        if _is_tree(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
