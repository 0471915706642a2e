"""The adapter of Spark-TTS (`SparkTTS`), from the package spark-tts-lib or a checkout of SparkAudio/Spark-TTS.

    vocabulary  token ids -> numbers of the codebooks, and back
    prompts     the engine's own prompts, of tokens that are known
    traceable   its modules so that they can be traced
    reach       how far the codec looks to both sides
    examples    what these, and the language model, are traced and proven with
    stored      engines that are still on disk, and modules that can be let go and read again
    routed      the copy of the engine that calls the routes
    stages      text -> segments -> tokens -> audio
    adapter     the parts, their proofs and probes

None of the engine's code is here: its package is called, and imported where a checkpoint is opened. The copy answers as
the engine does, except that a seed gives other audio than the same seed in PyTorch.
"""

from .adapter import SparkAdapter

__all__ = ["SparkAdapter"]
