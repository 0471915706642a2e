"""Block quantization against an independent implementation, and its layout against ONNX Runtime itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from accelerator.export.graph import quantize
from accelerator.export.graph.fitting import Fit
from accelerator.export.graph.graph import Graph
from accelerator.export.graph.quantize import (
    BY_ROW,
    RECIPES,
    WHOLE_ROWS,
    Recipe,
    dequantize_blocks,
    linear,
    quantize_blocks,
    quantize_rows,
)
from accelerator.runtime.onnx import Session

CASES = [(4, 32), (4, 16), (4, 128), (8, 32), (8, 128)]
SHAPES = [(1, 32), (5, 64), (3, 96), (7, 40), (4, 33), (2, 1), (6, 300)]  # odd block counts; K no multiple of a block


def by_hand(row: np.ndarray, bits: int, symmetric: bool) -> tuple[list[int], float, int]:
    """One block, in plain Python: (quantized, scale, zero point)."""
    values = [float(v) for v in row]
    top = 2**bits - 1
    if symmetric:
        extreme = max(values, key=abs)
        scale, zero = extreme / -(2 ** (bits - 1)), 2 ** (bits - 1)
    else:
        high, low = max(*values, 0.0), min(*values, 0.0)
        scale = (high - low) / top
        zero = round(-low / scale) if scale else 0
    if not scale:
        return [zero] * len(values), 0.0, zero
    return [min(max(math.floor(v / scale + zero + 0.5), 0), top) for v in values], scale, zero


def unpack(packed: np.ndarray, bits: int) -> list[int]:
    return [v for byte in packed.tolist() for v in ([byte & 15, byte >> 4] if bits == 4 else [byte])]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block"), CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_block_as_done_by_hand(shape: tuple[int, int], bits: int, block: int, symmetric: bool) -> None:
    weight = np.random.default_rng(shape[1]).standard_normal(shape).astype(np.float32)
    blocks = -(-shape[1] // block)
    packed, scales, points = quantize_blocks(weight, bits, block, symmetric=symmetric)
    assert packed.shape == (shape[0], blocks, block * bits // 8)
    assert packed.dtype == np.uint8
    assert (scales.shape, scales.dtype) == ((shape[0], blocks), np.float32)
    assert (points is None) is symmetric
    if points is not None:
        assert points.shape == (shape[0], -(-blocks * bits // 8))
        assert points.dtype == np.uint8
    padded = np.pad(weight, ((0, 0), (0, blocks * block - shape[1])))
    for row in range(shape[0]):
        for at in range(blocks):
            quantized, scale, zero = by_hand(padded[row, at * block : (at + 1) * block], bits, symmetric)
            assert scales[row, at] == pytest.approx(scale, rel=1e-6)
            stored = unpack(packed[row, at], bits)
            assert all(abs(a - b) <= 1 for a, b in zip(stored, quantized, strict=True)), "float32 may round a tie"
            assert sum(a != b for a, b in zip(stored, quantized, strict=True)) <= 1
            if points is not None:
                assert unpack(points[row], bits)[at] == zero


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block"), CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_round_trip_errs_by_half_a_step(shape: tuple[int, int], bits: int, block: int, symmetric: bool) -> None:
    weight = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    packed, scales, points = quantize_blocks(weight, bits, block, symmetric=symmetric)
    again = dequantize_blocks(packed, scales, points, bits, shape[1])
    assert again.shape == weight.shape
    assert again.dtype == np.float32
    step = np.repeat(np.abs(scales), block, axis=1)[:, : shape[1]]
    error = np.abs(again - weight)
    if symmetric:  # one end has one value less: weights there are clipped, by one step at most
        clipped = np.abs(weight) >= (2 ** (bits - 1) - 0.5) * step
        assert (error <= step * 1.001).all()
        assert (error[~clipped] <= 0.501 * step[~clipped]).all()
        extreme = np.abs(weight).argmax(axis=1)
        rows = np.arange(shape[0])
        np.testing.assert_allclose(again[rows, extreme], weight[rows, extreme], rtol=1e-6)
    else:  # the zero point is rounded too
        assert (error <= 1.001 * step).all()
        assert error.mean() < 0.4 * step.mean()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_without_a_range(bits: int, symmetric: bool) -> None:
    weight = np.zeros((6, 64), np.float32)
    weight[1, :32] = 0.7  # constant, the other block zero
    weight[2] = -0.7
    weight[3, 5] = 1e-30
    weight[4] = 1e-40  # denormal: the inverse of its scale is infinite
    weight[5, 3] = -3e38
    packed, scales, points = quantize_blocks(weight, bits, 32, symmetric=symmetric)
    again = dequantize_blocks(packed, scales, points, bits, 64)
    assert np.isfinite(scales).all()
    np.testing.assert_allclose(again, weight, rtol=2e-3, atol=1e-37)
    assert not again[0].any()
    assert not again[4].any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 3, 5, 16])
def test_no_other_bits(bits: int, symmetric: bool) -> None:
    with pytest.raises(ValueError, match=f"not {bits}"):
        quantize_blocks(np.zeros((2, 32), np.float32), bits, 32, symmetric=symmetric)


def test_the_weight_itself_is_left_alone() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    before = weight.copy()
    quantize_blocks(weight, 4, 32)
    quantize_blocks(weight, 8, 32, symmetric=False)
    np.testing.assert_array_equal(weight, before)


def run(
    directory: Path, recipe: Recipe, weight: np.ndarray, x: np.ndarray, bias: np.ndarray | None, exact: bool
) -> np.ndarray:
    with Graph(directory, "linear") as graph:
        value = graph.input("x", np.float32, [*["d"] * (x.ndim - 1), weight.shape[1]])
        y = linear(graph, recipe, value, "w", weight, bias)
        if exact:  # accuracy level 0 computes in float32
            for node in graph._nodes:
                for attribute in node.attribute:
                    if attribute.name == "accuracy_level":
                        attribute.i = 0
        graph.output(y, "y", np.float32, [*["d"] * (x.ndim - 1), weight.shape[0]])
    return Session(directory / "linear.onnx").run({"x": x})[0]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block"), CASES)
def test_onnx_runtime_reads_the_layout_as_we_do(
    tmp_path: Path, bits: int, block: int, symmetric: bool, bias: bool
) -> None:
    rng = np.random.default_rng(bits * block)
    for rows, columns in ((8, 256), (5, 96), (16, 160), (7, 40), (3, 33)):
        weight = rng.standard_normal((rows, columns)).astype(np.float32)
        weight[0, :block] = 0
        x = rng.standard_normal((4, columns)).astype(np.float32)
        b = rng.standard_normal(rows).astype(np.float32) if bias else None
        recipe = Recipe(bits=bits, block=block, symmetric=symmetric)
        expected = x @ dequantize_blocks(*quantize_blocks(weight, bits, block, symmetric=symmetric), bits, columns).T
        expected = expected + b if b is not None else expected
        np.testing.assert_allclose(run(tmp_path, recipe, weight, x, b, True), expected, atol=1e-3, err_msg=f"{columns}")
        fast = run(tmp_path, recipe, weight, x, b, False)  # activations in int8
        assert np.linalg.norm(fast - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("bias", [False, True])
def test_float32_is_exact(tmp_path: Path, bias: bool) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((6, 33)).astype(np.float32), rng.standard_normal((2, 3, 33)).astype(np.float32)
    b = rng.standard_normal(6).astype(np.float32) if bias else None
    expected = x @ weight.T + (0 if b is None else b)
    np.testing.assert_allclose(run(tmp_path, Recipe(), weight, x, b, False), expected, atol=1e-5)


def test_recipes_keep_the_head_at_least_as_wide() -> None:
    assert RECIPES["fp32"] == Recipe(bits=32, head_bits=32)
    for name, recipe in RECIPES.items():
        head = recipe.head()
        assert head.bits >= recipe.bits, name
        assert head.head() == head
    assert RECIPES["int4"].head().bits == 8


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_searched_range_is_never_worse_and_mostly_better(bits: int, symmetric: bool) -> None:
    weight = np.random.default_rng(4).standard_t(5, (64, 512)).astype(np.float32)

    def errors(search: bool) -> np.ndarray:
        stored = quantize_blocks(weight, bits, 64, symmetric=symmetric, fit="clipped" if search else "extremes")
        difference = dequantize_blocks(*stored, bits, 512) - weight
        return np.square(difference).reshape(64, 8, 64).sum(axis=2)

    plain, searched = errors(False), errors(True)
    assert (searched <= plain * (1 + 1e-5)).all()
    if bits == 4:
        assert (searched < plain * 0.999).mean() > 0.5


def test_the_int4_recipe_is_as_exact_as_blocks_of_32() -> None:
    """What `RECIPES` claims: the error of llama.cpp's Q4_0 with half the scales."""
    recipe, weight = RECIPES["int4"], np.random.default_rng(5).standard_t(5, (128, 1024)).astype(np.float32)

    def error(*stored: Any) -> float:
        return float(np.linalg.norm(dequantize_blocks(*stored, 4, 1024) - weight) / np.linalg.norm(weight))

    ours = error(*quantize_blocks(weight, 4, recipe.block, symmetric=recipe.symmetric, fit=recipe.fit))
    assert ours < 1.03 * error(*quantize_blocks(weight, 4, 32))
    assert recipe.block == 64


