"""One file per engine, and the table that finds them. An engine's own package is imported inside its adapter only."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Iterator
from typing import Any

from ..errors import EngineError, UnsupportedEngine
from .base import Adapter, Bound, Part

__all__ = [
    "ADAPTERS",
    "CHECKPOINTS",
    "DECLINED",
    "Adapter",
    "Bound",
    "Part",
    "adapter_for",
    "adapter_from_checkpoint",
    "checkpoint_options",
]

ADAPTERS = {
    "accelerator.engines.mockingbird.engine.MockingBird": "accelerator.engines.mockingbird:MockingBirdAdapter",
    "accelerator.reference.engine.ReferenceEngine": "accelerator.engines.reference:ReferenceAdapter",
    "cli.SparkTTS.SparkTTS": "accelerator.engines.spark_tts:SparkAdapter",
    "fish_speech.inference_engine.TTSInferenceEngine": "accelerator.engines.fish_speech:FishSpeechAdapter",
    "kittenml.kittentts_legacy.model.KittenTTSOnnx": "accelerator.engines.kitten:adapter",
    "kittentts.KittenTTS": "accelerator.engines.kitten:adapter",
    "kittentts.get_model.KittenTTS": "accelerator.engines.kitten:adapter",
    "kokoro_onnx.Kokoro": "accelerator.engines.kokoro:adapter",
    "piper.voice.PiperVoice": "accelerator.engines.piper:adapter",
    "spark_tts_lib.SparkTTS.SparkTTS": "accelerator.engines.spark_tts:SparkAdapter",
    "transformers.pipelines.text_to_audio.TextToAudioPipeline": "accelerator.engines.vits:adapter",
}
"""Qualified type name -> "module:callable". It is called with the engine; any base class of the engine may match."""

DECLINED = {
    "accelerator.optimizer.UniversalOptimizer": "accelerator.engines.passthrough:WRAPPED",
    "kitten_tts_cpp.model.KittenTTS2": "accelerator.engines.kitten:KITTEN_2",
    "kittenml.kittentts2.model.KittenTTS2": "accelerator.engines.kitten:KITTEN_2",
    "kittentts2.KittenTTS2": "accelerator.engines.kitten:KITTEN_2",
    "kittentts2.model.KittenTTS2": "accelerator.engines.kitten:KITTEN_2",
}
"""Qualified type name -> "module:text" of why there is no adapter."""

CHECKPOINTS = {
    "fish-speech": "accelerator.engines.fish_speech:FishSpeechAdapter",
    "kitten": "accelerator.engines.kitten:KittenAdapter",
    "kokoro": "accelerator.engines.kokoro:KokoroAdapter",
    "mockingbird": "accelerator.engines.mockingbird:MockingBirdAdapter",
    "piper": "accelerator.engines.piper:PiperAdapter",
    "spark-tts": "accelerator.engines.spark_tts:SparkAdapter",
    "spark-tts-onnx": "accelerator.engines.spark_tts:ConvertedAdapter",
    "vits": "accelerator.engines.vits:VitsAdapter",
}
"""Engine name -> the adapter class whose `from_checkpoint(path, **options)` opens that engine's checkpoints."""

ENTRY_POINTS = "accelerator.adapters"  # third parties: `<qualified type name> = "module:Class"` in this group


def adapter_for(engine: Any) -> Adapter:
    """The adapter of an engine; a pass-through one for unknown engines. Raises UnsupportedEngine."""
    from .passthrough import PassThroughAdapter

    third_party = {e.name: e.value for e in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    for name in _type_names(engine):
        if target := third_party.get(name) or ADAPTERS.get(name):
            adapter: Adapter = _load(target)(engine)
            return adapter
        if name in DECLINED:
            raise UnsupportedEngine(_load(DECLINED[name]))
    return PassThroughAdapter(engine)


def adapter_from_checkpoint(engine: str, path: Any, *, cache: Any = None, **options: Any) -> Adapter:
    """The adapter of an engine that is still on disk. cache: offered to adapters that take one. Raises EngineError."""
    if cache is not None and "cache" in checkpoint_options(engine):
        options["cache"] = cache
    adapter: Adapter = _opener(engine)(path, **options)
    return adapter


def checkpoint_options(engine: str) -> frozenset[str]:
    """What can be said of an engine's checkpoint when it is opened. Raises EngineError."""
    return frozenset(inspect.signature(_opener(engine)).parameters)


def _opener(engine: str) -> Any:
    if engine not in CHECKPOINTS:
        raise EngineError(f"no engine called {engine!r}; choose one of {', '.join(sorted(CHECKPOINTS))}")
    return _load(CHECKPOINTS[engine]).from_checkpoint


def _type_names(engine: Any) -> Iterator[str]:
    for kind in type(engine).__mro__:
        yield f"{kind.__module__}.{kind.__qualname__}"


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise EngineError(f"the adapter {target} cannot be loaded: {error}") from error
