"""VITS's decoder as a PyTorch rewrite: the flow and HiFi-GAN over arrays that are channels last.

Whoever has such a decoder hands over its weights under these names, convolutions as <name>.kernel [out, taps, in] and
<name>.bias [out]:

    flows.<i>.{pre,post,in.<j>,out.<j>}     the coupling layers, in the order in which they are undone, with WaveNet's
    first, last                             HiFi-GAN's ends
    ups.<i>                                 its transposed convolutions, made plain by `codec.polyphase`
    blocks.<i>.<j>.<k>.{first,second}       behind the i-th: the k-th step of the j-th block; a ResBlock2 has no second
    condition, flows.<i>.condition          [out, E + 1]: what is added for a speaker, if there are several

and beside them slope (of the leaky rectifiers), flows (dilations of each), ups ([rate, padding] of each), blocks
(dilations of each). Source: HiFi-GAN (Kong et al. 2020, arXiv:2010.05646).

Arrays are [1, rows, channels], rows being time (see `codec.layers` and `codec.convolutions` for why). Lengths are
rounded up, so that a few forms of each layer serve all texts; what lies beyond the end is nought before every
convolution, as the engine's own padding is. In bfloat16 the convolutions of HiFi-GAN's residual blocks, nearly all of
its arithmetic, multiply in bfloat16; every sum is float32. With AMX, HiFi-GAN goes by `hifi_gan`, and what is not in
bfloat16 is multiplied as pairs of these, 16 bits; but the flow, if float32 is asked for, since it amplifies errors.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from .. import kernels
from ..codec.convolutions import Form, convolver, has_bf16
from ..codec.layers import plainly
from ..errors import SessionError
from ..export.component import Built, Component, Progress, ProgressEvent
from ..export.proof import SNR_DB, compare_arrays, compare_signals
from ..runtime.options import Dtype, RunOptions
from .backends import rewritten
from .hifi_gan import DEFAULT_SLOPE, HifiGan, Steps
from .part import Backend, Call

__all__ = ["WINDOW", "DecodeCall", "Decoder", "Weights", "backend", "reach", "save"]

Examples = Callable[[], Iterator[tuple[tuple[Any, ...], np.ndarray]]]
Weights = tuple[Mapping[str, Tensor], Mapping[str, Any]]  # as above

NAME, FILE = "decoder-rewrite", "rewrite.safetensors"

ROUNDED = 32  # frames: lengths are multiples
WINDOW = 512  # frames at once: what is longer is spoken by windows that overlap


class _Same:
    """A convolution whose answer is as long as its input: zeros beyond both ends."""

    def __init__(
        self, tensors: Mapping[str, Tensor], name: str, dilation: int, dtype: torch.dtype, form: Form = "packed"
    ) -> None:
        kernel, bias = tensors[f"{name}.kernel"], tensors.get(f"{name}.bias")
        self.dtype, self._pad = dtype, (kernel.shape[1] - 1) * dilation // 2
        self._convolve = convolver(kernel, bias, dilation=dilation, dtype=dtype, form=form)

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

    def __init__(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, dtype: Dtype = "fp32") -> None:
        exact = torch.float32
        form: Form = "packed" if dtype == "fp32" else "pairs"  # the flow amplifies what pairs leave of an error
        self._flows = []
        for i, dilations in enumerate(config["flows"]):
            name = f"flows.{i}"
            layers = [
                (_Same(tensors, f"{name}.in.{j}", d, exact, form), _Same(tensors, f"{name}.out.{j}", 1, exact, form))
                for j, d in enumerate(dilations)
            ]
            ends = (_Same(tensors, f"{name}.pre", 1, exact, form), _Same(tensors, f"{name}.post", 1, exact, form))
            self._flows.append((*ends, layers, tensors.get(f"{name}.condition")))
        self._condition = tensors.get("condition")
        self.hop = math.prod(rate for rate, _ in config["ups"])
        self._context = _context(tensors, config)
        self._voice = _voice(tensors, config, dtype)

    def __call__(self, latents: Tensor, speaker: Tensor | None = None) -> Tensor:
        length = latents.shape[2]
        x = functional.pad(latents.transpose(1, 2), (0, 0, 0, -length % ROUNDED))  # [1, rows, C]
        x = self._flow(x, length, speaker)
        shift = None if self._condition is None or speaker is None else (self._condition @ speaker[0])[:, 0]
        if length <= WINDOW:
            return self._voice(x, length, shift)[:, : length * self.hop]
        context, parts = self._context, []
        for start in range(0, length, WINDOW - 2 * context):  # each window gives what its context suffices for
            end = min(start + WINDOW - 2 * context, length)
            first = max(0, start - context)
            window = x[:, first : first + WINDOW]
            window = functional.pad(window, (0, 0, 0, WINDOW - window.shape[1]))
            audio = self._voice(window, min(length - first, WINDOW), shift)
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


class _Voice:
    """HiFi-GAN by oneDNN: see `HifiGan`."""

    def __init__(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], low: torch.dtype) -> None:
        """low: of what residual blocks multiply."""
        self._first, self._last = (_Same(tensors, name, 1, torch.float32) for name in ("first", "last"))
        self._slope, self._stages = config["slope"], []
        for i, ((rate, pad), own) in enumerate(zip(config["ups"], _blocks(tensors, config), strict=True)):
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


def _voice(tensors: Mapping[str, Tensor], config: Mapping[str, Any], dtype: Dtype) -> HifiGan | _Voice:
    if HifiGan.takes(tensors):
        with contextlib.suppress(SessionError):  # which was logged
            return HifiGan(tensors, config, _blocks(tensors, config), exact=dtype == "fp32")
    return _Voice(tensors, config, torch.bfloat16 if dtype == "bf16" else torch.float32)


def _blocks(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> list[list[Steps]]:
    return [
        [[_step(tensors, i, j, k, d) for k, d in enumerate(dilations)] for j, dilations in enumerate(config["blocks"])]
        for i in range(len(config["ups"]))
    ]


def _step(tensors: Mapping[str, Tensor], i: int, j: int, k: int, dilation: int) -> list[tuple[str, int]]:
    """The names and dilations of a residual step's convolutions: two, or one where the block is a ResBlock2."""
    name = f"blocks.{i}.{j}.{k}"
    both = [(f"{name}.first", dilation), (f"{name}.second", 1)]
    return [each for each in both if f"{each[0]}.kernel" in tensors]


