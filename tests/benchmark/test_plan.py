"""What is measured, in which order, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accelerator.benchmark import BenchOptions
from accelerator.benchmark.plan import Measure, Plan, arms_of, metrics_of, schedule
from accelerator.errors import InvalidOption


@pytest.mark.parametrize(
    "wrong",
    [
        {"precisions": ("int3",)},
        {"precisions": ("int8", "int8")},
        {"contexts": (200, 200)},
        {"contexts": ()},
        {"rounds": 0},
        {"frames": 1},
        {"threads": 0},
        {"engine": "fish-speech"},
        {"proof": "none"},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        BenchOptions(**wrong)


def test_a_plan_survives_json() -> None:
    plan = Plan.of(BenchOptions(checkpoint=Path("a"), cache_dir=Path("b"), threads=2))
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_full_plan_measures_what_is_promised() -> None:
    plan = Plan.of(BenchOptions())
    assert arms_of(plan, as_shipped=True) == [
        "as-shipped",
        "pytorch-right-sized",
        "onnxruntime-fp32",
        "onnxruntime-int8",
        "onnxruntime-int4",
    ]
    compiled = arms_of(Plan.of(BenchOptions(compiled=True)), as_shipped=False)
    assert compiled[:2] == ["pytorch-right-sized", "pytorch-compiled"]
    names = {row.name for row in metrics_of(plan)}
    for context in (200, 1500):
        assert {f"frame_{context}{part}" for part in ("", "_slow", "_fast", "_sampling")} <= names
    assert {"prefill_200", "prefill_1500", "decode_2s", "decode_10s", "encode_10s", "rtf", "load"} <= names
    assert "peak_memory" in names


def test_arms_are_interleaved() -> None:
    a, b = Measure("decode", 2), Measure("encode", 10)
    assert list(schedule(2, [a, b], "XY", resident=True)) == [
        *[(0, a, "X"), (0, a, "Y"), (0, b, "X"), (0, b, "Y")],
        *[(1, a, "X"), (1, a, "Y"), (1, b, "X"), (1, b, "Y")],
    ]
    assert list(schedule(2, [a, b], "XY", resident=False)) == [
        *[(0, a, "X"), (0, b, "X"), (0, a, "Y"), (0, b, "Y")],
        *[(1, a, "X"), (1, b, "X"), (1, a, "Y"), (1, b, "Y")],
    ]
