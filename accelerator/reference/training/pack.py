"""Both trained models as one safetensors file, small enough to ship: half precision, and eight bits for the language
model's matrices."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from ..config import EngineConfig
from ..errors import ReferenceEngineError
from ..weights import save_weights
from .codec import trained_codec
from .language_model import trained_language_model
from .tokens import codec_of, digest
from .voice import VOICE

__all__ = ["LIMIT", "halved", "pack"]

LIMIT = 16_000_000  # bytes

_Module = TypeVar("_Module", bound=nn.Module)


def pack(work: Path, *, output: Path | None = None, config: EngineConfig = VOICE, unfinished: bool = False) -> Path:
    """Write the voice and answer its path.

    Raises ReferenceEngineError if a part is not trained to its end (unless `unfinished`), if the language model learnt
    another codec's codes, or if the file is too large to ship.
    """
    output = output or work / "voice.safetensors"
    codec = trained_codec(work, config, unfinished=unfinished)
    language_model = trained_language_model(work, config, unfinished=unfinished)
    if codec_of(work, "train") != digest(codec):
        raise ReferenceEngineError("the codec was trained on after `tokens`: run tokens and language-model again")
    save_weights(output, config, halved(language_model), halved(codec), eight_bits=True)
    if (size := output.stat().st_size) > LIMIT:
        output.unlink()
        raise ReferenceEngineError(f"the voice would have {size} bytes, more than {LIMIT}")
    return output


def halved(module: _Module) -> _Module:
    """A copy in float16. Raises ReferenceEngineError where a weight is out of its range."""
    half = copy.deepcopy(module).half()
    for name, parameter in half.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ReferenceEngineError(f"{name} does not fit float16")
    return half
