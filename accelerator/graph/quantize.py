"""Weight quantization for ONNX Runtime's MatMulNBits, by blocks, and its integer product, by rows; recipes of both.

Every row of a weight [N, K] is cut into blocks along K; a block of `block` weights shares one float32 scale (and, if
asymmetric, one zero point). MatMulNBits then multiplies with activations quantized to int8 on the fly (accuracy level
4, VNNI/dot-product kernels). The layout is that of the operator's documentation (onnxruntime, ContribOperators.md).

Where one scale serves a whole row of the weight, and one a whole row of activations, the sum over K is one of integers
(MatMulIntegerToFloat), for which processors with AMX have matrix instructions: many times faster on prompts and
batches, a little coarser. Integer sums are exact, so that a row's answer does not depend on the rows beside it.
Processors without VNNI must not use it: ONNX Runtime's kernel for them lets pairs of products saturate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

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
]


WHOLE_ROWS = 0  # as a block's size: one scale per row of a weight, and integer matrix multiplication
_SMALLEST = float(np.finfo(np.float32).tiny)  # ONNX Runtime counts what is smaller as zero


@dataclass(frozen=True)
class Recipe:
    """How the linear layers of a graph are stored. `bits` 32 is plain float32."""

    bits: int = 32
    block: int = 32  # WHOLE_ROWS with 8 bits only
    symmetric: bool = True
    search: bool = False
    head_bits: int = 32  # output heads decide the argmax, so a recipe may keep them wider
    head_block: int = 32
    kv_bits: int = 32  # the slow model's key-value cache, 8 or 32

    def head(self) -> Recipe:
        """The same recipe for an output head."""
        return replace(self, bits=self.head_bits, block=self.head_block)


RECIPES = {
    "fp32": Recipe(),
    "int8": Recipe(bits=8, block=128, head_bits=8, head_block=128, kv_bits=8),
    # The squared error of llama.cpp's Q4_0 (blocks of 32, symmetric), with half the scales to read.
    "int4": Recipe(bits=4, block=64, symmetric=False, search=True, head_bits=8, head_block=64, kv_bits=8),
}
# For prompts and batches on processors with AMX.
BY_ROW = Recipe(bits=8, block=WHOLE_ROWS, head_bits=8, head_block=128, kv_bits=8)
NARROWER = (0.93, 0.86, 0.79)  # shares of a block's range that `search` tries beside the whole


def quantize_blocks(
    weight: np.ndarray, bits: int, block: int, *, symmetric: bool = True, search: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Quantize float32 `weight` [N, K] to `bits` (4 or 8) in blocks along K.

    Returns packed values uint8 [N, ceil(K/block), block*bits/8], scales float32 [N, ceil(K/block)] and, if not
    symmetric, zero points uint8 [N, ceil(ceil(K/block)*bits/8)]. Symmetric blocks map their largest magnitude, with its
    sign, to the most negative level, which uses all 2**bits levels (as llama.cpp's Q4_0 does); others map their
    extremes to the ends. search: per block, the narrowed range (of `NARROWER`) with the least squared error: clipping
    extremes a little makes every other weight finer.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, not {bits}")
    rows, columns = weight.shape
    blocks = -(-columns // block)
    if blocks * block != columns:
        weight = np.pad(weight, ((0, 0), (0, blocks * block - columns)))
    values = weight.reshape(rows, blocks, block)
    chosen = list(_quantize(values, bits, symmetric, 1.0))  # quantized values, scales, zero points
    if search:
        least = _squared_error(values, *chosen)
        for share in NARROWER:
            narrowed = _quantize(values, bits, symmetric, share)
            error = _squared_error(values, *narrowed)
            better = error < least
            least = np.minimum(error, least)
            for kept, new in zip(chosen, narrowed, strict=True):
                np.copyto(kept, new, where=better.reshape(*better.shape, *[1] * (new.ndim - 2)))
    quantized, scales, zero = chosen
    packed = _pack_nibbles(quantized) if bits == 4 else quantized
    if symmetric:
        return packed, scales, None
    points = zero.astype(np.uint8)
    if bits == 4:
        points = _pack_nibbles(np.pad(points, ((0, 0), (0, blocks % 2)), constant_values=8))
    return packed, scales, points


def _quantize(
    values: np.ndarray, bits: int, symmetric: bool, share: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks [N, n, block] within a share of their range -> levels uint8, scales and zero points float32 [N, n]."""
    levels, middle = 2**bits - 1, 2 ** (bits - 1)
    high, low = values.max(axis=2) * np.float32(share), values.min(axis=2) * np.float32(share)
    if symmetric:
        scales = np.where(high > -low, high, low) / -middle
    else:
        high, low = np.maximum(high, 0), np.minimum(low, 0)
        scales = (high - low) / levels
    scales[np.abs(scales) < _SMALLEST] = 0  # its inverse would be infinite
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    zero = np.full_like(scales, middle) if symmetric else np.rint(-low * inverse)
    scaled = values * inverse[:, :, None]
    scaled += zero[:, :, None] + np.float32(0.5)  # +0.5 and truncation is rounding, far faster than rint on float32
    return np.clip(scaled, 0, levels, out=scaled).astype(np.uint8), scales, zero


