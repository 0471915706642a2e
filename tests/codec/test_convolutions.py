"""Ordered weights multiply as PyTorch's own layers do, at any length; without the operators, PyTorch's own are used."""

from __future__ import annotations

import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from accelerator.codec import convolutions
from accelerator.codec.convolutions import Form, Kernel, Packed, Plain, Split, convolver, has_bf16, packs, splits
from accelerator.codec.layers import Convolution

needs_packing = pytest.mark.skipif(not packs(), reason="this PyTorch takes no ordered weights")
needs_bf16 = pytest.mark.skipif(not has_bf16(), reason="PyTorch has no products of bfloat16 for this processor")
needs_splitting = pytest.mark.skipif(not splits(), reason="needs a processor with AMX")
SHAPES = [(64, 7, 48), (1, 7, 96), (5, 3, 6), (96, 1, 64), (192, 2, 32)]  # out, taps, in
HOWS = [{}, {"dilation": 9}, {"stride": 2}]


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What this PyTorch can do is asked again, before and after."""
    caches = packs, splits, convolutions._order
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def snr_db(expected: Tensor, actual: Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (expected - actual).square().sum()))


@needs_packing
@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)], ids=str)
def test_ordered_weights_multiply_the_same(shape: tuple[int, ...], how: dict[str, int], dtype: torch.dtype) -> None:
    kernel, bias = seeded(*shape) / 10, seeded(shape[0], seed=1)
    packed, plain = Packed(kernel, bias, dtype=dtype, **how), Plain(kernel, bias, dtype=dtype, **how)
    for batch, length in ((1, 56), (1, 57), (2, 100), (1, 400), (1, 56), (1, 1300)):
        x = seeded(batch, length, shape[2], seed=length).to(dtype)
        tolerance = 1e-4 if dtype == torch.float32 else 0.02  # one rounding of what is about 3 at most
        torch.testing.assert_close(packed(x), plain(x), rtol=tolerance, atol=tolerance)


@needs_packing
def test_every_length_gets_the_order_it_asks_for_and_no_order_is_packed_twice() -> None:
    kernel = seeded(768, 1, 768)
    packed = Packed(kernel, None)
    for length in (32, 64, 96, 64, 512):
        packed(seeded(1, length, 768))
    assert len(packed._by_length) == 4
    assert len(packed._by_order) <= 2
    orders = {id(weights) for weights in packed._by_length.values()}
    assert orders == {id(weights) for weights in packed._by_order.values()}


@needs_splitting
@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pairs_of_int8_are_close_to_float32(shape: tuple[int, ...], how: dict[str, int]) -> None:
    kernel, bias = seeded(*shape) / 10, seeded(shape[0], seed=1)
    split, plain = Split(kernel, bias, **how), Plain(kernel, bias, **how)
    for batch, length in ((1, 56), (2, 100), (1, 400), (1, 1300)):
        x = seeded(batch, length, shape[2], seed=length)
        assert snr_db(plain(x), split(x + 0.0)) > 70
        kept = x.clone()
        split(x)
        torch.testing.assert_close(x, kept, rtol=0, atol=0)


@needs_splitting
@pytest.mark.parametrize("taps", [1, 3])
def test_quiet_channels_count_by_what_they_contribute(taps: int) -> None:
    """An input channel a thousand times smaller, with weights a thousand times larger, loses nothing."""
    scales = 10 ** torch.linspace(-3, 3, 64)
    kernel, x = seeded(32, taps, 64) / scales, seeded(1, 50, 64) * scales
    assert snr_db(Plain(kernel, None)(x), Split(kernel, None)(x)) > 70


@needs_splitting
def test_rows_of_a_single_tap_have_their_own_scale() -> None:
    kernel, x = seeded(32, 1, 64), seeded(1, 50, 64) * 10 ** torch.linspace(-3, 3, 50)[:, None]
    for row, expected in zip(Split(kernel, None)(x)[0], Plain(kernel, None)(x)[0], strict=True):
        assert snr_db(expected, row) > 65


@needs_splitting
def test_any_number_of_rows_of_a_single_tap_multiplies_the_same_copy_of_the_weights() -> None:
    kernel, x = seeded(192, 1, 256), seeded(2, 64, 256)
    split, plain = Split(kernel, None), Plain(kernel, None)
    for rows in range(1, 65):
        assert snr_db(plain(x[:, :rows]), split(x[:, :rows])) > 65
    assert len(split._by_order) == 1


def test_plain_convolutions_take_a_part_of_an_array() -> None:
    kernel, x = seeded(5, 3, 6), seeded(2, 30, 6)
    torch.testing.assert_close(Plain(kernel, None)(x[:, :20]), Plain(kernel, None)(x[:, :20].clone()))


def test_stored_weights_are_read_once_for_an_order() -> None:
    kernel, reads = seeded(64, 3, 48), 0

    def read() -> Tensor:
        nonlocal reads
        reads += 1
        return kernel.clone()

    stored = Kernel(tuple(kernel.shape), read)
    x = seeded(1, 24, 48)
    forms: list[tuple[Form, float]] = [("plain", 100), ("packed", 100), ("split", 70)]
    for form, bar in forms:
        reads = 0
        made = convolver(stored, None, form=form)
        for _ in range(3):
            assert snr_db(Plain(kernel, None)(x), made(x)) > bar
        assert reads == 1


@needs_splitting
def test_silence_and_missing_weights_stay_zero() -> None:
    kernel = seeded(16, 3, 8)
    kernel[3] = 0
    kernel[:, :, 5] = 0
    assert Split(kernel, None)(torch.zeros(1, 20, 8)).abs().max() < 1e-20
    y, expected = Split(kernel, None)(seeded(1, 20, 8)), Plain(kernel, None)(seeded(1, 20, 8))
    torch.testing.assert_close(y, expected, rtol=0, atol=0.01)


@needs_packing
def test_threads_share_a_layer() -> None:
    kernel = seeded(64, 7, 64) / 20
    shared, plain = convolver(kernel, None, form="split"), Plain(kernel, None)

    def run(length: int) -> float:
        x = seeded(1, length, 64, seed=length)
        return snr_db(plain(x), shared(x))

    with ThreadPoolExecutor(8) as pool:
        assert min(pool.map(run, [30, 40, 300, 30, 500, 40, 300, 500] * 2)) > 70


def test_without_the_operators_pytorchs_own_are_used(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, bias, x = seeded(8, 3, 6), seeded(8), seeded(1, 300, 6)
    expected = Plain(kernel, bias, dilation=2)(x)
    nothing: Any = types.SimpleNamespace(mkldnn=types.SimpleNamespace(), onednn=types.SimpleNamespace())
    monkeypatch.setattr(torch, "ops", nothing)
    assert not packs()
    assert not splits()
    made = convolver(kernel, bias, dilation=2, form="split")
    assert isinstance(made, Plain)
    torch.testing.assert_close(made(x), expected)
    low = Convolution(kernel, bias, dtype=torch.bfloat16)(x, {})
    torch.testing.assert_close(low, Convolution(kernel, bias)(x, {}), rtol=0.05, atol=0.1)


def test_operators_that_fail_or_are_wrong_are_not_used(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> Tensor:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(convolutions, "_packed", fail)
    assert not packs()
    assert not splits()
    packs.cache_clear()
    monkeypatch.setattr(convolutions.Packed, "__call__", lambda self, x: torch.zeros(1, 38, 32))
    assert not packs()


def test_without_amx_nothing_is_split(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not isinstance(convolver(seeded(8, 3, 6), None, form="split"), Split)


@pytest.mark.parametrize(
    ("isa", "emulated", "kernels", "found"),
    [
        (("avx512_bf16",), True, True, "bf16"),
        (("avx512_vnni",), True, True, "int16"),  # PyTorch emulates it, slowly
        (("avx2",), False, True, "int16"),
        (("avx2",), False, False, None),
    ],
)
def test_what_is_less_than_float32(
    isa: tuple[str, ...], emulated: bool, kernels: bool, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "detect", lambda: types.SimpleNamespace(isa=isa))
    monkeypatch.setattr(convolutions, "has_bf16", lambda: emulated)
    monkeypatch.setattr(convolutions.kernels, "available", lambda: kernels)
    assert convolutions.reduced() == found
