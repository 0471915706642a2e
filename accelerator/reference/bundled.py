"""The trained voice that ships inside the package, if one does."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from .engine import ReferenceEngine, load

__all__ = ["bundled_voice", "load_bundled"]

# Of its three voices the one that is understood best, a word by itself above all: see docs/voice.md.
_DEFAULT_SPEAKER = "rms"


def bundled_voice() -> Path | None:
    """The safetensors file of the size "small" for `load(path=...)`; None in a package without one.

    Its makers' conditions are in LICENSE.txt beside it.
    """
    voice = files(__package__).joinpath("voices", "small.safetensors")
    return voice if isinstance(voice, Path) and voice.is_file() else None


def load_bundled() -> ReferenceEngine | None:
    """The engine with the bundled voice; None in a package without one. Raises ReferenceEngineError."""
    path = bundled_voice()
    if path is None:
        return None
    engine = load(path=path)
    if _DEFAULT_SPEAKER in engine.speakers:
        engine.default_speaker = _DEFAULT_SPEAKER
    return engine
