"""Unknown engines: nothing is replaced, the engine speaks for itself, and the result says so."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from ..errors import EngineError, UnsupportedEngine
from ..metrics import current_meter
from ..parts.part import Call, Part
from ..speech import AudioChunk, SpeechRequest
from .answers import chunks_of, rate_of
from .base import Bound, Cloning
from .methods import METHODS, Method
from .options import Option

__all__ = ["WRAPPED", "PassThroughAdapter", "check_engine"]

logger = logging.getLogger(__name__)

WRAPPED = "this engine is wrapped already: use it as it is, or wrap the engine that it was made of for other options"
_MODULE = "torch.nn.modules.module.Module"
_SPEAKING = "transformers.pipelines.text_to_audio.TextToAudioPipeline"
_PARTS = {
    "transformers.modeling_utils.PreTrainedModel": "a model without its tokenizer",
    "transformers.tokenization_utils_base.PreTrainedTokenizerBase": "a tokenizer without its model",
    "transformers.processing_utils.ProcessorMixin": "a processor without its model",
    "transformers.feature_extraction_utils.FeatureExtractionMixin": "a feature extractor",
    "transformers.image_processing_base.ImageProcessingMixin": "an image processor",
    "transformers.pipelines.base.Pipeline": "a pipeline for another task",
}
"""Base class -> what it is instead of an engine, though it can be called, or has a method of a usual name."""

_DATA = (str, bytes, bytearray, os.PathLike, int, float, complex, dict, list, tuple, set, frozenset, type(None))


def check_engine(engine: Any) -> None:
    """Raises UnsupportedEngine, which says what to wrap instead, for what cannot speak by any method."""
    kind = type(engine)
    if isinstance(engine, (str, os.PathLike)):
        raise UnsupportedEngine(
            f"{engine!r} is a {kind.__name__}, not an engine: wrap the engine itself, or open a checkpoint with "
            "UniversalOptimizer.from_checkpoint(path, engine)"
        )
    if inspect.isclass(engine):
        raise UnsupportedEngine(f"{engine.__name__} is a class: make an instance of it, and wrap that")
    if inspect.ismethod(engine):
        name = engine.__name__
        fix = "wrap the object itself" if name in METHODS else f"wrap a function, lambda text: engine.{name}(text)"
        raise UnsupportedEngine(f"{engine.__qualname__} is a method of an object: {fix}")
    if inspect.isbuiltin(engine):  # which says of no argument what it is for
        raise UnsupportedEngine(
            f"{engine.__name__}() is a built-in function, not an engine: wrap the object that turns text into audio, "
            "or a function that does, lambda text: (samples, Hz)"
        )
    bases = _bases(engine)
    if _SPEAKING not in bases and (parts := [what for base, what in _PARTS.items() if base in bases]):
        raise UnsupportedEngine(
            f"{kind.__name__} is {parts[0]}: wrap "
            "transformers.pipeline('text-to-speech', model=model, tokenizer=tokenizer)"
        )
    _method_of(engine)


def _bases(engine: Any) -> set[str]:
    return {f"{each.__module__}.{each.__qualname__}" for each in type(engine).__mro__}


def _method_of(engine: Any) -> Method:
    """The method that speaks. Raises UnsupportedEngine."""
    names = METHODS[:-1] if _MODULE in _bases(engine) else METHODS  # calling a module takes tensors
    kind = type(engine)
    data = isinstance(engine, _DATA) or hasattr(engine, "__array__")
    methods = [] if data else [Method(engine, name) for name in names if callable(getattr(engine, name, None))]
    if not methods:
        raise UnsupportedEngine(
            f"{kind.__module__}.{kind.__qualname__} is no engine: it has none of {', '.join(names)}; "
            "wrap the object that turns text into audio, or a function that does, or pass adapter="
        )
    if (speaks := next((method for method in methods if method.flaw is None), None)) is None:
        raise UnsupportedEngine(
            f"{methods[0].who} {methods[0].flaw}: wrap a function of the text that calls it as it has to be, "
            "lambda text: (samples, Hz), or pass adapter="
        )
    return speaks


class PassThroughAdapter:
    """Hands every request to the engine's own `synthesize`, `tts`, `generate`, ... or call: see `methods.METHODS`."""

    name = "pass-through"
    cloning: Cloning | None = Cloning()
    options: Mapping[str, Option] | None = None  # the engine's own method says what it does not take

    def __init__(self, engine: Any) -> None:
        """Raises UnsupportedEngine for what is no engine."""
        check_engine(engine)
        self._engine = engine
        self.engine = engine
        kind = type(engine)
        logger.warning(
            "%s.%s is not an engine this package knows: it is passed through and runs as before",
            kind.__module__,
            kind.__qualname__,
        )

    @property
    def sample_rate(self) -> int:
        """Hz, as far as the engine tells by now: 0 before what it loads when it speaks, or where only answers tell."""
        return rate_of(self._engine)

    def parts(self) -> Sequence[Part]:
        return ()

    def bind(self, calls: Mapping[str, Call]) -> Bound:
        return Bound(self._engine, stream=lambda request, kept: self.original(request))

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        """Raises EngineError for an answer that is not audio, InvalidOption for what the engine does not take."""
        method = _method_of(self._engine)
        current_meter().used("engine", "own", own=True)
        spoke = False
        with closing(chunks_of(method(request), self._engine, method.who)) as chunks:
            for chunk in chunks:
                spoke = True
                yield chunk
        if not spoke:
            raise EngineError(f"{method.who} answered with no audio at all")

    def release(self) -> None:
        """Nothing: the engine is the user's."""
