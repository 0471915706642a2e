"""Lists of CPUs and sizes as the kernel writes them."""

from __future__ import annotations

import pytest

from accelerator.hardware.parse import cpu_list, size


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-3,8\n", {0, 1, 2, 3, 8}),
        ("", set()),
        (None, set()),
        ("5", {5}),
        ("3-1", set()),
        ("0-70000", set()),
        ("x,2", {2}),
    ],
)
def test_cpu_list(text: str | None, cpus: set[int]) -> None:
    assert cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("text", "value"), [("48K\n", 49152), ("32 MB", 32 << 20), ("16 kB", 16384), ("7", 7), ("0K", None), ("K", None)]
)
def test_size(text: str, value: int | None) -> None:
    assert size(text) == value
