"""The adapter of fish-speech / OpenAudio (`TTSInferenceEngine`): the code that runs S1-mini, and the current one.

    layouts         what differs between the two, and which one is installed
    reach           from an engine to its language model
    language_model  the model's dimensions, weights and trace
    pytorch         what generates by fish-speech's own code
    codec           the codec's two directions as modules that can be traced
    examples        what these are traced and proven with
    stored, rewrite what is stored of the codec for its PyTorch rewrite, and that
    weights         weights that can be let go and read again; checkpoint folders
    routed          the copy of the engine that calls the routes
    adapter         the parts, their proofs and probes

None of fish-speech's code is here (it has a research licence): its package is imported where it is used, and called.

The copy answers as the engine does, except that
- S1 sampled from the whole vocabulary; here only the semantic tokens and the end token can be drawn, which are the only
  ones it can decode (an id beyond them is an IndexError there, one before them turns into code 0);
- a seed belongs to its request, whatever runs beside it, and gives other audio than the same seed in PyTorch;
- the codec computes in float32 also where the engine's precision is bfloat16;
- head changes the codes it decodes in place, while its next prompt is made of them; here they stay as generated.
"""

from .adapter import FishSpeechAdapter

__all__ = ["FishSpeechAdapter"]
