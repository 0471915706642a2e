"""The content-addressed cache: what is expensive to build is built once, proven, and found again by its key.

    key ──> ContentCache.get_or_create ──> hit: files checked against their manifest (size, sha256)
                                      └──> miss: build in a private directory -> hash -> fsync -> rename

`keys` makes keys, `layout` defines paths, `strict_json` and `manifest` validate what is read; `digest` hashes, `disk`
writes and removes, `build` seals what was built; `entry` is what a caller gets, and `store` ties them together. `trust`
decides whether machine code found there may be run; `findings` keeps what was found out about files.
"""

from .entry import Entry, EntryInfo, Problem
from .findings import remembered
from .keys import default_root, make_key
from .store import ContentCache
from .trust import untrusted

__all__ = ["ContentCache", "Entry", "EntryInfo", "Problem", "default_root", "make_key", "remembered", "untrusted"]
