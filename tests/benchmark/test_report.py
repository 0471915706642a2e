"""Figures as people read them."""

from __future__ import annotations

import pytest

from accelerator.benchmark.report import format_value


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0271, "s", "27.1 ms"),
        (0.00031, "s", "0.31 ms"),
        (2.5, "s", "2.50 s"),
        (134.6, "s", "135 s"),
        (59.71, "ratio", "59.7"),
        (3 * 2**30, "bytes", "3.00 GiB"),
        (285 * 2**20, "bytes", "285 MiB"),
        (0.0, "s", "0 ms"),
    ],
)
def test_figures_for_people(value: float, unit: str, text: str) -> None:
    assert format_value(value, unit) == text
