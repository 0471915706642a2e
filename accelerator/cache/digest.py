"""sha256 of files, computed once per process and file change."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import time
from pathlib import Path
from typing import NamedTuple, TypeGuard

from ..hardware.forks import Lock

__all__ = ["Identity", "identity", "is_settled", "is_sha256", "lookup", "open_regular", "remember", "sha256_file"]

BLOCK_BYTES = 1 << 20
SETTLED_S = 2.0  # the coarsest timestamp in use (FAT); a change within one tick leaves no trace in `stat`
MEMO_FILES = 8192


class Identity(NamedTuple):
    """A file's state as `stat` shows it: it changes whenever the contents do (once the file has settled)."""

    size: int
    mtime_ns: int
    ino: int
    ctime_ns: int


_memo: dict[tuple[str, int, Identity], str] = {}
_memo_lock = Lock()


def identity(status: os.stat_result) -> Identity:
    """The identity of the file that `status` describes."""
    return Identity(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


def is_settled(state: Identity) -> bool:
    """Whether a later change of the file is sure to change its identity, too.

    On POSIX only ctime counts: mtime can be set at will, ctime cannot. Windows keeps the creation time there.
    """
    changed_ns = max(state.mtime_ns, state.ctime_ns) if os.name == "nt" else state.ctime_ns
    return time.time() - changed_ns / 1e9 > SETTLED_S


def is_sha256(value: object) -> TypeGuard[str]:
    """Whether `value` has the form of this module's digests."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def lookup(path: str | Path, status: os.stat_result) -> str | None:
    """The digest this process has computed for the file in exactly this state, or None."""
    return _memo.get((str(path), status.st_dev, identity(status)))


def remember(path: str | Path, status: os.stat_result, digest: str) -> None:
    """Keeps `digest` for `lookup`, unless the file is so new that a further change might go unnoticed."""
    state = identity(status)
    if not is_settled(state):
        return
    with _memo_lock:
        while len(_memo) >= MEMO_FILES:
            del _memo[next(iter(_memo))]
        _memo[str(path), status.st_dev, state] = digest


def open_regular(path: str | Path) -> int:
    """A read-only descriptor of a regular file, not through a symlink; raises OSError. Never blocks on a FIFO."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, "not a regular file", str(path))
    return descriptor


def sha256_file(path: str | Path) -> tuple[str, os.stat_result]:
    """Reads the whole file; returns its sha256 and its state, which held before and after reading. Raises OSError.

    A file that changes while it is read is read again, three times at most.
    """
    buffer = memoryview(bytearray(BLOCK_BYTES))
    for _ in range(3):
        with open(open_regular(path), "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            sha = hashlib.sha256()  # releases the GIL for blocks of this size
            while count := file.readinto(buffer):
                sha.update(buffer[:count])
            after = os.fstat(file.fileno())
        if identity(before) == identity(after):
            remember(path, after, sha.hexdigest())
            return sha.hexdigest(), after
    raise OSError(f"{path} keeps changing while it is read")
