"""Whether machine code found in a place may be run: only if no other user can have put it there.

Files in a sticky directory such as /tmp can be replaced only by their owner and root, so there the owner of each file,
which is checked as well, decides.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["untrusted"]


def untrusted(path: Path) -> str | None:
    """Why code in a file or directory, which exists, is not to be run; None if it may be.

    The place itself and every directory above it must belong to this user or to root, and be writable for nobody else.
    Windows, where nothing is loaded from a cache, has no such owners: None.
    """
    if not hasattr(os, "geteuid"):
        return None
    place = path.resolve()
    for each in (place, *place.parents):
        try:
            found = each.stat()
        except OSError as error:
            return f"{each} cannot be looked at ({error.strerror or error})"
        if found.st_uid not in (os.geteuid(), 0):
            return f"{each} belongs to another user"
        shared = found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid))
        if shared and not (each != place and found.st_mode & stat.S_ISVTX):
            return f"{each} can be written by other users"
    return None


def _is_own_group(gid: int) -> bool:
    """Whether a group is root's, or the private group that many systems make for each user (whose files are 664)."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return gid == 0 or (group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name})
