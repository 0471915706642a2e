"""What was found out about files, kept for later processes for as long as `stat` shows the same files.

It is for what takes a noticeable part of a second, such as parsing the sources behind an export: in the cache's default
place, and nowhere if others could have written there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from . import digest
from .keys import default_root, make_key
from .store import ContentCache
from .trust import untrusted

__all__ = ["remembered"]

_NOTE = "finding"


def remembered(
    about: Mapping[str, Any], find: Callable[[], tuple[Mapping[str, Any], Iterable[Path]]]
) -> Mapping[str, Any]:
    """What `find` answers, JSON-able; it is asked again once any file has changed that it has named.

    about: what the answer depends on beside these. find: also names the files on which its answer depends, or
    directories: when files come or go there. Raises what `find` raises, of which nothing is kept.
    """
    root = default_root()
    if root.exists() and untrusted(root) is not None:
        return find()[0]
    cache, key = ContentCache(root), make_key(finding=dict(about))
    note = cache.read_note(key, _NOTE)
    if note is not None and _states(note.get("files", {})) == note.get("files"):
        kept: Mapping[str, Any] = note["answer"]
        return kept
    begun = time.time()
    answer, files = find()
    states = _states(map(str, files))
    if states is not None and all(_was_settled(state, begun) for state in states.values()):
        cache.write_note(key, _NOTE, {"answer": dict(answer), "files": states})
    return answer


def _states(files: Iterable[str]) -> dict[str, list[int]] | None:
    """Device and identity of each; None if one is gone."""
    try:
        found = {file: os.stat(file) for file in files}
    except OSError:
        return None
    return {file: [status.st_dev, *digest.identity(status)] for file, status in found.items()}


def _was_settled(state: list[int], begun: float) -> bool:
    """Whether it had been as it is before it was looked into."""
    _, _, mtime_ns, _, ctime_ns = state
    changed_ns = max(mtime_ns, ctime_ns) if os.name == "nt" else ctime_ns
    return begun - changed_ns / 1e9 > digest.SETTLED_S
