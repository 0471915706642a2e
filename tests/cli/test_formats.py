"""Sizes, times and plain values, as people and JSON read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from accelerator.cli import formats


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1024", 1024),
        ("12 B", 12),
        ("2G", 2 << 30),
        ("2g", 2 << 30),
        ("500M", 500 << 20),
        ("1.5GiB", 3 << 29),
        (" 1 KiB ", 1024),
        ("800MB", 800_000_000),
        ("1T", 1 << 40),
    ],
)
def test_sizes(text: str, count: int):
    assert formats.parse_size(text) == count


@pytest.mark.parametrize("text", ["", "G", "-1", "2X", "1e9", "2 G B", "iB", "5iB", "nan", "inf"])
def test_no_sizes(text: str):
    with pytest.raises(ValueError, match="is no size"):
        formats.parse_size(text)


def test_for_people():
    assert [formats.size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 MiB",
        "3.0 TiB",
    ]
    assert [formats.seconds(s) for s in (1e-5, 0.0123, 0.456, 2.5, 321.0, None, float("inf"))] == [
        "10 µs",
        "12.3 ms",
        "456 ms",
        "2.50 s",
        "321 s",
        "-",
        "-",
    ]
    assert formats.iso_time(0) == "1970-01-01T00:00:00Z"


def test_plain():
    value = {"a": (Path("/x"), np.float32(0.5), float("nan"), None, True), 1: np.int64(3)}
    assert formats.plain(value) == {"a": ["/x", 0.5, None, None, True], "1": 3}
