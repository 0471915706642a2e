"""Weight quantization by blocks, for ONNX Runtime's MatMulNBits, and by rows, for its integer matrix product.

Every row of a weight [N, K] is cut into blocks along K; a block of `block` weights shares one float32 scale (and, if
asymmetric, one zero point). MatMulNBits then multiplies with activations quantized to int8 on the fly (accuracy level
4, VNNI/dot-product kernels). The layout is that of the operator's documentation (onnxruntime, ContribOperators.md).

With one scale for a whole row of the weight and one for a whole row of activations, the sum over K is in integers
(MatMulIntegerToFloat), for which processors with AMX have matrix instructions: many times faster on prompts and
batches, a little coarser. Integer sums are exact, so a row's result does not depend on the other rows of its batch.
Processors without VNNI must not use it: on them ONNX Runtime's kernel lets sums of two products saturate.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from .fitting import SMALLEST, Fit, fit_blocks
from .graph import Graph

__all__ = [
    "BY_ROW",
    "RECIPES",
    "WHOLE_ROWS",
    "Recipe",
    "dequantize_blocks",
    "linear",
    "quantize_blocks",
    "quantize_rows",
    "unpack_nibbles",
]


WHOLE_ROWS = 0  # as a block's size: one scale per row of a weight, and integer matrix multiplication
_SLICE = 2**18  # weights quantized at a time
_THREADS = 8


@dataclass(frozen=True)
class Recipe:
    """How the linear layers of a graph are stored. `bits` is 4, 8 or 32, plain float32."""

    bits: int = 32
    block: int = 32  # WHOLE_ROWS with 8 bits only
    symmetric: bool = True
    fit: Fit = "extremes"
    head_bits: int = 32  # output heads decide the argmax, so a recipe may keep them wider
    head_block: int = 32
    kv_bits: int = 32  # the slow model's key-value cache, 8 or 32
    wider: tuple[str, ...] = ()  # name patterns of matrices that are stored like heads: "*.down", "fast.*"

    def head(self) -> Recipe:
        """The same recipe for an output head."""
        return replace(self, bits=self.head_bits, block=self.head_block, wider=())

    def of(self, name: str) -> Recipe:
        """The recipe of the matrix of that name."""
        return self.head() if any(fnmatchcase(name, pattern) for pattern in self.wider) else self


RECIPES = {
    "fp32": Recipe(),
    "int8": Recipe(bits=8, block=128, head_bits=8, head_block=128, kv_bits=8),
    # The squared error of llama.cpp's Q4_0 (blocks of 32, symmetric), with half the scales to read. Blocks of 128 are a
    # seventh faster, but a divergence of 1.02 nats on a random S1-mini (whose logits are peaked) fails the proof.
    "int4": Recipe(bits=4, block=64, symmetric=False, fit="clipped", head_bits=8, head_block=64, kv_bits=8),
}
# For prompts on processors with int8 dot products (VNNI, AMX), and with AMX for large batches.
BY_ROW = Recipe(bits=8, block=WHOLE_ROWS, head_bits=8, head_block=128, kv_bits=8)


def quantize_blocks(
    weight: np.ndarray, bits: int, block: int, *, symmetric: bool = True, fit: Fit = "extremes"
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Quantize float32 `weight` [N, K] to `bits` in blocks along K, their scales chosen as `fit` says.

    bits: 4 or 8. Returns packed values uint8 [N, ceil(K/block), block*bits/8], scales float32 [N, ceil(K/block)] and,
    if not symmetric, zero points uint8 [N, ceil(ceil(K/block)*bits/8)]. Works in slices of rows, several at once: they
    stay in the processor's caches, and the memory needed beside the result is small.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, not {bits}")
    rows, columns = weight.shape
    blocks = -(-columns // block)
    packed = np.empty((rows, blocks, block * bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    zero = np.empty((rows, blocks), np.uint8)

    def quantize(begin: int) -> None:
        part = weight[begin : begin + step]
        if blocks * block != columns:
            part = np.pad(part, ((0, 0), (0, blocks * block - columns)))
        fitted = fit_blocks(part.reshape(-1, block), bits, symmetric, fit)
        quantized = _pack_nibbles(fitted.quantized) if bits == 4 else fitted.quantized
        shape = len(part), blocks
        packed[begin : begin + step] = quantized.reshape(*shape, -1)
        scales[begin : begin + step] = fitted.scales.reshape(shape)
        zero[begin : begin + step] = fitted.zero.reshape(shape)

    step = max(1, _SLICE // max(columns, 1))
    if rows <= step:
        quantize(0)
    else:
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            list(pool.map(quantize, range(0, rows, step)))
    if symmetric:
        return packed, scales, None
    if bits == 4:
        zero = _pack_nibbles(np.pad(zero, ((0, 0), (0, blocks % 2)), constant_values=8))
    return packed, scales, zero


def dequantize_blocks(
    packed: np.ndarray, scales: np.ndarray, points: np.ndarray | None, bits: int, columns: int
) -> np.ndarray:
    """Dequantize a result of `quantize_blocks`: float32 [N, `columns`]."""
    rows, blocks = scales.shape
    values = (unpack_nibbles(packed) if bits == 4 else packed).reshape(rows, blocks, -1)
    if points is None:
        zero = np.full((rows, blocks), 2 ** (bits - 1), np.float32)
    else:
        zero = (unpack_nibbles(points) if bits == 4 else points)[:, :blocks].astype(np.float32)
    weight = (values.astype(np.float32) - zero[:, :, None]) * scales[:, :, None]
    return weight.reshape(rows, -1)[:, :columns]


def quantize_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize float32 `weight` [N, K] to int8 with one scale per row: int8 [N, K], float32 [N]."""
    scales = np.abs(weight).max(axis=1) / np.float32(127)
    scales[scales < SMALLEST] = 0
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    return np.rint(weight * inverse[:, None]).astype(np.int8), scales


