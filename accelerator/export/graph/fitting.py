"""How a block of weights gets its scale and its zero point: between its extremes, or by a search of one of three kinds.

A quantized value q stands for (q - zero) * scale. Zero points are quantized values themselves, because ONNX Runtime's
integer kernels take no others (with float ones MatMulNBits dequantizes the whole weight in every call). The fits, by
name:

    extremes  the block's range, end to end (round to nearest)
    clipped   the range or a narrowed one, whichever has the least squared error
    k-quant   llama.cpp's make_qkx2_quants (Gerganov et al.): for each of a grid of ranges the weighted least squares of
              scale and zero point together; weights of large magnitude count for more
    hqq       half-quadratic quantization (Badri and Shaji 2023): minimises sum |error|**0.7, which forgives outliers,
              alternating between a shrunken error and zero point and scale
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

__all__ = ["SMALLEST", "Fit", "Fitted", "fit_blocks"]

Fit = Literal["extremes", "clipped", "k-quant", "hqq"]
SMALLEST = float(np.finfo(np.float32).tiny)  # ONNX Runtime takes anything smaller for zero
NARROWER = (0.93, 0.86, 0.79)  # shares of a block's range that "clipped" tries beside the whole
RANGES_TRIED = np.linspace(14 / 15, 19 / 15, 16)  # the grid of "k-quant": steps across a range, as shares of all
HQQ_POWER, HQQ_ROUNDS = 0.7, 20
HQQ_BETA, HQQ_GROWTH = 10.0, 1.01  # the paper's schedule, of errors in steps: weights of any size shrink alike


class Fitted(NamedTuple):
    """Quantized values uint8 [n, block]; scales and zero points float32 [n]."""

    quantized: np.ndarray
    scales: np.ndarray
    zero: np.ndarray


def fit_blocks(values: np.ndarray, bits: int, symmetric: bool, fit: Fit) -> Fitted:
    """Quantize blocks float32 [n, block] to `bits`. Symmetric ones have the middle value as their zero point."""
    if fit == "clipped":
        return _clipped(values, bits, symmetric)
    scales, zero = _extremes(values, bits, symmetric)
    if fit == "k-quant":
        scales, zero = _k_quant(values, bits, symmetric, scales, zero)
    elif fit == "hqq":
        scales, zero = _hqq(values, bits, symmetric, scales, zero)
    elif fit != "extremes":
        raise ValueError(f"there is no fit {fit!r}")
    return Fitted(_quantized(values, scales, zero, bits).astype(np.uint8), scales, zero)


def _extremes(values: np.ndarray, bits: int, symmetric: bool, share: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points [n] that put a share of the range end to end.

    Symmetric: the largest magnitude, with its sign, at the lowest value, so that all values are used (as in Q4_0).
    """
    middle = 2 ** (bits - 1)
    high, low = values.max(axis=1) * np.float32(share), values.min(axis=1) * np.float32(share)
    if symmetric:
        scales = np.where(high > -low, high, low) / -middle
    else:
        high, low = np.maximum(high, 0), np.minimum(low, 0)
        scales = (high - low) / (2**bits - 1)
    scales[np.abs(scales) < SMALLEST] = 0  # its inverse would be infinite
    zero = np.full_like(scales, middle) if symmetric else np.rint(-low * _inverse(scales))
    return scales, zero


def _quantized(values: np.ndarray, scales: np.ndarray, zero: np.ndarray, bits: int) -> np.ndarray:
    """The nearest quantized values, as whole float32 [n, block]."""
    quantized = values * _inverse(scales)[:, None]
    quantized += zero[:, None] + np.float32(0.5)  # +0.5 and truncation is rounding, far faster than rint on float32
    np.clip(quantized, 0, 2**bits - 1, out=quantized)
    return np.trunc(quantized, out=quantized)


