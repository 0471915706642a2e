"""Training the residual quantizer: straight through, with a commitment, and no code left without work.

Sources: VQ-VAE (van den Oord et al. 2017), factorised codebooks on the sphere (DAC, Kumar et al. 2023), restarts of
dead codes (Jukebox, Dhariwal et al. 2020). B batch, L latent_dim, m frames, d codebook_dim.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codec import VectorQuantizer

__all__ = ["Quantized", "Usage", "quantize"]

_MEMORY = 0.99  # of the usage's moving average, a step
_DEAD = 0.03  # a code used less than this share of fair use is moved to where latents are
_EVERY = 10  # steps between restarts


@dataclass(frozen=True)
class Quantized:
    latents: Tensor  # [B, L, m], through which gradients pass
    codes: list[Tensor]  # of each book, [B, m]
    inputs: list[Tensor]  # of each book, detached [B * m, d]
    commitment: Tensor  # latents' distance from their codes
    codebook: Tensor  # codes' distance from their latents


def quantize(books: Iterable[VectorQuantizer], latents: Tensor, opened: bool = False) -> Quantized:
    """What `Quantizer.quantize` and `dequantize` do, differentiably. `opened`: project, but do not quantize."""
    rest, total = latents, torch.zeros_like(latents)
    codes, inputs = [], []
    commitment = codebook = latents.new_zeros(())
    for book in books:
        low = book.project_in(rest)  # [B, d, m]
        codes.append(book.encode(rest))
        inputs.append(low.detach().transpose(1, 2).flatten(0, 1))
        near = book.codebook(codes[-1]).transpose(1, 2)
        if not opened:
            commitment = commitment + F.mse_loss(low, near.detach())
            codebook = codebook + F.mse_loss(near, low.detach())
        step = book.project_out(low if opened else low + (near - low).detach())
        rest, total = rest - step, total + step
    return Quantized(total, codes, inputs, commitment, codebook)


class Usage(nn.Module):
    """How often each code is used; a module so that a checkpoint keeps it."""

    def __init__(self, sizes: Iterable[int], *, begun: bool = False) -> None:
        """begun: every code has its place already."""
        super().__init__()
        counts = (torch.full((size,), float(begun)) for size in sizes)
        self.counts = nn.ParameterList(nn.Parameter(count, requires_grad=False) for count in counts)
        self.steps = nn.Parameter(torch.tensor(int(begun)), requires_grad=False)

    @torch.no_grad()
    def update(self, quantized: Quantized, books: Iterable[VectorQuantizer], *, restart: bool = True) -> None:
        """Count a batch's codes; now and then give dead codes a latent of this batch to stand for. At first, all."""
        first = self.steps.item() == 0
        self.steps.add_(1)
        for book, count, codes, inputs in zip(books, self.counts, quantized.codes, quantized.inputs, strict=True):
            if first:
                dead = torch.ones_like(count, dtype=torch.bool)
            else:
                share = torch.bincount(codes.flatten(), minlength=len(count)) * len(count) / codes.numel()
                count.lerp_(share.to(count), 1 - _MEMORY)
                if not restart or self.steps.item() % _EVERY:
                    continue
                dead = count < _DEAD
            places = dead.nonzero().flatten()
            book.codebook.weight[places] = inputs[torch.randint(len(inputs), places.shape, device=inputs.device)]
            count[places] = 1.0

    def report(self) -> dict[str, float]:
        """Perplexity of the codes over a codebook's size, in the mean of the books: 1 is perfectly even use."""
        if self.steps.item() == 0:
            return {"usage": 0.0}
        shares = []
        for count in self.counts:
            p = count / count.sum()
            shares.append((-(p * p.clamp(min=1e-9).log()).sum()).exp().item() / len(count))
        return {"usage": sum(shares) / len(shares)}
