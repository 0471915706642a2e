"""The graphs that Spark-TTS is converted to: each of its modules by itself, between the boundaries the engine has.

wav2vec2              values [1, n] -> features [1, T, C], the mean of three hidden states
encoder               features [1, C, T] -> latents [1, C, T]
quantizer_tokenize    latents [1, T, C] -> codes [1, T]
quantizer_detokenize  codes [1, T] -> quantized [1, T, C]
speaker_encoder       mels [1, F, bands] -> x_vector, d_vector [1, C]
speaker_tokenize      mels [1, F, bands] -> codes of the voice [1, 1, G]
speaker_detokenize    codes of the voice [1, 1, G] -> d_vector [1, C]
prenet                quantized [1, C, T], d_vector [1, C] -> hidden [1, C, T]
postnet               hidden [1, C, T] -> features [1, C, T]; of training, speech does not need it
decoder               hidden + d_vector [1, C, T] -> audio [1, 1, hop * T]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from . import examples
from .stored import held
from .traceable import LAYERS, Semantics

__all__ = ["GRAPHS", "Graph", "passage"]

_WINDOW, _STEP = 400, 320  # samples of wav2vec2's first frame, and of each further one

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Graph:
    """One of the graphs. inputs: name -> (value of `passage`, dynamic axes). codes: whether it answers with codes.

    module: of the engine -> what is traced, whose answers are PyTorch's, but where the engine's `answer` is given.
    """

    name: str
    module: Callable[[Any], nn.Module]
    inputs: Mapping[str, tuple[str, Mapping[int, str]]]
    outputs: tuple[str, ...]
    codes: bool = False
    answer: Callable[[Any, Tensor], Tensor] | None = None

    def given(self, values: Values) -> tuple[Tensor, ...]:
        return tuple(values[name].contiguous() for name, _ in self.inputs.values())


class _Within(nn.Module):
    """A function of an engine's module."""

    def __init__(self, own: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.own, self.function = own, function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.own, x)


class _Conditioned(_Within):
    def forward(self, x: Tensor, voice: Tensor) -> Any:  # type: ignore[override]
        return self.function(self.own, x, voice)


def _of(name: str, function: Callable[..., Any], kind: type[_Within] = _Within) -> Callable[[Any], nn.Module]:
    return lambda engine: kind(getattr(held(engine.audio_tokenizer.model), name), function).eval()


def _features(engine: Any) -> nn.Module:
    """What precedes the codec's encoder."""
    nothing = SimpleNamespace(encoder=nn.Identity(), quantizer=SimpleNamespace(tokenize=lambda states: states))
    whole = Semantics(held(engine.audio_tokenizer.feature_extractor), nothing)
    return _Within(whole, lambda own, values: own(values).transpose(1, 2)).eval()


def _hidden_states(engine: Any, values: Tensor) -> Tensor:
    states = held(engine.audio_tokenizer.feature_extractor)(values).hidden_states
    return torch.stack([states[layer] for layer in LAYERS]).mean(0)


_FRAMES = {2: "frames"}
GRAPHS = (
    Graph("wav2vec2", _features, {"values": ("values", {1: "samples"})}, ("features",), answer=_hidden_states),
    Graph("encoder", _of("encoder", lambda own, x: own(x)), {"features": ("features", _FRAMES)}, ("latents",)),
    Graph(
        "quantizer_tokenize",
        _of("quantizer", lambda own, x: own.tokenize(x.transpose(1, 2))),
        {"latents": ("latents", {1: "frames"})},
        ("codes",),
        codes=True,
    ),
    Graph(
        "quantizer_detokenize",
        _of("quantizer", lambda own, codes: own.detokenize(codes).transpose(1, 2)),
        {"codes": ("semantics", {1: "frames"})},
        ("quantized",),
    ),
    Graph(
        "speaker_encoder",
        _of("speaker_encoder", lambda own, mels: own(mels)),
        {"mels": ("mels", {1: "frames"})},
        ("x_vector", "d_vector"),
    ),
    Graph(
        "speaker_tokenize",
        _of("speaker_encoder", lambda own, mels: own.tokenize(mels)),
        {"mels": ("mels", {1: "frames"})},
        ("codes",),
        codes=True,
    ),
    Graph(
        "speaker_detokenize",
        _of("speaker_encoder", lambda own, codes: own.detokenize(codes)),
        {"codes": ("globals", {})},
        ("d_vector",),
    ),
    Graph(
        "prenet",
        _of("prenet", lambda own, x, voice: own(x, voice), _Conditioned),
        {"quantized": ("quantized", _FRAMES), "d_vector": ("voice", {})},
        ("hidden",),
    ),
    Graph("postnet", _of("postnet", lambda own, x: own(x)), {"hidden": ("hidden", _FRAMES)}, ("features",)),
    Graph("decoder", _of("decoder", lambda own, x: own(x)), {"hidden": ("spoken", _FRAMES)}, ("audio",)),
)


def passage(engine: Any, frames: int) -> Values:
    """What passes between the engine's modules for a recording of so many frames, and back: inputs of the graphs."""
    tokenizer = engine.audio_tokenizer
    codec = held(tokenizer.model)
    audio = examples.noise((_WINDOW + _STEP * (frames - 1)) / engine.sample_rate, engine.sample_rate)
    with torch.no_grad():
        values = torch.from_numpy(examples.values(tokenizer.processor, audio, engine.sample_rate))
        features = _hidden_states(engine, values).transpose(1, 2)
        latents = codec.encoder(features)
        semantics = codec.quantizer.tokenize(latents)
        clip = torch.from_numpy(audio)[None].float()
        mels = codec.mel_transformer(clip).transpose(1, 2)[:, :frames]
        codes = codec.speaker_encoder.tokenize(mels).long()
        voice = codec.speaker_encoder.detokenize(codes)
        quantized = codec.quantizer.detokenize(semantics)
        hidden = codec.prenet(quantized, voice)
    return {
        "values": values,
        "features": features,
        "latents": latents.transpose(1, 2),
        "semantics": semantics,
        "mels": mels,
        "globals": codes,
        "voice": voice,
        "quantized": quantized,
        "hidden": hidden,
        "spoken": hidden + voice[..., None],
    }
