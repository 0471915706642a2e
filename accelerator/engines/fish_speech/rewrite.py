"""The codec's PyTorch rewrite: its two directions over channels-last arrays, window by window, from a file of weights.

It computes what the engine's codec computes, only sooner: see `codec.layers` and `codec.convolutions` for why. `stored`
says what is in the file. In bfloat16 mode the decoder's residual units multiply in bfloat16: with AMX all that they do
behind the first stage, four fifths of the decoder's arithmetic; where compiled filters are faster, only what mixes the
channels, in every stage. What comes before is amplified by all the stages behind, so it is not rounded like that: its
products are those of pairs of int8 with AMX (`convolutions.Split`, about 80 dB each), with compiled kernels those of
int16 (`convolutions.Dense`, 70 dB) or float32. The rest, and every sum, is float32.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from ... import kernels
from ...codec import convolutions
from ...codec.convolutions import Kernel
from ...codec.layers import (
    PIECE,
    ConvNeXt,
    Convolution,
    State,
    Transformer,
    Unit,
    Weights,
    in_pieces,
    in_turn,
    plainly,
    snaked,
    upsampled,
)
from ...errors import SessionError
from ...export.component import Built, Component
from ...export.proof import SNR_DB, compare_arrays, compare_codes, compare_signals
from ...runtime.options import Dtype
from . import stored as files
from .stored import FILE

__all__ = ["DecodeCall", "Decoder", "EncodeCall", "Encoder", "Stream", "component", "load"]

FRAMES = 16  # of a window that the later convolutions work on
FIRST = 4  # of a stream's first window, which asks for another order of some weights
LONG = 64  # of a window for the layers whose weights are large: they are read once for each
_LARGE = 65_536  # weights of a product that are worth reading again for each order, rather than keeping
_PRODUCT = re.compile(r"\.(kernel|qkv|out|gate_up|down|(wide|narrow|input|output)\.weight)$")


class Decoder:
    """Codes int64 [B, C, frames] -> audio float32 [B, frames * hop]. Safe to call from several threads."""

    def __init__(self, weights: Weights, config: Mapping[str, Any], *, dtype: Dtype = "fp32") -> None:
        """dtype: of most products, in `convolutions`' forms for the rest; see `RunOptions`."""
        low, less = torch.bfloat16 if dtype == "bf16" else torch.float32, dtype != "fp32"
        self._frames = LONG if less else LONG // 2  # of a window; the longer one would ask for a second order
        quick, split = replace(weights, form="winograd"), replace(weights, form="split" if less else "winograd")
        amx, int16 = less and convolutions.splits(), replace(weights, form="int16" if less else "winograd")
        self._sizes = torch.tensor(config["sizes"])[:, None]
        self._offsets = self._sizes.cumsum(0) - self._sizes
        self._books = weights("books"), weights("projection.weight"), weights("projection.bias")
        self._post = Transformer(split.within("post"), config["post"]) if config["post"] else None
        self._up = []
        for i, rate in enumerate(config["up"]):
            block = ConvNeXt(split.within(f"up.{i}"), config["eps"])
            self._up.append((_convolution(split, f"up.{i}.conv"), rate, block))
        self._first = _convolution(split, "first")
        self._stages = []
        for i, rate in enumerate(config["rates"]):
            exact = (
                i == 0 and dtype == "bf16" and convolutions.of_filters(low) == low
            )  # where filters are bfloat16, too
            how, products_ = (split, torch.float32) if exact else (int16 if dtype == "int16" else quick, low)
            units = [Unit(how.within(f"stages.{i}.units.{j}"), d, products_) for j, d in enumerate(config["dilations"])]
            conv = _convolution(split if amx and i < 2 else int16, f"stages.{i}")  # later ones are too small to split
            self._stages.append((weights(f"stages.{i}.alpha"), conv, rate, units))
        self._last = weights("last.alpha"), _convolution(quick, "last")

    def push(self, codes: Tensor, state: State) -> Tensor:
        """The audio of these frames, behind those that `state` has seen."""
        return torch.cat([self._window(part, state) for part in codes.split(self._frames, dim=2)], dim=1)

    def _window(self, codes: Tensor, state: State) -> Tensor:
        z = in_turn(functools.partial(self._begin, state))(codes)
        piece = max(1, FRAMES * z.shape[1] // codes.shape[2])
        return in_pieces(z, piece, in_turn(functools.partial(self._finish, self._stages[1:], state)))[..., 0]

    def _begin(self, state: State, codes: Tensor) -> Tensor:
        """What is worth doing for a whole window: up to the first stage's answer."""
        table, weight, bias = self._books
        entries = torch.minimum(codes, self._sizes - 1) + self._offsets  # as the engine does: too high is the last one
        z = functional.embedding(entries.transpose(1, 2), table).flatten(2)  # [B, frames, C * d]
        z = functional.linear(z, weight, bias)
        z = z if self._post is None else self._post(z, state)
        for conv, rate, block in self._up:
            z = upsampled(conv, z, rate, state)
            z = block(z, state)
        return self._stage(self._stages[0], state, self._first(z, state))

    def _stage(self, stage: Any, state: State, x: Tensor) -> Tensor:
        """The answer is memory that the next call with as many channels uses again."""
        alpha, conv, rate, units = stage
        x = snaked(conv, x, alpha, state, f"stage {conv.out}").reshape(x.shape[0], rate * x.shape[1], -1)
        for unit in units:
            x = unit(x, state)
        return x

    def _finish(self, stages: Sequence[Any], state: State, x: Tensor) -> Tensor:
        """The audio of a piece, which goes through all stages before the next one does."""
        if not stages:
            alpha, conv = self._last
            return torch.tanh(snaked(conv, x, alpha, state))

        def stage(piece: Tensor) -> Tensor:
            return self._finish(stages[1:], state, self._stage(stages[0], state, piece))

        return in_pieces(x, PIECE // (x.shape[2] // 2 * stages[0][2]), stage)  # channels halve, rows multiply


class Encoder:
    """Audio float32 [B, frames * hop] -> codes int64 [B, C, frames]. Safe to call from several threads."""

    def __init__(self, weights: Weights, config: Mapping[str, Any]) -> None:
        quick = replace(weights, form="winograd")  # copies of what is small, and less work
        self.hop = int(config["hop"])
        self._first = _convolution(weights, "first")
        self._stages = []
        for i, rate in enumerate(config["rates"]):
            name = f"stages.{i}"
            units = [Unit(quick.within(f"{name}.units.{j}"), d) for j, d in enumerate(config["dilations"])]
            conv = _convolution(weights, name, stride=rate)
            last = config["transformers"][i]
            transformer = Transformer(weights.within(f"{name}.transformer"), last) if last else None
            self._stages.append((units, weights(f"{name}.alpha"), conv, transformer))
        self._last = weights("last.alpha"), _convolution(weights, "last")
        self._down = []
        for i, rate in enumerate(config["down"]):
            block = ConvNeXt(weights.within(f"down.{i}"), config["eps"])
            self._down.append((_convolution(weights, f"down.{i}.conv", stride=rate), block))
        self._pre = Transformer(weights.within("pre"), config["pre"]) if config["pre"] else None
        names = ("inward.weight", "inward.bias", "outward.weight", "outward.bias", "codebook")
        self._books = [[weights(f"books.{i}.{n}") for n in names] for i in range(config["books"])]

    def __call__(self, audio: Tensor) -> Tensor:
        state = State()
        windows = audio.split(LONG * self.hop, dim=1)
        return torch.cat([self._quantize(self._window(w[..., None], state)) for w in windows], dim=2)

    def _window(self, x: Tensor, state: State) -> Tensor:
        piece = max(1, PIECE // (len(self._stages[0][1]) * self.hop)) * self.hop
        start = 0
        for i, (_, _, _, transformer) in enumerate(self._stages):  # convolutions up to each transformer go by pieces
            if transformer is not None or i == len(self._stages) - 1:
                part = self._stages[start : i + 1]
                x = in_pieces(x, piece, in_turn(functools.partial(self._convolve, part, start == 0, state)))
                x = x if transformer is None else in_turn(functools.partial(transformer, state=state))(x)
                for stage in part:
                    piece = max(1, piece // stage[2].stride)
                start = i + 1
        return in_turn(functools.partial(self._finish, state))(x)

    def _finish(self, state: State, x: Tensor) -> Tensor:
        """A window's latents, behind all stages."""
        alpha, conv = self._last
        x = snaked(conv, x, alpha, state)
        for conv, block in self._down:
            x = conv(x, state)
            x = block(x, state)
        return x if self._pre is None else self._pre(x, state)

    def _convolve(self, stages: list[Any], first: bool, state: State, x: Tensor) -> Tensor:
        x = self._first(x, state) if first else x
        for units, alpha, conv, _ in stages:
            for unit in units:
                x = unit(x, state)
            x = snaked(conv, x, alpha, state)
        return x

    def _quantize(self, residual: Tensor) -> Tensor:
        """Latents [B, frames, D] -> codes [B, C, frames]: the nearest row of each codebook, by direction."""
        codes = []
        for inward, inward_bias, outward, outward_bias, codebook in self._books:
            inner = functional.linear(residual, inward, inward_bias)
            unit, rows = functional.normalize(inner, dim=-1), functional.normalize(codebook)
            distance = unit.square().sum(-1, keepdim=True) - 2 * unit @ rows.T + rows.square().sum(-1)
            found = distance.argmin(dim=-1)
            codes.append(found)
            quantized = inner + (functional.embedding(found, codebook) - inner)  # rounded as the engine rounds it
            residual = residual - functional.linear(quantized, outward, outward_bias)
        return torch.stack(codes, dim=1)


def _convolution(weights: Weights, name: str, *, stride: int = 1) -> Convolution:
    return Convolution(weights.kernel(f"{name}.kernel"), weights(f"{name}.bias"), stride=stride, form=weights.form)


# The component and the calls


def component(
    part: Literal["encoder", "decoder"],
    codec: Callable[[], Any],
    identity: Callable[[], str],
    config: Mapping[str, Any],
    examples: Callable[[], Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]],
) -> Component:
    """The rewrite of one direction, proven in float32 as the ONNX export is, and what less costs where it can be told.

    examples: yields (inputs, PyTorch's answer), as for `traced`.
    """
    decoder = part == "decoder"

    def answers(call: Callable[[Tensor], Tensor]) -> list[tuple[np.ndarray, np.ndarray]]:
        pairs = []
        for (values,), expected in examples():
            with plainly(part):
                given = torch.from_numpy(np.ascontiguousarray(values))
                pairs.append((expected, call(given if decoder else given.flatten(1)).numpy()))
        return pairs

    def prove(built: Built) -> dict[str, Any]:
        if not decoder:
            return compare_codes(answers(Encoder(*load(built.path / FILE))), 0.99)
        stored = load(built.path / FILE, stored=True)
        exact = Decoder(*stored)
        report = compare_arrays(answers(lambda codes: exact.push(codes, {})), 1e-4)
        if low := convolutions.reduced():
            less = Decoder(*stored, dtype=low)
            report[low] = compare_signals(answers(lambda codes: less.push(codes, {})), SNR_DB)
        return report

    build = files.build(part, codec)
    judges, kind = (examples,), kernels.kind
    return Component(f"{part}-rewrite", identity, config, ("fp32",), build, prove, judges=judges, kernels=kind)


class Stream:
    """One utterance, decoded as its frames come; the audio joins to what the whole would be."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._state = decoder, State()

    def push(self, codes: np.ndarray) -> np.ndarray:
        """The next frames' codes, int [C, frames] -> their audio, float32 [frames * hop]. Raises SessionError."""
        with plainly("decoder"):
            frames = torch.from_numpy(np.ascontiguousarray(codes, np.int64))[None]
            return np.asarray(self._decoder.push(frames, self._state)[0].numpy())


class DecodeCall:
    """Codes int [C, frames] -> audio float32 [frames * hop].

    The weights are ordered by a thread, a second's work, while the language model loads. The first call waits for it.
    """

    def __init__(self, path: Path, *, dtype: Dtype = "fp32") -> None:
        """Raises SessionError."""
        with plainly("decoder"):
            weights, config = load(path, stored=True)
            self._decoder = Decoder(weights, config, dtype=dtype)
        codes = np.zeros((len(config["sizes"]), FRAMES), np.int64)
        self._ordering = threading.Thread(target=self._order, args=(codes,), name="accelerator-decoder-weights")
        self._ordering.start()

    def _order(self, codes: np.ndarray) -> None:
        with contextlib.suppress(SessionError):  # the first call fails in the same way, where it is heard
            for frames in (FRAMES, FIRST):
                Stream(self._decoder).push(codes[:, :frames])

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        return self.stream().push(codes)

    def stream(self) -> Stream:
        """For frames that are still to come."""
        self._ordering.join()
        return Stream(self._decoder)


class EncodeCall:
    """Audio float32 [n] -> codes int64 [C, ceil(n / hop)]; the end is padded with zeros to whole frames.

    A voice is encoded once, so between calls nothing stays in memory.
    """

    def __init__(self, path: Path) -> None:
        """Raises SessionError."""
        self._path = path
        with plainly("encoder"):
            Encoder(*load(path))

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        with plainly("encoder"):
            encoder = Encoder(*load(self._path))
            padded = np.zeros((1, -(-len(audio) // encoder.hop) * encoder.hop), np.float32)
            padded[0, : len(audio)] = audio
            return np.asarray(encoder(torch.from_numpy(padded))[0].numpy())


def load(path: Path, *, stored: bool = False) -> tuple[Weights, dict[str, Any]]:
    """Tensors and the configuration.

    stored: what is large is not read before a layer orders it, and not kept then; otherwise all are mapped from the
    file for as long as they are used.
    """
    with safe_open(str(path), framework="pt") as file:
        config = json.loads(file.metadata()["config"])
        if not stored:
            return Weights({name: file.get_tensor(name) for name in file.keys()}, form="plain"), config  # noqa: SIM118
        tensors, filters = {}, {}
        for name in file.keys():  # noqa: SIM118
            shape = tuple(file.get_slice(name).get_shape())
            if _PRODUCT.search(name) and math.prod(shape) >= _LARGE:
                filters[name] = Kernel(shape, functools.partial(_read, path, name))
            else:
                tensors[name] = file.get_tensor(name).clone()  # a view would keep the whole file mapped
    return Weights(tensors, filters), config


def _read(path: Path, name: str) -> Tensor:
    with safe_open(str(path), framework="pt") as file:
        return cast(Tensor, file.get_tensor(name))
