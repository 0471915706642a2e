"""A small PyTorch text-to-speech engine: a dual autoregressive transformer over codes, and a neural codec.

It belongs to the family of OpenAudio S1 and is what the tests, the demo and the benchmarks accelerate. It knows nothing
of the package around it.

    engine = load("tiny")
    audio, sample_rate = engine.synthesize("Hello there.", seed=0)
"""

from .bundled import bundled_voice, load_bundled
from .config import SIZES, EngineConfig
from .engine import ReferenceEngine, load
from .errors import ReferenceEngineError

__all__ = ["SIZES", "EngineConfig", "ReferenceEngine", "ReferenceEngineError", "bundled_voice", "load", "load_bundled"]