def _clipped(values: np.ndarray, bits: int, symmetric: bool) -> Fitted:
    best, least = None, np.full(len(values), np.inf, np.float32)
    for share in (1.0, *NARROWER):
        scales, zero = _extremes(values, bits, symmetric, share)
        quantized = _quantized(values, scales, zero, bits)
        error = (quantized - zero[:, None]) * scales[:, None] - values
        squares = _dot(error, error)
        better = squares < least
        tried = Fitted(quantized.astype(np.uint8), scales, zero)
        if best is None:
            best = tried
        else:
            for kept, new in zip(best, tried, strict=True):
                np.copyto(kept, new, where=better.reshape(-1, *[1] * (new.ndim - 1)))
        least = np.minimum(least, squares)
    assert best is not None
    return best


def _k_quant(
    values: np.ndarray, bits: int, symmetric: bool, scales: np.ndarray, zero: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Minimises the weighted squared error sum w x**2 - (sum w x c)**2 / sum w c**2, c being quantized less zero."""
    top = 2**bits - 1
    weights = np.abs(values)
    weights += np.sqrt(_dot(values, values) / values.shape[1])[:, None]
    weighted = weights * values
    sum_w, sum_x = weights.sum(axis=1), weighted.sum(axis=1)
    best = np.zeros(len(values), np.float32)
    chosen = scales.copy(), zero.copy()
    for over in RANGES_TRIED.astype(np.float32):
        tried, offset = scales / over, zero
        if not symmetric:
            quantized = _quantized(values, tried, offset * over, bits)
            product = weights * quantized
            sum_l, sum_l2, sum_xl = product.sum(axis=1), _dot(product, quantized), _dot(weighted, quantized)
            step = _ratio(sum_w * sum_xl - sum_x * sum_l, sum_w * sum_l2 - sum_l * sum_l)
            least = _ratio(sum_l2 * sum_x - sum_l * sum_xl, sum_w * sum_l2 - sum_l * sum_l)
            tried = np.where(step > SMALLEST, step, tried)
            offset = np.where(step > SMALLEST, np.clip(np.rint(-least * _inverse(tried)), 0, top), zero)
        quantized = _quantized(values, tried, offset, bits)
        quantized -= offset[:, None]
        product = weights * quantized
        against, own = _dot(weighted, quantized), _dot(product, quantized)
        gain = _ratio(against * against, own)
        better = (gain > best) & (np.abs(step := _ratio(against, own)) >= SMALLEST)
        best = np.where(better, gain, best)
        for kept, new in zip(chosen, (step, offset), strict=True):
            np.copyto(kept, new, where=better)
    return chosen


def _hqq(
    values: np.ndarray, bits: int, symmetric: bool, scales: np.ndarray, zero: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Equations 4 to 6 of the paper, with an integer zero point and then a least-squares fit of the scale.

    Without that fit a rounded zero point would hardly move.
    """
    top, power = 2**bits - 1, np.float32(HQQ_POWER - 1)
    chosen, least = (scales, zero), np.full(len(values), np.inf, np.float32)
    beta = np.float32(HQQ_BETA)
    for round_ in range(HQQ_ROUNDS + 1):
        exact = values * _inverse(scales)[:, None]
        quantized = _quantized(values, scales, zero, bits)
        error = exact + zero[:, None]
        error -= quantized
        size = np.abs(error)
        slope = np.maximum(size, np.float32(1e-6))
        slope = np.exp(power * np.log(slope, out=slope), out=slope)  # twice as fast as **
        loss = _dot(size, slope) * np.abs(scales) ** np.float32(HQQ_POWER)
        better = loss < least
        least = np.where(better, loss, least)
        chosen = np.where(better, scales, chosen[0]), np.where(better, zero, chosen[1])
        if round_ == HQQ_ROUNDS:
            break
        slope /= beta
        size -= slope
        exact -= np.copysign(np.maximum(size, 0, out=size), error)  # what is left once outliers are taken away
        if not symmetric:
            zero = np.clip(np.rint((quantized - exact).mean(axis=1)), 0, top)
        quantized -= zero[:, None]
        factor = _ratio(_dot(quantized, exact), _dot(quantized, quantized))
        scales = scales * np.where(factor > 0, factor, 1)
        scales[np.abs(scales) < SMALLEST] = 0
        beta *= np.float32(HQQ_GROWTH)
    return chosen


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("nk,nk->n", a, b)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 where b is not positive."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > SMALLEST)


def _inverse(scales: np.ndarray) -> np.ndarray:
    return np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
