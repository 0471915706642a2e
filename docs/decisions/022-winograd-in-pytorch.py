"""A codec of random weights without compiled kernels, its filters packed and by Winograd in turns.

    PYTHONPATH=. GOMP_SPINCOUNT=0 python docs/decisions/022-winograd-in-pytorch.py fish 1 9     size, threads, rounds

Times are the processor's: they hold on a machine that others use, too, where threads sleep rather than spin.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

os.environ["ACCELERATOR_KERNELS"] = "none"

import torch
from torch import Tensor

from accelerator.codec import convolutions, layers
from accelerator.codec.layers import Weights
from accelerator.engines.fish_speech.rewrite import Decoder, Encoder

SIZES = {"fish": (1536, 1024, 64, 16), "small": (512, 256, 32, 64)}  # decoder's, latents', encoder's channels, frames
RATES, HOP = [8, 8, 4, 2], 2048
CODEBOOKS = [4096] + [1024] * 9


class Random:
    """A codec's tensors by name, as `engines/fish_speech/stored.py` writes them."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, name: str, *shape: int, scale: float = 1.0) -> None:
        self.tensors[name] = scale * torch.randn(*shape, generator=self._generator)

    def conv(self, name: str, out: int, taps: int, into: int, scale: float = 1.0) -> None:
        self(f"{name}.kernel", out, taps, into, scale=scale * (taps * into) ** -0.5)
        self(f"{name}.bias", out, scale=0.1)

    def linear(self, name: str, out: int, into: int, scale: float = 1.0) -> None:
        self(f"{name}.weight", out, into, scale=scale * into**-0.5)
        self(f"{name}.bias", out, scale=0.1)

    def convnext(self, name: str, channels: int) -> None:
        self.conv(f"{name}.depth", channels, 7, 1)
        self.tensors |= {f"{name}.norm.weight": torch.ones(channels), f"{name}.norm.bias": torch.zeros(channels)}
        self.linear(f"{name}.wide", 4 * channels, channels)
        self.linear(f"{name}.narrow", channels, 4 * channels, 0.1)

    def units(self, name: str, channels: int) -> None:
        for j in range(3):
            self.tensors[f"{name}.{j}.alpha"] = torch.ones(channels)
            self.conv(f"{name}.{j}.first", channels, 7, channels)
            self.conv(f"{name}.{j}.second", channels, 1, channels, 0.3)


def decoder(channels: int, latents: int) -> tuple[dict[str, Tensor], dict[str, object]]:
    made = Random()
    made("books", sum(CODEBOOKS), 8)
    made("projection.weight", latents, 8 * len(CODEBOOKS), scale=0.1)
    made("projection.bias", latents, scale=0.1)
    for i in range(2):
        made.conv(f"up.{i}.conv", 2 * latents, 1, latents)
        made.convnext(f"up.{i}", latents)
    made.conv("first", channels, 7, latents)
    for i, rate in enumerate(RATES):
        made.tensors[f"stages.{i}.alpha"] = torch.ones(channels)
        made.conv(f"stages.{i}", rate * channels // 2, 2, channels)
        channels //= 2
        made.units(f"stages.{i}.units", channels)
    made.tensors["last.alpha"] = torch.ones(channels)
    made.conv("last", 1, 7, channels)
    sizes = {"sizes": CODEBOOKS, "rates": RATES, "up": [2, 2], "post": None}
    return made.tensors, {**sizes, "eps": 1e-6, "dilations": [1, 3, 9]}


def encoder(channels: int) -> tuple[dict[str, Tensor], dict[str, object]]:
    made, rates = Random(), RATES[::-1]
    made.conv("first", channels, 7, 1)
    for i, rate in enumerate(rates):
        made.units(f"stages.{i}.units", channels)
        made.tensors[f"stages.{i}.alpha"] = torch.ones(channels)
        made.conv(f"stages.{i}", 2 * channels, 2 * rate, channels)
        channels *= 2
    made.tensors["last.alpha"] = torch.ones(channels)
    made.conv("last", channels, 3, channels)
    for i in range(2):
        made.conv(f"down.{i}.conv", channels, 2, channels)
        made.convnext(f"down.{i}", channels)
    for i in range(10):
        made.linear(f"books.{i}.inward", 8, channels)
        made.linear(f"books.{i}.outward", channels, 8)
        made(f"books.{i}.codebook", 1024, 8)
    sizes = {"hop": HOP, "rates": rates, "down": [2, 2], "books": 10, "transformers": [None] * 4, "pre": None}
    return made.tensors, {**sizes, "eps": 1e-6, "dilations": [1, 3, 9]}


def of_form(form: str, kind: type, tensors: dict[str, Tensor], config: dict[str, object]) -> Decoder | Encoder:
    """The rewrite, with `form` wherever it asks for "winograd"."""
    product = convolutions.product

    def asked(*given: object, **how: object) -> convolutions.Product:
        return product(*given, **{**how, "form": form if how.get("form") == "winograd" else how.get("form", "packed")})

    layers.product = asked
    try:
        return kind(Weights(tensors), config)
    finally:
        layers.product = product


def answer(model: Decoder | Encoder, codes: Tensor, audio: Tensor) -> Tensor:
    return model.push(codes, {}) if isinstance(model, Decoder) else model(audio)


def main(size: str, threads: int, rounds: int) -> None:
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    channels, latents, low, frames = SIZES[size]
    codes, audio = torch.randint(0, 1024, (1, len(CODEBOOKS), frames)), 0.1 * torch.randn(1, HOP * frames)
    forms = ("packed", "winograd", "plain")
    for kind, made in ((Decoder, decoder(channels, latents)), (Encoder, encoder(low))):
        models = {form: of_form(form, kind, *made) for form in forms}
        times: dict[str, list[float]] = {form: [] for form in forms}
        for i in range(rounds + 1):
            for form in forms if i % 2 else forms[::-1]:
                start = time.process_time()
                answer(models[form], codes, audio)
                if i:  # the first orders the weights
                    times[form].append(time.process_time() - start)
        for form in forms:
            ratios = [a / b for a, b in zip(times[form], times["packed"], strict=True)]
            low_, median, high = statistics.quantiles(ratios, n=4)
            print(
                f"{size} {kind.__name__.lower()}, {threads} threads, {form:8}: {statistics.median(times[form]):.3f} s, "
                f"least {min(times[form]):.3f} s; of packed's {median:.2f} ({low_:.2f} to {high:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
