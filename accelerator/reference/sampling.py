"""Logits -> token: top-k, top-p, temperature, repetition penalty and repetition-aware sampling. Pure functions.

Sources: nucleus sampling (Holtzman et al. 2020), repetition penalty (CTRL, Keskar et al. 2019), the exponential race
argmax(p / Exp(1)) that draws from p without a cumulative sum (Gumbel-max), repetition-aware sampling (VALL-E 2, 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import ReferenceEngineError

__all__ = ["Sampling", "candidates", "draw", "penalise", "repetition_aware"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn. temperature 0 is greedy; top_p in (0, 1]; top_k >= 1; repetition_penalty >= 1 (1: none)."""

    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 30
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ReferenceEngineError(f"temperature must be 0 or more, not {self.temperature!r}")
        if not 0 < self.top_p <= 1:
            raise ReferenceEngineError(f"top_p must be in (0, 1], not {self.top_p!r}")
        if self.top_k < 1:
            raise ReferenceEngineError(f"top_k must be 1 or more, not {self.top_k!r}")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty >= 1):
            raise ReferenceEngineError(f"repetition_penalty must be 1 or more, not {self.repetition_penalty!r}")


def penalise(logits: Tensor, recent: Sequence[int], penalty: float) -> Tensor:
    """Lower the logits [V] of recent tokens: divided by the penalty if positive, multiplied if negative."""
    if penalty == 1.0 or not recent:
        return logits
    index = torch.tensor(sorted(set(recent)))
    chosen = logits[index]
    return logits.index_copy(0, index, torch.where(chosen > 0, chosen / penalty, chosen * penalty))


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Logits [V] -> (token indices [n], their probabilities [n]), best first; temperature must be above 0.

    top-k and top-p both judge the untempered distribution over all of V; the token that carries the sum across top_p is
    dropped unless it is the best one. Temperature is applied to what is left.
    """
    values, index = logits.float().topk(min(sampling.top_k, logits.shape[0]))
    mass = torch.exp(values - logits.float().logsumexp(0)).cumsum(0)
    kept = max(1, int((mass <= sampling.top_p).sum()))
    return index[:kept], torch.softmax(values[:kept] / sampling.temperature, 0)


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token index from logits [V]."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    index, probabilities = candidates(logits, sampling)
    race = torch.empty_like(probabilities).exponential_(generator=generator)
    return int(index[(probabilities / race).argmax()])


def repetition_aware(
    logits: Tensor, sampling: Sampling, recent: Sequence[int], generator: torch.Generator, *, exempt: int
) -> int:
    """`draw`, but a token that is among the recent ones (and not `exempt`) is replaced by a freer second draw.

    Both draws always happen, so that the stream of random numbers does not depend on the outcome.
    """
    first = draw(logits, sampling, generator)
    if sampling.temperature == 0:
        return first
    second = draw(logits, replace(sampling, temperature=1.0, top_p=0.9), generator)
    return second if first != exempt and first in recent else first
