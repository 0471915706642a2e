"""Engines that are still on disk: all is there but the weights, which are read when something asks for them."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import EngineError
from ...hardware.forks import Lock
from ...hardware.pages import return_freed

__all__ = ["Late", "OnDisk", "Shape", "check_folder", "held", "opened", "shape_of"]

_MODULES = ("spark_tts_lib.SparkTTS", "cli.SparkTTS")  # of the package, and of a checkout on the path
_NEEDED = ("config.yaml", "LLM/config.json", "BiCodec/config.yaml", "wav2vec2-large-xlsr-53/config.json")


@dataclass(frozen=True)
class Shape:
    """sizes: codes in the semantic codebook, and in the voice's. count: codes of a voice. reach: see `reach`."""

    sizes: tuple[int, int]
    count: int
    reach: int | None


def shape_of(bicodec: Any) -> Shape:
    from .reach import reach

    speaker = bicodec.speaker_encoder
    sizes = int(bicodec.quantizer.codebook_size), int(speaker.quantizer.codebook_size)
    return Shape(sizes, len(speaker.perceiver_sampler.latents), reach(bicodec.prenet, bicodec.decoder))


class Late:
    """An engine that is opened when it is first needed. there: whether it was."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load, self._lock, self._engine = load, Lock(), None

    @property
    def there(self) -> bool:
        return self._engine is not None

    def __call__(self) -> Any:
        with self._lock:
            if self._engine is None:
                self._engine = self._load()
            return self._engine


class OnDisk:
    """Stands for one of an engine's modules: whatever is asked of it is the module's own answer."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load, self._lock, self._module = load, Lock(), None

    def get(self) -> Any:
        """The module, read now if it is not in memory."""
        with self._lock:
            if self._module is None:
                self._module = self._load()
            return self._module

    def release(self) -> None:
        with self._lock:
            self._module = None
        gc.collect()
        return_freed()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.get(), name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.get()(*args, **options)

    # What a copy of the engine replaces must be there before anything was read.

    def generate(self, *args: Any, **options: Any) -> Any:
        return self.get().generate(*args, **options)

    def tokenize(self, *args: Any, **options: Any) -> Any:
        return self.get().tokenize(*args, **options)

    def detokenize(self, *args: Any, **options: Any) -> Any:
        return self.get().detokenize(*args, **options)


def held(module: Any) -> Any:
    """The module itself, read now if it is on disk."""
    return module.get() if isinstance(module, OnDisk) else module


def check_folder(folder: Path) -> None:
    """Raises EngineError for what is no checkpoint."""
    if lacking := [name for name in _NEEDED if not (folder / name).is_file()]:
        raise EngineError(
            f"{folder} is not a Spark-TTS checkpoint, it has no {lacking[0]}: give the folder of a download, as of "
            "SparkAudio/Spark-TTS-0.5B"
        )


def opened(folder: Path) -> tuple[Any, Any, Shape]:
    """A `SparkTTS` of a folder whose weights stay there, its language model without weights, and its codebooks.

    Raises EngineError.
    """
    try:
        return _opened(folder, _installed())
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{folder} cannot be opened as a Spark-TTS: {error}") from error


def _installed() -> Any:
    """The module that has the class."""
    reasons = []
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reasons.append(f"{name}: {error}")
    raise EngineError(
        f"Spark-TTS needs its own package ({'; '.join(reasons)}): pip install --no-deps spark-tts-lib, and what it "
        "says it misses; or put a checkout of SparkAudio/Spark-TTS on PYTHONPATH"
    )


def _opened(folder: Path, module: Any) -> tuple[Any, Any, Shape]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, __version__

    auto: Any = AutoModelForCausalLM  # whose types say that it cannot be called so
    place = folder / "LLM"
    engine = module.SparkTTS.__new__(module.SparkTTS)
    engine.device, engine.model_dir = torch.device("cpu"), folder
    engine.configs = module.load_config(f"{folder}/config.yaml")
    engine.sample_rate = engine.configs["sample_rate"]
    engine.tokenizer = AutoTokenizer.from_pretrained(place)
    engine.model = OnDisk(lambda: auto.from_pretrained(place).eval())
    engine.audio_tokenizer = _audio_tokenizer(folder, module)
    with torch.device("meta"):
        shell = auto.from_config(AutoConfig.from_pretrained(place))
    if int(__version__.partition(".")[0]) < 5:  # which reads weights in float32 whatever the configuration says
        shell = shell.float()
    if (place / "generation_config.json").is_file():
        shell.generation_config = GenerationConfig.from_pretrained(place)
    return engine, shell, _shape(folder, module)


def _shape(folder: Path, module: Any) -> Shape:
    import torch

    from .reach import reach

    config = module.load_config(f"{folder}/BiCodec/config.yaml")["audio_tokenizer"]
    speaker, kinds = config["speaker_encoder"], sys.modules[_bicodec(module).__module__]
    with torch.device("meta"):
        ends = kinds.Decoder(**config["prenet"]), kinds.WaveGenerator(**config["decoder"])
    sizes = int(config["quantizer"]["codebook_size"]), math.prod(speaker["fsq_levels"])
    return Shape(sizes, int(speaker["token_num"]), reach(*ends))


def _bicodec(module: Any) -> Any:
    """The codec's class."""
    return sys.modules[module.BiCodecTokenizer.__module__].BiCodec


def _audio_tokenizer(folder: Path, module: Any) -> Any:
    import torch
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

    kind = module.BiCodecTokenizer
    bicodec, place = _bicodec(module), folder / "wav2vec2-large-xlsr-53"
    made = kind.__new__(kind)
    made.device, made.model_dir, made.config = torch.device("cpu"), folder, module.load_config(f"{folder}/config.yaml")
    made.processor = Wav2Vec2FeatureExtractor.from_pretrained(place)

    def decoder() -> Any:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what a checkpoint lacks, which buffers always are
            return bicodec.load_from_checkpoint(f"{folder}/BiCodec")

    def features() -> Any:
        model: Any = Wav2Vec2Model
        loaded = model.from_pretrained(place)
        loaded.config.output_hidden_states = True
        return loaded

    made.model, made.feature_extractor = OnDisk(decoder), OnDisk(features)
    return made
