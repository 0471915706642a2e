"""An engine's one graph in pieces by ONNX Runtime, and its adaptive residual blocks between these by compiled kernels.

`export.graph.adaptive` says what such a block is. A norm needs its whole signal, so a block is not one chain
(`codec.chain`) but one for each convolution, which does norm, snake, product and sum for a tile of rows at a time, and
measures what the next norm needs. Tiles are measured alike, whatever threads share them.

The snake's factor is in the weights, which as bfloat16 are as exact with it as without.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..codec.chain import Chain, Link, Product
from ..codec.passing import passing
from ..export.graph.adaptive import write_blocks
from ..kernels.tiles import CHUNK
from ..runtime.onnx import Session
from ..runtime.options import RunOptions
from .weight_file import Opened, Weights, save

__all__ = ["Pieces", "write"]

_FILE = "blocks.safetensors"
_TILE = 512  # rows
_TURNED = 256  # rows that are transposed at once: what is read and written stays in the cache


def write(path: Path, directory: Path) -> None:
    """The graph at `path` as the files that `Pieces` reads. Raises ExportError for one without such blocks."""
    tensors, config = write_blocks(path, directory, lambda shape: not shape[0] % CHUNK and not shape[1] % CHUNK)
    save((tensors, config), directory / _FILE)


class Pieces:
    """Inputs by name -> all outputs, in the graph's order. Safe to call from several threads."""

    def __init__(self, directory: Path, options: RunOptions) -> None:
        """Raises SessionError."""
        self._threads, self._blocks = options.threads, _OPENED(directory / _FILE)
        self._sessions = [Session(directory / file, options) for file in self._blocks.pieces]

    def __call__(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        values = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        for n, session in enumerate(self._sessions):
            answers = session.run({name: values[name] for name in session.inputs})
            values.update(zip(session.outputs, answers, strict=True))
            self._blocks(n, values, self._threads)
        return [values[name] for name in self._blocks.outputs]


class _Blocks:
    """What a file describes, see `write_blocks`."""

    def __init__(self, weights: Weights) -> None:
        """Raises SessionError."""
        tensors, config = weights
        self.pieces, self.outputs = config["pieces"], config["outputs"]
        self._blocks = [_Residual(tensors, f"{i}", own) for i, own in enumerate(config["blocks"])]

    def __call__(self, n: int, values: dict[str, np.ndarray], threads: int) -> None:
        """Add what follows the n-th piece. Blocks of the same signal turn and measure it once."""
        signals = dict[str, tuple[np.ndarray, _Moments]]()
        for block in self._blocks:
            if block.after != n:
                continue
            if block.x not in signals:
                signals[block.x] = _turned(values[block.x][0]), _measured(values[block.x][0])
            values[block.out] = _turned(block(*signals[block.x], values, threads))[None]


_Moments = tuple[np.ndarray, np.ndarray]  # means and variances of channels


class _Residual:
    """A block over [rows, channels]."""

    def __init__(self, tensors: Mapping[str, np.ndarray], name: str, config: Mapping[str, Any]) -> None:
        """Raises SessionError."""
        self.x, self.out, self.after, self._layers = config["x"], config["out"], config["after"], config["layers"]
        self._chains = list[Chain]()
        for j, layer in enumerate(self._layers):
            kernel, dilation = tensors[f"{name}.{j}.kernel"], layer["dilation"]
            before = (kernel.shape[1] - 1) * dilation // 2
            product = Product(kernel, tensors.get(f"{name}.{j}.bias"), before=before, dilation=dilation)
            link = Link(
                product,
                "low",
                "y",
                add="add" if j % 2 else None,
                signal="signal",
                factor="factor",
                shift="shift",
                moments="moments",
            )
            self._chains.append(Chain([link], ("y", "add", "signal", "factor", "shift", "moments"), _TILE))

    def __call__(self, x: np.ndarray, moments: _Moments, values: Mapping[str, np.ndarray], threads: int) -> np.ndarray:
        """x stays as it is. values: the scale and the bias of each norm. Raises SessionError."""
        rows, channels = x.shape
        inner, total = passing(x.shape, x.dtype), passing(x.shape, x.dtype)
        measured = np.empty((-(-rows // _TILE), 2, channels), np.float32)
        for j, (layer, chain) in enumerate(zip(self._layers, self._chains, strict=True)):
            moments = _merged(measured, rows) if j else moments
            factor, shift = _affine(values, layer, moments)
            signal, y = (inner, total) if j % 2 else (x, inner)
            buffers = {"signal": signal, "y": y, "add": x, "moments": measured, "factor": factor, "shift": shift}
            chain(rows, buffers, threads=threads)
            x = total if j % 2 else x
        return total


def _affine(values: Mapping[str, np.ndarray], layer: Mapping[str, Any], moments: _Moments) -> np.ndarray:
    """What a norm multiplies by and what it adds."""
    means, variances = moments
    factor = values[layer["scale"]] / np.sqrt(variances + layer["epsilon"])
    return np.stack([factor, values[layer["bias"]] - means * factor]).astype(np.float32)


def _measured(x: np.ndarray) -> _Moments:
    """Of [channels, rows]."""
    means = x.mean(axis=1)
    apart = x - means[:, None]
    return means.astype(np.float64), np.einsum("cr,cr->c", apart, apart).astype(np.float64) / x.shape[1]


def _merged(measured: np.ndarray, rows: int) -> _Moments:
    """Of all rows: those of tiles put together (Chan et al. 1979)."""
    counts = np.diff([*range(0, rows, _TILE), rows])[:, None]
    means, squares = measured[:, 0].astype(np.float64), measured[:, 1].astype(np.float64)
    mean = (counts * means).sum(axis=0) / rows
    return mean, (squares + counts * (means - mean) ** 2).sum(axis=0) / rows


def _turned(x: np.ndarray) -> np.ndarray:
    """[a, b] -> [b, a] in memory."""
    made = passing(x.shape[::-1], x.dtype)
    a, b = x.shape
    for start in range(0, max(a, b), _TURNED):
        part = slice(start, start + _TURNED)
        if a > b:
            made[:, part] = x[part].T
        else:
            made[part] = x[:, part].T
    return made


_OPENED = Opened(_Blocks)
