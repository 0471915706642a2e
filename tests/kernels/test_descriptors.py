"""What compiled code reads by name, where it finds weights and values, and how it chooses among variants of a loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from accelerator import kernels
from accelerator.kernels import descriptors, tiles

if not kernels.available():
    pytest.skip("compiled kernels need AVX2 and numba", allow_module_level=True)

from llvmlite import ir
from numba import njit

from accelerator.kernels import vectors, views


@njit
def _advance(plan, layer, frame):  # type: ignore[no-untyped-def]
    views.plan_at(plan).head.tiles += views.layer_at(layer).down.bits
    views.frame_at(frame).next += 1
    return views.plan_at(plan).eps, views.layer_at(layer).down.rows


def test_fields_have_one_name_in_python_and_in_compiled_code() -> None:
    plan, frame = np.zeros((), descriptors.PLAN), np.zeros((), descriptors.FRAME)
    layers = np.zeros(3, descriptors.LAYER)
    plan["eps"], plan["head"]["tiles"], frame["next"] = 0.25, 7, 4
    layers[2]["down"]["bits"], layers[2]["down"]["rows"] = 8, 41
    last = layers.ctypes.data + 2 * layers.itemsize
    assert _advance(plan.ctypes.data, last, frame.ctypes.data) == (0.25, 41)
    assert (plan["head"]["tiles"], frame["next"], frame["plan"]) == (15, 5, 0)


@njit
def _of_a_tuple(address):  # type: ignore[no-untyped-def]
    plan = views.snake_at(address)
    return plan.channels, plan.y_is_bf16


def test_a_codecs_layer_is_told_by_a_tuple() -> None:
    numbers = np.array(descriptors.Snake(1, 2, 3, channels=96, x_is_bf16=False, y_is_bf16=True), np.int64)
    assert _of_a_tuple(numbers.ctypes.data) == (96, 1)


@njit
def _layouts(block, bits, channels):  # type: ignore[no-untyped-def]
    return views.block_layout(block, bits), views.order_scratch(channels), views.square_place(3, 4, 2, 1, 3)


@pytest.mark.parametrize(
    ("block", "bits", "expected"), [(64, 4, (512, 544, 560)), (32, 8, (512, 544, 560)), (256, 8, (4096, 4128, 4144))]
)
def test_compiled_code_finds_what_python_packs(block: int, bits: int, expected: tuple[int, int, int]) -> None:
    assert tiles.block_layout(block, bits) == expected
    assert _layouts(block, bits, 96) == (expected, tiles.order_scratch(96), 31)


def _store(number: int) -> Any:
    def generate(c: vectors.Code, address: Any, value: Any) -> None:
        c.put(c.b.add(value, c.number(number)), address, 8)

    return generate


def test_a_switch_runs_one_case_or_the_last() -> None:
    shared = _store(200)
    chosen = vectors.function(
        4,
        vectors.switch(
            {4: vectors.switch({1: _store(100), 2: shared, 3: shared}), 8: vectors.switch({1: _store(300)})}
        ),
    )

    @njit
    def run(bits, rows, address, value):  # type: ignore[no-untyped-def]
        chosen(bits, rows, address, value)

    out = np.zeros(1, np.int64)
    found = {}
    for bits, rows in ((4, 1), (4, 2), (4, 3), (4, 9), (8, 1), (16, 1)):
        run(bits, rows, out.ctypes.data, 5)
        found[bits, rows] = int(out[0])
    assert found == {(4, 1): 105, (4, 2): 205, (4, 3): 205, (4, 9): 205, (8, 1): 305, (16, 1): 305}


def test_cases_of_the_same_generator_share_its_code() -> None:
    written = []

    def generate(c: vectors.Code) -> None:
        written.append(c)

    kind = ir.FunctionType(ir.VoidType(), [vectors.I64])
    made = ir.Function(ir.Module(), kind, "made")
    code = vectors.Code(ir.IRBuilder(made.append_basic_block()))
    vectors.switch({1: generate, 2: generate, 3: lambda c: None})(code, made.args[0])
    assert len(written) == 1
    assert len(made.blocks) == 4
