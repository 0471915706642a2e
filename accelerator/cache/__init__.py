"""The content-addressed cache: what was expensive to make is made once, proven, and found again by its key.

    key ──> ContentCache.get_or_create ──> hit: files checked against their manifest (size, sha256)
                                      └──> miss: build in a private directory -> hash -> fsync -> rename

`keys` names things, `layout` says where they lie, `strict_json` and `manifest` what may be believed; `digest` hashes,
`disk` writes and removes, `build` seals what was built; `entry` is what a caller holds, and `store` ties them together.
`trust` says whether machine code that lies there may be run.
"""

from .entry import Entry, EntryInfo, Problem
from .keys import default_root, make_key
from .store import ContentCache
from .trust import untrusted

__all__ = ["ContentCache", "Entry", "EntryInfo", "Problem", "default_root", "make_key", "untrusted"]
