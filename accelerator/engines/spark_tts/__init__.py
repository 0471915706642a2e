"""The adapter of Spark-TTS (`SparkTTS`), from the package spark-tts-lib or a checkout of SparkAudio/Spark-TTS.

    vocabulary  token ids -> numbers of the codebooks, and back
    prompts     the engine's own prompts, of tokens that are known
    grammar     the same where the engine is not there
    reading     texts and recordings as the engine reads them, by itself or by its files
    known       what is remembered of a checkpoint, so that the engine need not be opened
    language_model  a prompt -> a reply, token by token
    traceable   its modules so that they can be traced
    modules     these, made when they are asked for
    encoder     a recording -> codes, by graphs that are open while they run
    reach       how far the codec looks to both sides
    examples    what these, and the language model, are traced and proven with
    stored      engines that are still on disk, and modules that can be let go and read again
    pytorch     tokens of the engine's own model, as they come
    routed      the copy of the engine that calls the routes
    stages      text -> segments -> tokens -> audio
    adapter     the parts, their proofs and probes
    boundaries  the graphs of a conversion
    convert     a checkpoint -> a folder of ONNX files
    folder      the names of these files
    converted   an engine on these files, without PyTorch
    onnx        its interface
    recording   a reference as these graphs take it

None of the engine's code is here: its package is called, and imported where a checkpoint is opened. The copy answers as
the engine does, except that a seed gives other audio than the same seed in PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapter import SparkAdapter
    from .converted import ConvertedAdapter
    from .onnx import SparkTTSONNX

__all__ = ["ConvertedAdapter", "SparkAdapter", "SparkTTSONNX"]

_HOMES = {"ConvertedAdapter": "converted", "SparkAdapter": "adapter", "SparkTTSONNX": "onnx"}


def __getattr__(name: str) -> Any:
    """On use, since what was converted speaks where there is no PyTorch."""
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
