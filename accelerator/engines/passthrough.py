"""Engines nobody knows: nothing is replaced, the engine speaks for itself, and the result says so."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import EngineError, InvalidOption, UnsupportedEngine
from ..metrics import current_meter
from ..speech import AudioChunk, SpeechRequest
from .answers import chunks_of, rate_of
from .base import Call, Part, Voice

__all__ = ["PassThroughAdapter", "check_engine"]

logger = logging.getLogger(__name__)

_METHODS = ("synthesize", "tts", "generate", "create", "infer", "inference", "__call__")
_VOICES = ("voice", "speaker", "speaker_id", "speaker_name", "voice_id")
_MODULE, _MODEL = "torch.nn.modules.module.Module", "transformers.modeling_utils.PreTrainedModel"
_DATA = (str, bytes, bytearray, os.PathLike, int, float, complex, dict, list, tuple, set, frozenset, type(None))


def check_engine(engine: Any) -> None:
    """Raises UnsupportedEngine, which says what to wrap instead, for what cannot speak by any method."""
    kind = type(engine)
    bases = {f"{each.__module__}.{each.__qualname__}" for each in kind.__mro__}
    if isinstance(engine, (str, os.PathLike)):
        raise UnsupportedEngine(
            f"{engine!r} is a {kind.__name__}, not an engine: wrap the engine itself, or open a checkpoint with "
            "UniversalOptimizer.from_checkpoint(path, engine)"
        )
    if inspect.isclass(engine):
        raise UnsupportedEngine(f"{engine.__name__} is a class: make an instance of it, and wrap that")
    if _MODEL in bases:
        raise UnsupportedEngine(
            f"{kind.__name__} is a model without its tokenizer: wrap "
            "transformers.pipeline('text-to-speech', model=model, tokenizer=tokenizer)"
        )
    methods = _METHODS[:-1] if _MODULE in bases else _METHODS  # calling a module takes tensors
    if isinstance(engine, _DATA) or hasattr(engine, "__array__") or not any(_method(engine, m) for m in methods):
        raise UnsupportedEngine(
            f"{kind.__module__}.{kind.__qualname__} is no engine: it has none of {', '.join(methods)}; "
            "wrap the object that turns text into audio, or pass adapter="
        )


def _method(engine: Any, name: str) -> Callable[..., Any] | None:
    found = getattr(engine, name, None)
    return found if callable(found) else None


class PassThroughAdapter:
    """Hands every request to the engine's own `synthesize`, `tts`, `generate`, ... or call, whichever comes first."""

    name = "pass-through"

    def __init__(self, engine: Any) -> None:
        """Raises UnsupportedEngine for what is no engine."""
        check_engine(engine)
        self._engine = engine
        self.engine = engine
        self.sample_rate = rate_of(engine)  # 0: it says so when it speaks
        kind = type(engine)
        logger.warning(
            "%s.%s is not an engine this package knows: it is passed through and runs as before",
            kind.__module__,
            kind.__qualname__,
        )

    def parts(self) -> Sequence[Part]:
        return ()

    def bind(self, calls: Mapping[str, Call]) -> PassThroughAdapter:
        return self

    def stream(self, request: SpeechRequest, voice: Voice | None = None) -> Iterator[AudioChunk]:
        return self.original(request)

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        """Raises EngineError for an answer that is not audio, InvalidOption for what the engine does not take."""
        name = next(name for name in _METHODS if _method(self._engine, name))
        method, who = getattr(self._engine, name), type(self._engine).__name__
        options = _options(method, f"{who}.{name}()", request)
        current_meter().used("engine", "pytorch")
        spoke = False
        for chunk in chunks_of(method(request.text, **options), self.sample_rate, who):
            spoke = True
            yield chunk
        if not spoke:
            raise EngineError(f"{who}.{name}() answered with no audio at all")

    def release(self) -> None:
        pass

    def close(self) -> None:
        pass


def _options(method: Callable[..., Any], who: str, request: SpeechRequest) -> dict[str, Any]:
    """What a request asks for, in the method's own words. Raises InvalidOption for what it has no word for."""
    options = {name: value for name, value in vars(request.sampling).items() if value is not None}
    if request.reference is not None:
        options["reference_audio"] = request.reference.source
        options["reference_text"] = request.reference.text or None
    try:
        taken = inspect.signature(method).parameters
    except (TypeError, ValueError):  # of compiled code; it will say itself what it does not take
        return options if request.voice is None else {**options, "voice": request.voice}
    anything = any(each.kind is each.VAR_KEYWORD for each in taken.values())
    named = [name for name, each in taken.items() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)][1:]
    if request.voice is not None:
        word = next((word for word in _VOICES if word in named), "voice" if anything else None)
        if word is None:
            raise InvalidOption(f"{who} knows no voices by name; it takes {', '.join(named) or 'a text only'}")
        options[word] = request.voice
    if options.get("reference_text", "") is None and not (anything or "reference_text" in named):
        del options["reference_text"]
    if not anything and (unknown := [name for name in options if name not in named]):
        raise InvalidOption(f"{who} does not take {unknown[0]}; it takes {', '.join(named) or 'a text only'}")
    if lacking := [name for name in named if taken[name].default is inspect.Parameter.empty and name not in options]:
        hint = "give voice=" if lacking[0] in _VOICES else f"wrap an object whose method needs no {lacking[0]}"
        raise InvalidOption(f"{who} needs {lacking[0]}, too: {hint}")
    return options
