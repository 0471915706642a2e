"""Frames by fish-speech's own forward passes and sampling: what answers where nothing faster can."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...export.graph.dual_ar import DualARSpec
from ...inference.sampling import TokenLayout
from ...speech import SamplingParams
from .language_model import with_cache
from .layouts import Layout
from .structure import with_globals

__all__ = ["generate", "token_layout"]


def token_layout(spec: DualARSpec) -> TokenLayout:
    """Where the sampler finds speech in the vocabulary."""
    return TokenLayout(
        semantic_begin=spec.semantic_begin,
        semantic_end=spec.semantic_end,
        end_id=spec.end_id,
        n_codebooks=spec.codebooks,
    )


def generate(
    module: Any,
    layout: Layout,
    model: Any,
    spec: DualARSpec,
    prompt: np.ndarray,
    params: SamplingParams,
    resume: Sequence[np.ndarray] = (),
    *,
    own_cache: bool = False,
) -> Iterator[np.ndarray]:
    """Frames int64 [1 + C] by fish-speech's own decode_one_token_ar, the end token's frame included.

    own_cache: run on the model itself with the cache it has, as fish-speech does; for benchmarks.

    params: resolved; max_new_tokens bounds the frames, those of `resume` included. Random numbers depend on the seed
    and on where the call resumes, not on anything that runs beside it.
    """
    limit = min(params.max_new_tokens or spec.slow.positions, spec.slow.positions - prompt.shape[1])
    frames = np.array([*resume], np.int64).reshape(-1, prompt.shape[0])
    count, looks_back, recent = len(frames), len(frames) > 0, frames[1:]  # the prefill looks back on nothing
    if count >= limit:
        return
    made = model if own_cache else with_cache(model, prompt.shape[1] + limit)
    draw = with_globals(module.sample, {"multinomial_sample_one_no_sync": _drawing(params, count)})
    step = with_globals(module.decode_one_token_ar, {"sample": draw})
    options = layout.sampling(made, spec, params) | {"audio_masks": None, "audio_parts": None}
    x = torch.from_numpy(np.concatenate([prompt, frames.T], axis=1).astype(np.int64))[None]
    position = torch.arange(x.shape[2])
    while True:
        if looks_back:
            options["previous_tokens"] = torch.from_numpy(layout.window(recent)).int()
        kernel = sdpa_kernel(SDPBackend.MATH) if x.shape[2] == 1 else contextlib.nullcontext()
        with torch.inference_mode(), kernel:
            answer = step(model=made, x=x, input_pos=position, **options)
            frame = answer.numpy().astype(np.int64).reshape(-1)
        count += 1
        yield frame
        if count == limit or (looks_back and frame[0] == spec.end_id):  # fish-speech ignores an end that comes first
            return
        if looks_back:
            recent = np.concatenate([recent, frame[None]])[-layout.rule.window :]
        looks_back = True
        x, position = torch.from_numpy(frame)[None, :, None], position[-1:] + 1


def _drawing(params: SamplingParams, start: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What stands for fish-speech's random draw: the same distribution, from a generator of our own.

    Theirs divides by a bfloat16 that may be zero, and shares one random state with all requests.
    """
    if params.temperature == 0.0:
        return lambda probabilities: probabilities.argmax(dim=-1, keepdim=True).int()
    generator = torch.Generator()
    if params.seed is None:
        generator.seed()
    else:
        digest = hashlib.sha256(f"{params.seed} {start}".encode()).digest()
        generator.manual_seed(int.from_bytes(digest[:7], "little"))

    def draw(probabilities: torch.Tensor) -> torch.Tensor:
        p = probabilities.float()
        if params.top_k is not None and params.top_k < p.shape[-1]:
            p = p.where(p >= p.topk(params.top_k).values[..., -1:], 0.0)
        return (p / torch.empty_like(p).exponential_(1.0, generator=generator)).argmax(dim=-1, keepdim=True).int()

    return draw