def _context(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> int:
    """Frames on either side that HiFi-GAN's answer to a frame depends on, at most."""

    def reach(name: str, dilation: int) -> int:
        return (tensors[f"{name}.kernel"].shape[1] - 1) * dilation // 2

    frames, rate = float(reach("first", 1)), 1
    for i, (own, _) in enumerate(config["ups"]):
        frames += tensors[f"ups.{i}.kernel"].shape[1] / rate
        rate *= own
        widest = max(
            sum(reach(*each) for k, d in enumerate(dilations) for each in _step(tensors, i, j, k, d))
            for j, dilations in enumerate(config["blocks"])
        )
        frames += widest / rate
    return int(frames + reach("last", 1) / rate) + 2


def reach(weights: Weights) -> int:
    """Frames on either side that the decoder's answer to a frame depends on, at most."""
    tensors, config = weights
    flow = sum(
        (tensors[f"flows.{i}.in.{j}.kernel"].shape[1] - 1) * dilation // 2
        for i, dilations in enumerate(config["flows"])
        for j, dilation in enumerate(dilations)
    )
    return flow + _context(tensors, config)


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

    def __init__(self, path: Path, *, dtype: Dtype = "fp32") -> None:
        """Raises SessionError."""
        with plainly("decoder"):
            self._decoder = Decoder(*load(path), dtype=dtype)

    def __call__(self, latents: np.ndarray, speaker: np.ndarray | None = None) -> np.ndarray:
        with plainly("decoder"):
            given = None if speaker is None else torch.from_numpy(speaker)
            return np.asarray(self._decoder(torch.from_numpy(latents), given).numpy())


def save(weights: Weights, path: Path) -> None:
    """Write the weights to one file, which `load` reads."""
    tensors, config = weights
    plain = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, str(path), metadata={"config": json.dumps(config)})


def backend(
    weights: Callable[[], Weights],
    identity: Callable[[], str],
    config: Mapping[str, Any],
    examples: Examples,
    *,
    builders: tuple[Any, ...] = (),
) -> Backend:
    """The rewrite as a backend: proven in float32 as an ONNX export is, and what bfloat16 costs where it can be told.

    identity, config, examples: as for `traced`. builders: what makes the weights, beside what its own file imports.
    """

    def build(directory: Path, precision: str, progress: Progress) -> None:
        progress(ProgressEvent(NAME, "build", 0, 1, precision))
        save(weights(), directory / FILE)

    def prove(built: Built) -> dict[str, Any]:
        exact = DecodeCall(built.path / FILE)
        report = compare_arrays([(expected, exact(*given)) for given, expected in examples()], 1e-4)
        if has_bf16():
            low = DecodeCall(built.path / FILE, dtype="bf16")
            report["bf16"] = compare_signals([(expected, low(*given)) for given, expected in examples()], SNR_DB)
        return report

    component = Component(
        NAME,
        identity,
        config,
        ("fp32",),
        build,
        prove,
        builders=(weights, *builders),
        judges=(examples, *builders),
        kernels=lambda: f"{kernels.kind()}{' amx' if kernels.multiplies_tiles() else ''}",
    )
    return rewritten(component, _load)


def _load(paths: Mapping[str, Path], options: RunOptions) -> Call:
    return DecodeCall(paths[NAME] / FILE, dtype=options.dtype)
