"""What a place for encoded voices has to offer."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

__all__ = ["VoiceStore"]


class VoiceStore(Protocol):
    """Values by key, for any number of threads and processes at once. `str(store)` names it in logs and `status()`.

    A key is 64 hexadecimal digits, of the recording and of the encoder's weights: what is stored under it never
    changes. A value is opaque and checked by the caller, so that a store may lose or damage it: then the recording is
    encoded again. What a method raises is logged once and otherwise taken for not having the value; but how long it
    takes, a request waits.
    """

    def get(self, key: str) -> bytes | None:
        """The value, or None."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Keep the value, if that is possible."""
        ...

    def claim(self, key: str) -> AbstractContextManager[bytes | None]:
        """Entered by who is about to make the value; others who enter meanwhile wait, for a bounded time.

        Gives the value if there is one by then, else None, and the caller makes it and puts it within the block.
        """
        ...
