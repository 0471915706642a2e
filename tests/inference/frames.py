"""Frames of a decoder, and those of PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from accelerator.engines.reference import ReferenceAdapter
from accelerator.export.graph.dual_ar import DualARSpec
from accelerator.inference.batcher import DualARDecoder
from accelerator.inference.sampling import Sampler
from accelerator.inference.transformer import Embeddings
from accelerator.runtime.onnx import Session
from accelerator.speech import SamplingParams

TEXT = "The decode loop."
GREEDY = {"temperature": 0, "repetition_penalty": 1.0}


def decoder_of(built: Path, spec: DualARSpec) -> DualARDecoder:
    return DualARDecoder(spec, Session(built / "slow.onnx"), Session(built / "fast.onnx"), Embeddings(built, spec))


def sampler(adapter: ReferenceAdapter, **params: Any) -> Sampler:
    return adapter.sampler(SamplingParams(**{"top_p": 0.8, "top_k": 30, "repetition_penalty": 1.0, **params}))


def generate(
    decoder: DualARDecoder, adapter: ReferenceAdapter, prompt: np.ndarray, count: int, **how: Any
) -> np.ndarray:
    frames, batching = how.pop("frames", ()), how.pop("batching", "off")
    sampling = sampler(adapter, **{"temperature": 0, **how}).resume(frames)
    return np.stack(list(decoder.generate(prompt, sampling, count, frames=frames, batching=batching)))


def of_pytorch(engine: Any, prompt: np.ndarray, count: int) -> np.ndarray:
    return np.stack(list(engine.generate(prompt, max_new_tokens=count, **GREEDY)))


class Scripted:
    """A sampler whose main tokens are given."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.pushed = iter(tokens), []

    def main(self, logits: np.ndarray) -> int:
        return next(self.tokens)

    def code(self, codebook: int, logits: np.ndarray) -> int:
        return codebook

    def push(self, frame: np.ndarray) -> None:
        self.pushed.append(frame.copy())