def heavy_tailed(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(6).standard_t(4, (rows, columns)).astype(np.float32) / 50


def blockwise(weight: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], np.ndarray], **how: Any) -> np.ndarray:
    """`measure` of (errors, weights), summed over each block of 64."""
    error = dequantize_blocks(*quantize_blocks(weight, 4, 64, **how), 4, weight.shape[1]) - weight
    return measure(error, weight).reshape(len(weight), -1, 64).sum(axis=2)


def by_magnitude(error: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What k-quant minimises: squares, weighted by |x| and the block's root mean square."""
    blocks = weight.reshape(-1, 64)
    rms = np.sqrt(np.square(blocks).mean(axis=1, keepdims=True))
    return np.square(error) * (np.abs(blocks) + rms).reshape(weight.shape)


def sparse(error: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What HQQ minimises."""
    return np.abs(error) ** 0.7


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("fit", "measure", "less"), [("k-quant", by_magnitude, 0.96), ("hqq", sparse, 0.96), ("clipped", sparse, 0.99)]
)
def test_a_fit_lowers_the_error_it_minimises(
    fit: Fit, measure: Callable[[np.ndarray, np.ndarray], np.ndarray], less: float, symmetric: bool
) -> None:
    weight = heavy_tailed(128, 1024)
    plain = blockwise(weight, measure, symmetric=symmetric)
    fitted = blockwise(weight, measure, symmetric=symmetric, fit=fit)
    assert fitted.sum() < less * plain.sum()
    assert (fitted <= plain * 1.001).mean() > 0.75


def test_hqq_starts_from_round_to_nearest_and_only_leaves_it_for_less() -> None:
    weight = heavy_tailed(64, 512)
    assert (blockwise(weight, sparse, fit="hqq") <= blockwise(weight, sparse) * 1.001).all()


@pytest.mark.parametrize("fit", ["k-quant", "hqq"])
def test_a_fit_does_not_depend_on_the_weights_size(fit: Fit) -> None:
    weight = heavy_tailed(8, 256)
    packed, scales, points = quantize_blocks(weight, 4, 64, symmetric=False, fit=fit)
    again = quantize_blocks(weight * 1024, 4, 64, symmetric=False, fit=fit)
    np.testing.assert_array_equal(again[0], packed)
    np.testing.assert_array_equal(again[1], scales * 1024)
    np.testing.assert_array_equal(again[2], points)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("fit", ["k-quant", "hqq", "clipped"])
def test_a_fit_of_blocks_without_a_range(fit: Fit, symmetric: bool) -> None:
    weight = np.zeros((5, 64), np.float32)
    weight[1, :32], weight[2], weight[3, 5], weight[4] = 0.7, -0.7, 1e-30, 1e-40
    packed, scales, points = quantize_blocks(weight, 4, 32, symmetric=symmetric, fit=fit)
    again = dequantize_blocks(packed, scales, points, 4, 64)
    assert np.isfinite(scales).all()
    np.testing.assert_allclose(again, weight, rtol=2e-3, atol=1e-29)
    assert not again[0].any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("fit", ["k-quant", "hqq"])
def test_onnx_runtime_multiplies_with_what_was_fitted(tmp_path: Path, fit: Fit, symmetric: bool) -> None:
    rng = np.random.default_rng(7)
    for columns in (256, 160):
        weight, x = heavy_tailed(24, columns), rng.standard_normal((4, columns)).astype(np.float32)
        recipe = Recipe(bits=4, block=64, symmetric=symmetric, fit=fit)
        expected = x @ dequantize_blocks(*quantize_blocks(weight, 4, 64, symmetric=symmetric, fit=fit), 4, columns).T
        np.testing.assert_allclose(run(tmp_path, recipe, weight, x, None, True), expected, atol=1e-4)
        fast = run(tmp_path, recipe, weight, x, None, False)
        assert np.linalg.norm(fast - expected) < 0.02 * np.linalg.norm(expected)


def test_slices_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = heavy_tailed(37, 130)
    whole = [quantize_blocks(weight, 4, 32, symmetric=False, fit=fit) for fit in get_args(Fit)]
    monkeypatch.setattr(quantize, "_SLICE", 500)
    sliced = [quantize_blocks(weight, 4, 32, symmetric=False, fit=fit) for fit in get_args(Fit)]
    for one, other in zip(whole, sliced, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_there_are_no_other_fits() -> None:
    with pytest.raises(ValueError, match="there is no fit 'guess'"):
        quantize_blocks(np.ones((2, 32), np.float32), 4, 32, fit="guess")  # type: ignore[arg-type]


def test_a_recipe_may_keep_named_matrices_wider(tmp_path: Path) -> None:
    recipe = Recipe(bits=4, block=32, head_bits=8, head_block=64, wider=("*.down", "fast.*"))
    assert recipe.of("slow.3.qkv") == recipe
    assert recipe.of("slow.3.down") == recipe.of("fast.0.qkv") == recipe.head()
    assert (recipe.head().bits, recipe.head().block, recipe.head().wider) == (8, 64, ())
    weight = heavy_tailed(8, 64)
    with Graph(tmp_path, "mixed") as graph:
        x = graph.input("x", np.float32, ["n", 64])
        for name in ("a.up", "a.down"):
            graph.output(linear(graph, recipe, x, name, weight), name, np.float32, ["n", 8])
        bits = [a.i for node in graph._nodes for a in node.attribute if a.name == "bits"]
    assert bits == [4, 8]


def by_row(directory: Path, weight: np.ndarray, bias: np.ndarray | None = None) -> Session:
    with Graph(directory, "linear") as graph:
        x = graph.input("x", np.float32, ["batch", "length", weight.shape[1]])
        y = linear(graph, Recipe(bits=8, block=WHOLE_ROWS), x, "w", weight, bias)
        graph.output(y, "y", np.float32, ["batch", "length", len(weight)])
    return Session(directory / "linear.onnx")


def test_a_row_is_quantized_by_its_largest() -> None:
    weight = np.array([[1, -2, 0.5], [0, 0, 0], [1e-3, 1e-3, -5e-4]], np.float32)
    quantized, scales = quantize_rows(weight)
    assert quantized.dtype == np.int8
    assert quantized.tolist() == [[64, -127, 32], [0, 0, 0], [127, 127, -64]]
    np.testing.assert_allclose(scales, [2 / 127, 0, 1e-3 / 127], rtol=1e-6)


@pytest.mark.usefixtures("exact_sums")
@pytest.mark.parametrize("biased", [False, True])
def test_the_integer_product_is_the_float_one_of_what_was_rounded(tmp_path: Path, biased: bool) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((70, 96)).astype(np.float32), rng.standard_normal((2, 5, 96)).astype(np.float32)
    x *= np.exp(rng.standard_normal((2, 5, 1))).astype(np.float32) * 10  # rows of different size
    bias = rng.standard_normal(70).astype(np.float32) if biased else None
    quantized, scales = quantize_rows(weight)
    largest = np.abs(x).max(axis=-1, keepdims=True)
    activations = np.rint(x / largest * 127)
    expected = activations / 127 * largest @ (quantized * scales[:, None]).T + (bias if biased else 0)
    (y,) = by_row(tmp_path, weight, bias).run({"x": x})
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-3)
    exact = x @ weight.T + (bias if biased else 0)
    assert 1e-4 < np.linalg.norm(y - exact) / np.linalg.norm(exact) < 0.02


@pytest.mark.usefixtures("exact_sums")
def test_a_row_of_activations_is_multiplied_as_if_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    session = by_row(tmp_path, rng.standard_normal((64, 128)).astype(np.float32))
    x = rng.standard_normal((7, 3, 128)).astype(np.float32)
    x[2], x[3, 1] = x[2] * 1000, 0
    (together,) = session.run({"x": x})
    assert not together[3, 1].any()
    for i in range(7):
        for j in range(3):
            (alone,) = session.run({"x": x[i : i + 1, j : j + 1]})
            np.testing.assert_array_equal(together[i, j], alone[0, 0])


def test_by_row_is_nearly_as_fine_as_int8_by_blocks() -> None:
    weight = np.random.default_rng(2).standard_normal((64, 1024)).astype(np.float32)
    quantized, scales = quantize_rows(weight)
    blocks = dequantize_blocks(*quantize_blocks(weight, 8, 128), 8, 1024)
    rows = np.linalg.norm(quantized * scales[:, None] - weight)
    assert np.linalg.norm(blocks - weight) < rows < 1.5 * np.linalg.norm(blocks - weight)
    assert BY_ROW.block == WHOLE_ROWS
    assert BY_ROW.head().block == 128
