"""The trained voice that ships inside the package, if one does."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["bundled_voice"]


def bundled_voice() -> Path | None:
    """The safetensors file of the size "small" for `load(path=...)`; None in a package without one.

    Its makers' conditions are in LICENSE.txt beside it.
    """
    voice = files(__package__).joinpath("voices", "small.safetensors")
    return voice if isinstance(voice, Path) and voice.is_file() else None
