"""VITS's decoder as a PyTorch rewrite: the flow and HiFi-GAN over arrays that are channels last.

Arrays are [1, rows, channels], rows being time (see `codec.layers` and `codec.convolutions` for why). Lengths are
rounded up, so that a few forms of each layer serve all texts; what lies beyond the end is nought before every
convolution, as the engine's own padding is. In bfloat16 the convolutions of HiFi-GAN's residual blocks, nearly all of
its arithmetic, multiply in bfloat16; every sum is float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from ... import kernels
from ...codec.convolutions import convolver, has_bf16
from ...codec.layers import plainly
from ...export.component import Built, Component
from ...export.proof import SNR_DB, compare_arrays, compare_signals
from . import stored
from .stored import FILE
from .traceable import MODELING, exportable

__all__ = ["WINDOW", "DecodeCall", "Decoder", "component", "load"]

Examples = Callable[[], Iterator[tuple[tuple[Any, ...], np.ndarray]]]

ROUNDED = 32  # frames: lengths are multiples
WINDOW = 512  # frames at once: what is longer is spoken by windows that overlap
_DEFAULT_SLOPE = 0.01  # of the last leaky rectifier


class _Same:
    """A convolution whose answer is as long as its input: zeros beyond both ends."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str, dilation: int, dtype: torch.dtype) -> None:
        kernel, bias = tensors[f"{name}.kernel"], tensors.get(f"{name}.bias")
        self.dtype, self._pad = dtype, (kernel.shape[1] - 1) * dilation // 2
        self._convolve = convolver(kernel, bias, dilation=dilation, dtype=dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """[1, rows, in] -> float32 [1, rows, out]."""
        x = x.to(self.dtype)
        return self._convolve(functional.pad(x, (0, 0, self._pad, self._pad)) if self._pad else x).float()


class _Up:
    """A transposed convolution with its padding cut off: `rate` rows for each."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str, rate: int, pad: int) -> None:
        kernel = tensors[f"{name}.kernel"]
        self.rate, self._pad = rate, pad
        self._before, self._behind = kernel.shape[1] - 1, -(-pad // rate)
        self._convolve = convolver(kernel, tensors.get(f"{name}.bias"))

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.shape[1]
        y = self._convolve(functional.pad(x, (0, 0, self._before, self._behind)))
        y = y.reshape(1, (rows + self._behind) * self.rate, -1)
        return y[:, self._pad : self._pad + rows * self.rate]


class Decoder:
    """Latents float32 [1, C, L] -> audio float32 [1, L * hop]. Safe to call from several threads."""

    def __init__(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, bf16: bool = False) -> None:
        low, exact = torch.bfloat16 if bf16 else torch.float32, torch.float32
        self._flows = []
        for i, dilations in enumerate(config["flows"]):
            name = f"flows.{i}"
            layers = [
                (_Same(tensors, f"{name}.in.{j}", d, exact), _Same(tensors, f"{name}.out.{j}", 1, exact))
                for j, d in enumerate(dilations)
            ]
            ends = (_Same(tensors, f"{name}.pre", 1, exact), _Same(tensors, f"{name}.post", 1, exact))
            self._flows.append((*ends, layers, tensors.get(f"{name}.condition")))
        self._first, self._condition = _Same(tensors, "first", 1, exact), tensors.get("condition")
        self._slope, self._stages, self.hop = config["slope"], [], 1
        for i, (rate, pad) in enumerate(config["ups"]):
            blocks = [
                [
                    (
                        _Same(tensors, f"blocks.{i}.{j}.{k}.first", d, low),
                        _Same(tensors, f"blocks.{i}.{j}.{k}.second", 1, low),
                    )
                    for k, d in enumerate(dilations)
                ]
                for j, dilations in enumerate(config["blocks"])
            ]
            self._stages.append((_Up(tensors, f"ups.{i}", rate, pad), blocks))
            self.hop *= rate
        self._last = _Same(tensors, "last", 1, exact)
        self._context = int(config["context"])

    def __call__(self, latents: Tensor, speaker: Tensor | None = None) -> Tensor:
        length = latents.shape[2]
        x = functional.pad(latents.transpose(1, 2), (0, 0, 0, -length % ROUNDED))  # [1, rows, C]
        x = self._flow(x, length, speaker)
        if length <= WINDOW:
            return self._voice(x, length, speaker)[:, : length * self.hop]
        context, parts = self._context, []
        for start in range(0, length, WINDOW - 2 * context):  # each window gives what its context suffices for
            end = min(start + WINDOW - 2 * context, length)
            first = max(0, start - context)
            window = x[:, first : first + WINDOW]
            window = functional.pad(window, (0, 0, 0, WINDOW - window.shape[1]))
            audio = self._voice(window, min(length - first, WINDOW), speaker)
            parts.append(audio[:, (start - first) * self.hop : (end - first) * self.hop])
        return torch.cat(parts, dim=1)

    def _flow(self, x: Tensor, length: int, speaker: Tensor | None) -> Tensor:
        for pre, post, layers, condition in self._flows:
            first, second = x.flip(2).chunk(2, dim=2)
            h = _until(pre(first), length)
            total: Tensor | None = None
            conditions = (
                None if condition is None or speaker is None else (condition @ speaker[0])[:, 0].chunk(len(layers))
            )
            for i, (inner, onward) in enumerate(layers):
                both = inner(h)
                if conditions is not None:
                    both = both + conditions[i]
                up, gate = both.chunk(2, dim=2)
                answer = onward(up.tanh() * gate.sigmoid())
                if i + 1 < len(layers):
                    h = _until(h + answer[..., : h.shape[2]], length)
                    answer = answer[..., h.shape[2] :]
                total = answer if total is None else total + answer
            assert total is not None
            x = _until(torch.cat((first, second - post(_until(total, length))), dim=2), length)
        return x

    def _voice(self, x: Tensor, end: int, speaker: Tensor | None) -> Tensor:
        """Rows [1, rows, C], of which those from `end` on are none -> audio [1, rows * hop]."""
        x = self._first(x)
        if self._condition is not None and speaker is not None:
            x = x + (self._condition @ speaker[0])[:, 0]
        for up, blocks in self._stages:
            x = up(_until(functional.leaky_relu(x, self._slope), end))
            end *= up.rate
            total: Tensor | None = None
            for block in blocks:
                y = x
                for first, second in block:
                    h = first(_until(functional.leaky_relu(y, self._slope), end))
                    y = second(_until(functional.leaky_relu_(h, self._slope), end)).add_(y)
                total = y if total is None else total.add_(y)
            assert total is not None
            x = total.div_(len(blocks))
        return self._last(_until(functional.leaky_relu_(x, _DEFAULT_SLOPE), end)).tanh()[..., 0]


def _until(x: Tensor, end: int) -> Tensor:
    """x, whose rows from `end` on are nought now."""
    if end < x.shape[1]:
        x[:, end:] = 0
    return x


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and the configuration."""
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return tensors, json.loads(file.metadata()["config"])


class DecodeCall:
    """Latents float32 [1, C, L] and perhaps a speaker [1, E + 1, 1] -> audio float32 [1, L * hop]."""

    def __init__(self, path: Path, *, bf16: bool = False) -> None:
        """Raises SessionError."""
        with plainly("decoder"):
            self._decoder = Decoder(*load(path), bf16=bf16)

    def __call__(self, latents: np.ndarray, speaker: np.ndarray | None = None) -> np.ndarray:
        with plainly("decoder"):
            given = None if speaker is None else torch.from_numpy(speaker)
            return np.asarray(self._decoder(torch.from_numpy(latents), given).numpy())


def component(
    model: Callable[[], Any], identity: Callable[[], str], config: Mapping[str, Any], examples: Examples
) -> Component:
    """The rewrite, proven in float32 like the ONNX export, and in bfloat16 where it can run.

    model: makes `traceable.exportable`'s copy. examples: as for `traced`.
    """

    def prove(built: Built) -> dict[str, Any]:
        exact = DecodeCall(built.path / FILE)
        report = compare_arrays([(expected, exact(*given)) for given, expected in examples()], 1e-4)
        if has_bf16():
            low = DecodeCall(built.path / FILE, bf16=True)
            report["bf16"] = compare_signals([(expected, low(*given)) for given, expected in examples()], SNR_DB)
        return report

    return Component(
        "decoder-rewrite",
        identity,
        config,
        ("fp32",),
        stored.build(model),
        prove,
        builders=(exportable, MODELING),
        judges=(examples, MODELING),
        kernels=kernels.kind,
    )
