"""The settings of an optimizer, checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..cache import ContentCache
from ..errors import InvalidOption
from ..export.component import PRECISIONS, Progress
from ..runtime.providers import checked
from ..text.check import Unspeakable
from ..voices import VoiceStore
from ..voices.places import by_environment, opened
from .request import check_unspeakable

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The options of `UniversalOptimizer`. Raises InvalidOption for invalid values."""

    precision: str
    proof: Literal["strict", "warn"]
    cache_dir: str | Path | ContentCache | None
    threads: int | None
    probe: bool
    progress: Progress
    queue_size: int
    unspeakable: Unspeakable
    split_text: bool
    voices_dir: str | Path | ContentCache | None = None
    prune: float | None = None
    voices: str | VoiceStore | None = None  # a store, once this is made
    providers: Sequence[str] | Literal["auto"] | None = None  # names, once this is made

    def __post_init__(self) -> None:
        if self.precision != "auto" and self.precision not in PRECISIONS:
            raise InvalidOption(f"precision must be 'auto' or one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        if self.proof not in ("strict", "warn"):
            raise InvalidOption(f"proof must be 'strict' or 'warn', not {self.proof!r}")
        if self.threads is not None and not _is_positive(self.threads):
            raise InvalidOption(f"threads must be a positive integer or None, not {self.threads!r}")
        if self.prune is not None and not (_is_number(self.prune) and 0 < self.prune < 1):
            raise InvalidOption(f"prune must be a share between 0 and 1, as 0.3, or None, not {self.prune!r}")
        if not _is_positive(self.queue_size):
            raise InvalidOption(f"queue_size must be a positive integer, not {self.queue_size!r}")
        check_unspeakable(self.unspeakable)
        for name in ("cache_dir", "voices_dir"):
            place = getattr(self, name)
            if isinstance(place, (str, os.PathLike)):  # relative to the working directory at this time
                object.__setattr__(self, name, Path(place).absolute())
        object.__setattr__(self, "voices", self._voices())
        object.__setattr__(self, "providers", checked(self.providers))

    def _voices(self) -> VoiceStore | None:
        """The store that is asked for: here, or by the environment unless there is a `voices_dir`."""
        if self.voices is not None and self.voices_dir is not None:
            raise InvalidOption("voices and voices_dir both say where voices are kept: give one of them")
        if self.voices is None and self.voices_dir is None:
            return by_environment()
        return None if self.voices is None else opened(self.voices)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
