"""Huge pages: which memory is meant, and that the system moves it."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from accelerator.hardware.pages import PAGE, anonymous, collapse, huge_pages, subtract

MAPS = """\
55d0c8a00000-55d0c8a02000 r--p 00000000 fe:00 1234                       /usr/bin/python3
55d0c9000000-55d0c9800000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
7f0020000000-7f0020001000 ---p 00000000 00:00 0
7f0030000000-7f0030100000 rw-p 00000000 fe:00 99                         /tmp/weights (deleted)
7f0040000000-7f0040100000 rw-s 00000000 00:01 7                          /dev/zero (deleted)
7ffd10000000-7ffd10021000 rw-p 00000000 00:00 0                          [stack]
"""


def test_only_private_memory_without_a_file() -> None:
    assert anonymous(MAPS) == [(0x55D0C9000000, 0x55D0C9800000), (0x7F0000000000, 0x7F0010000000)]


@pytest.mark.parametrize(
    ("others", "left"),
    [
        ([], [(10, 20), (30, 40)]),
        ([(10, 20), (30, 40)], []),
        ([(0, 12), (18, 32), (39, 99)], [(12, 18), (32, 39)]),
        ([(13, 14), (15, 16)], [(10, 13), (14, 15), (16, 20), (30, 40)]),
        ([(20, 30)], [(10, 20), (30, 40)]),
    ],
)
def test_what_is_new(others: list[tuple[int, int]], left: list[tuple[int, int]]) -> None:
    assert subtract([(10, 20), (30, 40)], others) == left


def huge_bytes(address: int) -> int:
    """How much of the mapping that holds an address lies in huge pages."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no such mapping")


def allocate(pages: int) -> np.ndarray:
    """Filled memory in small pages; numpy's own arrays would ask for huge ones."""
    memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(memory, np.int64)
    array[:] = np.arange(len(array))
    return array


def can_collapse() -> bool:
    if sys.platform != "linux":
        return False
    memory = allocate(4)
    return collapse([(memory.ctypes.data, memory.ctypes.data + memory.nbytes)]) > 0


needs_huge_pages = pytest.mark.skipif(not can_collapse(), reason="this system has no huge pages to give")


@needs_huge_pages
def test_memory_filled_within_the_block_moves_and_keeps_what_it_holds() -> None:
    with huge_pages():
        weights = allocate(16)
        assert huge_bytes(weights.ctypes.data + 8 * PAGE) == 0
    assert huge_bytes(weights.ctypes.data + 8 * PAGE) >= 14 * PAGE
    np.testing.assert_array_equal(weights, np.arange(len(weights)))


@needs_huge_pages
def test_memory_from_before_stays() -> None:
    old = allocate(16)
    with huge_pages():
        pass
    assert huge_bytes(old.ctypes.data + 8 * PAGE) == 0


def test_other_systems_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("accelerator.hardware.pages.collapse", lambda spans: pytest.fail("called"))
    with huge_pages():
        pass
