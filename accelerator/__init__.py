"""Makes text-to-speech engines fast on CPUs: wrap the engine you have.

    import accelerator

    engine = accelerator.UniversalOptimizer(engine)     # or accelerator.load(), the voice that comes along
    audio, sample_rate, metrics = engine.synthesize("Hello there.")

Importing this loads neither torch nor onnxruntime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import AcceleratorError

if TYPE_CHECKING:
    from .cache import ContentCache
    from .engines import Adapter
    from .export.component import ProgressEvent
    from .optimizer import UniversalOptimizer
    from .speech import AudioChunk, SamplingParams, Speech, SpeechRequest
    from .voices import VoiceStore

__version__ = "0.1.0"
__all__ = [
    "AcceleratorError",
    "Adapter",
    "AudioChunk",
    "ContentCache",
    "ProgressEvent",
    "SamplingParams",
    "Speech",
    "SpeechRequest",
    "UniversalOptimizer",
    "VoiceStore",
    "load",
]

_HOMES = {
    "Adapter": "engines",
    "AudioChunk": "speech",
    "ContentCache": "cache",
    "ProgressEvent": "export.component",
    "SamplingParams": "speech",
    "Speech": "speech",
    "SpeechRequest": "speech",
    "UniversalOptimizer": "optimizer",
    "VoiceStore": "voices",
}


def load(**options: Any) -> UniversalOptimizer:
    """The voice that comes with the package, wrapped. options: those of `UniversalOptimizer`. Raises EngineError."""
    from .errors import EngineError
    from .optimizer import UniversalOptimizer
    from .reference import ReferenceEngineError, load_bundled

    try:
        engine = load_bundled()
    except ReferenceEngineError as error:
        raise EngineError(str(error)) from error
    if engine is None:
        raise EngineError("this package has no voice in it: install it anew, or wrap an engine of your own")
    return UniversalOptimizer(engine, **options)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
