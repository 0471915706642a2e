"""Cache keys, and where the cache is."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

from ..errors import InvalidOption
from ..installation import DISTRIBUTION, checkout
from . import strict_json

__all__ = ["absolute", "default_root", "make_key"]


def make_key(**fields: Any) -> str:
    """The cache key of everything that determines a result: sha256 over the canonical JSON of the named fields.

    64 lower-case hexadecimal digits; the order of the fields, and of keys in mappings, does not matter. Lists and
    tuples are alike; 1, 1.0 and True are three values. Raises InvalidOption for NaN, bytes, and whatever else JSON
    cannot represent.
    """
    if not fields:
        raise InvalidOption("A key needs at least one field: name everything the result depends on.")
    try:
        text = strict_json.canonical(fields)
    except (TypeError, ValueError) as error:
        raise InvalidOption(f"A key field cannot be hashed: {error}. Digest it first, or pass its parts.") from error
    return hashlib.sha256(text).hexdigest()


def default_root() -> Path:
    """The cache directory used when none is given; it need not exist yet.

    `ACCELERATOR_CACHE` first, then `onnx_cache/` of the source checkout this package runs from, then the user's cache
    directory. A relative path is relative to the working directory at first use, even if that changes later.
    """
    chosen = os.environ.get("ACCELERATOR_CACHE", "").strip()
    if chosen:
        return _absolute(os.path.expanduser(chosen))
    return _checkout_cache(Path(__file__).resolve().parents[2]) or _user_cache()


@functools.cache
def _absolute(path: str) -> Path:
    return Path(os.path.abspath(path))


def absolute(place: Path | str) -> Path:
    """The path of a cache. Raises InvalidOption for one that ONNX Runtime and onnx, which take UTF-8, cannot open."""
    path = os.path.abspath(place)
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidOption(
            f"the cache cannot be in {path!r}: the name is not UTF-8, and ONNX Runtime opens no file there. Choose "
            "another place by cache_dir or ACCELERATOR_CACHE."
        ) from error
    return Path(path)


def _checkout_cache(directory: Path) -> Path | None:
    cache = directory / "onnx_cache"
    return cache if checkout(directory) and os.path.isdir(cache) and os.access(cache, os.W_OK) else None


def _user_cache() -> Path:
    import platformdirs  # imported on use: an explicit root needs neither it nor its 30 ms

    return Path(platformdirs.user_cache_path(DISTRIBUTION, appauthor=False))
