"""From what an option or the environment says to a store."""

from __future__ import annotations

import os

from ..cache import ContentCache
from ..errors import InvalidOption
from .disk import DiskVoices
from .place import is_server
from .redis import RedisVoices
from .store import VoiceStore

__all__ = ["VARIABLE", "by_environment", "opened"]

VARIABLE = "ACCELERATOR_VOICES"


def opened(place: str | VoiceStore) -> VoiceStore:
    """A store itself, a server by its address, or a directory. Raises InvalidOption."""
    if isinstance(place, str):
        if not place.strip():
            raise InvalidOption("voices is empty: give the address of a server, a directory, or None")
        return RedisVoices.from_url(place) if is_server(place) else DiskVoices(ContentCache(os.path.expanduser(place)))
    if not all(callable(getattr(place, method, None)) for method in ("get", "put", "claim")):
        raise InvalidOption(f"voices are kept by what has get, put and claim, not by a {type(place).__name__}")
    return place


def by_environment() -> VoiceStore | None:
    """What `ACCELERATOR_VOICES` names, or None. Raises InvalidOption."""
    place = os.environ.get(VARIABLE, "").strip()
    try:
        return opened(place) if place else None
    except InvalidOption as error:
        raise InvalidOption(f"{VARIABLE}: {error}") from error