def _squared_error(values: np.ndarray, quantized: np.ndarray, scales: np.ndarray, zero: np.ndarray) -> np.ndarray:
    error = (quantized - zero[:, :, None]) * scales[:, :, None] - values
    return np.einsum("nbk,nbk->nb", error, error)


def dequantize_blocks(
    packed: np.ndarray, scales: np.ndarray, points: np.ndarray | None, bits: int, columns: int
) -> np.ndarray:
    """The float32 [N, `columns`] that `quantize_blocks`' result stands for."""
    rows, blocks = scales.shape
    values = (_unpack_nibbles(packed) if bits == 4 else packed).reshape(rows, blocks, -1)
    if points is None:
        zero = np.full((rows, blocks), 2 ** (bits - 1), np.float32)
    else:
        zero = (_unpack_nibbles(points) if bits == 4 else points)[:, :blocks].astype(np.float32)
    weight = (values.astype(np.float32) - zero[:, :, None]) * scales[:, :, None]
    return weight.reshape(rows, -1)[:, :columns]


def quantize_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize float32 `weight` [N, K] to int8 with one scale per row: int8 [N, K], float32 [N]."""
    scales = np.abs(weight).max(axis=1) / np.float32(127)
    scales[scales < _SMALLEST] = 0
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    return np.rint(weight * inverse[:, None]).astype(np.int8), scales


def _pack_nibbles(values: np.ndarray) -> np.ndarray:
    return values[..., 0::2] | (values[..., 1::2] << 4)  # low nibble first


def _unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def linear(graph: Graph, recipe: Recipe, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None = None) -> str:
    """y = x W^T + b for a float32 `weight` [N, K], stored as `recipe` says. x [..., K] -> y [..., N]."""
    rows, columns = weight.shape
    if recipe.bits == 32:
        y = graph.op("MatMul", x, graph.weight(name, weight.T))
        return y if bias is None else graph.op("Add", y, graph.weight(f"{name}.bias", bias))
    if recipe.block == WHOLE_ROWS:
        return _by_row(graph, x, name, weight, bias)
    packed, scales, points = quantize_blocks(
        weight, recipe.bits, recipe.block, symmetric=recipe.symmetric, search=recipe.search
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
    largest = graph.op("Max", largest, graph.constant(_SMALLEST, np.float32))  # a row of zeros stays zero
    step, middle = graph.constant(1 / 127, np.float32), graph.constant(128, np.uint8)
    levels = graph.op("QuantizeLinear", graph.op("Div", x, largest), step, middle)
    values, scale = graph.weight(f"{name}.q8", quantized.T), graph.weight(f"{name}.scales", scales)
    y = graph.fused("MatMulIntegerToFloat", levels, values, step, scale, middle)
    y = graph.op("Mul", y, largest)
    return y if bias is None else graph.op("Add", y, graph.weight(f"{name}.bias", bias))
