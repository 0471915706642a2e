"""MockingBird (babysor/MockingBird): a speaker encoder, a Tacotron and a vocoder, of either of its layouts.

    engine      the three as one engine: `MockingBird`
    checkout    the engine's packages imported apart from everybody else's
    instances   second instances of its modules
    masks       dropout as the engine draws it, which its answers need
    traceable   its networks so that they can be traced
    loop        the attention loop, step by step
    reach       how far a vocoder looks to both sides
    hifigan     HiFi-GAN by compiled kernels and by oneDNN
    examples    what exports are traced and proven with
    adapter     the parts, their proofs and probes
    routed      the copy of the engine that calls the routes
    stages      text -> segments -> mel spectrogram -> audio

None of the engine's code is here: it is imported from a checkout, or is what the user has loaded already.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapter import MockingBirdAdapter
    from .engine import MockingBird

__all__ = ["MockingBird", "MockingBirdAdapter"]

_HOMES = {"MockingBird": "engine", "MockingBirdAdapter": "adapter"}


def __getattr__(name: str) -> Any:
    """On use, since the table of adapters is read where there is no PyTorch."""
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
