"""VITS's decoder as a PyTorch rewrite, by oneDNN, over arrays that are channels last: see `weights`.

Arrays are [1, rows, channels], rows being time (see `codec.layers` and `codec.convolutions` for why). Lengths are
rounded up, so that a few forms of each layer serve all texts; what lies beyond the end is nought before every
convolution, as the engine's own padding is. In bfloat16 the convolutions of HiFi-GAN's residual blocks, nearly all of
its arithmetic, multiply in bfloat16; every sum is float32. In float32 HiFi-GAN goes by `hifi_gan` where there are
chains, by AMX exact to 16 bits; the flow does not, since it amplifies errors.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...codec.convolutions import convolver, has_bf16
from ...codec.layers import plainly
from ...errors import SessionError
from ...export.proof import SNR_DB, compare_arrays, compare_signals
from ...runtime.options import Dtype
from ..hifi_gan import DEFAULT_SLOPE, HifiGan
from ..weight_file import Weights, load
from .weights import WINDOW, Examples, blocks_of, context_of, windows

__all__ = ["DecodeCall", "Decoder", "proof"]

ROUNDED = 32  # frames: lengths are multiples


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

    def __init__(self, weights: Weights, *, dtype: Dtype = "fp32") -> None:
        """Raises SessionError."""
        arrays, config = weights
        tensors, exact = {name: torch.from_numpy(each) for name, each in arrays.items()}, torch.float32
        self._flows = []
        for i, dilations in enumerate(config["flows"]):
            name = f"flows.{i}"
            layers = [
                (_Same(tensors, f"{name}.in.{j}", d, exact), _Same(tensors, f"{name}.out.{j}", 1, exact))
                for j, d in enumerate(dilations)
            ]
            ends = (_Same(tensors, f"{name}.pre", 1, exact), _Same(tensors, f"{name}.post", 1, exact))
            self._flows.append((*ends, layers, tensors.get(f"{name}.condition")))
        self._condition = tensors.get("condition")
        self.hop = math.prod(rate for rate, _ in config["ups"])
        self._context = context_of(tensors, config)
        by_tiles = _exact_voice(weights) if dtype == "fp32" else None
        self._voice = by_tiles or _Voice(tensors, config, torch.bfloat16 if dtype == "bf16" else exact)

    def __call__(self, latents: Tensor, speaker: Tensor | None = None) -> Tensor:
        length = latents.shape[2]
        x = functional.pad(latents.transpose(1, 2), (0, 0, 0, -length % ROUNDED))  # [1, rows, C]
        x = self._flow(x, length, speaker)
        shift = None if self._condition is None or speaker is None else (self._condition @ speaker[0])[:, 0]
        parts, size = [], WINDOW if length > WINDOW else x.shape[1]
        for first, stop, start, end in windows(length, self._context):
            window = x[:, first : first + size]
            window = functional.pad(window, (0, 0, 0, size - window.shape[1]))
            audio = self._spoken(window, stop - first, shift)
            parts.append(audio[:, (start - first) * self.hop : (end - first) * self.hop])
        return torch.cat(parts, dim=1)

    def _spoken(self, x: Tensor, end: int, shift: Tensor | None) -> Tensor:
        """end: frames that there are."""
        if isinstance(self._voice, _Voice):
            return self._voice(x, end, shift)
        given = None if shift is None else shift.numpy()
        return torch.from_numpy(self._voice(x[0, :end].numpy(), given, torch.get_num_threads()))[None]

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


class _Voice:
    """HiFi-GAN by oneDNN."""

    def __init__(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], low: torch.dtype) -> None:
        """low: of what residual blocks multiply."""
        self._first, self._last = (_Same(tensors, name, 1, torch.float32) for name in ("first", "last"))
        self._slope, self._stages = config["slope"], []
        for i, ((rate, pad), own) in enumerate(zip(config["ups"], blocks_of(tensors, config), strict=True)):
            blocks = [[[_Same(tensors, *each, low) for each in step] for step in steps] for steps in own]
            self._stages.append((_Up(tensors, f"ups.{i}", rate, pad), blocks))

    def __call__(self, x: Tensor, end: int, shift: Tensor | None) -> Tensor:
        x = self._first(x)
        if shift is not None:
            x = x + shift
        for up, blocks in self._stages:
            x = up(_until(functional.leaky_relu(x, self._slope), end))
            end *= up.rate
            total: Tensor | None = None
            for block in blocks:
                y = x
                for step in block:
                    h = y
                    for convolution in step:
                        rectified = functional.leaky_relu(h, self._slope, inplace=h is not y)  # y is still to be added
                        h = convolution(_until(rectified, end))
                    y = h.add_(y)
                total = y if total is None else total.add_(y)
            assert total is not None
            x = total.div_(len(blocks))
        return self._last(_until(functional.leaky_relu_(x, DEFAULT_SLOPE), end)).tanh()[..., 0]


def _exact_voice(weights: Weights) -> HifiGan | None:
    tensors, config = weights
    if HifiGan.takes(tensors):
        with contextlib.suppress(SessionError):  # which was logged
            return HifiGan(tensors, config, blocks_of(tensors, config), exact=True)
    return None


def _until(x: Tensor, end: int) -> Tensor:
    """x, whose rows from `end` on are nought now."""
    if end < x.shape[1]:
        x[:, end:] = 0
    return x


class DecodeCall:
    """Latents float32 [1, C, L] and perhaps a speaker [1, E + 1, 1] -> audio float32 [1, L * hop]."""

    def __init__(self, path: Path, *, dtype: Dtype = "fp32") -> None:
        """Raises SessionError."""
        with plainly("decoder"):
            self._decoder = Decoder(load(path), dtype=dtype)

    def __call__(self, latents: np.ndarray, speaker: np.ndarray | None = None) -> np.ndarray:
        with plainly("decoder"):
            given = None if speaker is None else torch.from_numpy(speaker)
            return np.asarray(self._decoder(torch.from_numpy(latents), given).numpy())


def proof(path: Path, examples: Examples) -> dict[str, Any]:
    """How near the rewrite is to the engine's own answers: in float32 as an ONNX export has to be; "bf16" likewise."""
    exact = DecodeCall(path)
    report = compare_arrays([(expected, exact(*given)) for given, expected in examples()], 1e-4)
    if has_bf16():
        low = DecodeCall(path, dtype="bf16")
        report["bf16"] = compare_signals([(expected, low(*given)) for given, expected in examples()], SNR_DB)
    return report
