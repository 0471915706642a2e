"""The language model as a part: a prompt -> a reply, token by token, whichever of its backends draws them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...inference.batcher import CausalDecoder
from ...inference.sequence import Batching
from ...inference.token_sampling import Chance, TokenSampler
from ...inference.transformer import StepTimes
from ...parts.part import Call
from ...speech import SamplingParams

__all__ = ["generating", "most_tokens", "seconds_a_token"]

_PROBED = 16  # tokens


def generating(
    decoder: CausalDecoder, defaults: SamplingParams, chances: Callable[[int], Chance] | None = None
) -> Call:
    """The part's call, on a decoder. defaults: what the engine does where nothing is asked for.

    chances: a seed's random numbers, if they are the engine's: then those of one call may be given instead.
    """

    def generate(
        prompt: np.ndarray,
        params: SamplingParams,
        *,
        resume: Sequence[int] = (),
        batching: Batching = "off",
        times: StepTimes | None = None,
        chance: Chance | None = None,
    ) -> Iterator[int]:
        params, how = params.over(defaults), dict[str, Any]()
        if chances is not None:
            how["chance"] = chances if chance is None else lambda seed: chance
        sampler = TokenSampler(params, decoder.spec.rows, prompt=prompt.tolist(), **how).resume(resume)
        left = most_tokens(params, decoder.spec.stack.positions, prompt) - len(resume)
        yield from decoder.generate(prompt, sampler, left, tokens=resume, batching=batching, times=times)

    return generate


def most_tokens(params: SamplingParams, positions: int, prompt: np.ndarray) -> int:
    """Tokens of a reply at most. params: resolved. positions: of the model."""
    assert params.max_new_tokens is not None
    return min(params.max_new_tokens, positions - len(prompt))


def seconds_a_token(call: Call, prompt: np.ndarray) -> float:
    """How long a token takes, the prompt included, by all tokens together."""
    params = SamplingParams(temperature=1.0, top_k=50, top_p=1.0, seed=0, max_new_tokens=_PROBED)
    start = time.perf_counter()
    count = sum(1 for _ in call(prompt, params))
    return (time.perf_counter() - start) / max(count, 1)