def _pack_nibbles(values: np.ndarray) -> np.ndarray:
    return values[..., 0::2] | (values[..., 1::2] << 4)  # low nibble first


def unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    """uint8 [..., n] -> [..., 2 n], the low nibble first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def linear(graph: Graph, recipe: Recipe, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None = None) -> str:
    """y = x W^T + b for a float32 `weight` [N, K], stored as `recipe` says. x [..., K] -> y [..., N]."""
    rows, columns = weight.shape
    recipe = recipe.of(name)
    if recipe.bits == 32:
        y = graph.op("MatMul", x, graph.weight(name, weight.T))
        return y if bias is None else graph.op("Add", y, graph.weight(f"{name}.bias", bias))
    if recipe.block == WHOLE_ROWS:
        return _by_row(graph, x, name, weight, bias)
    packed, scales, points = quantize_blocks(
        weight, recipe.bits, recipe.block, symmetric=recipe.symmetric, fit=recipe.fit
    )
    inputs = [x, graph.weight(f"{name}.q{recipe.bits}", packed), graph.weight(f"{name}.scales", scales.reshape(-1))]
    if points is not None or bias is not None:
        inputs.append("" if points is None else graph.weight(f"{name}.zero_points", points.reshape(-1)))
    if bias is not None:
        inputs += ["", graph.weight(f"{name}.bias", bias)]
    attributes: dict[str, Any] = {"K": columns, "N": rows, "bits": recipe.bits, "block_size": recipe.block}
    return graph.fused("MatMulNBits", *inputs, **attributes, accuracy_level=4)


def _by_row(graph: Graph, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None) -> str:
    """The same in integers: int8 weights, one scale for each row of W; 8-bit activations, one for each row of x."""
    quantized, scales = quantize_rows(weight)
    largest = graph.op("ReduceMax", graph.op("Abs", x), graph.constant([-1]), keepdims=1)
    largest = graph.op("Max", largest, graph.constant(SMALLEST, np.float32))  # a row of zeros stays zero
    step, middle = graph.constant(1 / 127, np.float32), graph.constant(128, np.uint8)
    activations = graph.op("QuantizeLinear", graph.op("Div", x, largest), step, middle)
    values, scale = graph.weight(f"{name}.q8", quantized.T), graph.weight(f"{name}.scales", scales)
    y = graph.fused("MatMulIntegerToFloat", activations, values, step, scale, middle)
    y = graph.op("Mul", y, largest)
    return y if bias is None else graph.op("Add", y, graph.weight(f"{name}.bias", bias))
