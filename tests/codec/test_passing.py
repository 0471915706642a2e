"""Memory of large arrays is used again, and never by two at once."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
import pytest

from accelerator.codec import passing as own
from accelerator.codec.passing import passing

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="left to the allocator here")
LARGE = (600, 1000)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    own._FREE.clear()
    yield
    own._FREE.clear()


def place(array: np.ndarray) -> int:
    return array.ctypes.data


def test_what_is_gone_is_used_again_also_for_less() -> None:
    first = passing(LARGE, np.float32)
    first[:] = 1.0
    where, part = place(first), first[5:]
    del first
    assert place(passing(LARGE, np.float32)) != where  # a part is still there
    assert part.sum() == 595_000
    own._FREE.clear()  # the other
    del part
    assert place(passing((550, 1000), np.float32)) == where


def test_two_at_once_have_memory_of_their_own() -> None:
    arrays = [passing(LARGE, np.float32) for _ in range(4)]
    for n, array in enumerate(arrays):
        array[:] = n
    assert [float(array.max()) for array in arrays] == [0.0, 1.0, 2.0, 3.0]


def test_what_is_far_larger_stays_for_those_who_need_it() -> None:
    where = place(passing((3000, 1000), np.float32))
    assert place(passing(LARGE, np.float32)) != where


def test_only_so_much_is_kept() -> None:
    arrays = [passing((3000, 1000), np.float32) for _ in range(5)]
    del arrays
    assert 0 < sum(map(len, own._FREE)) <= own._KEPT


def test_small_ones_are_left_to_the_allocator() -> None:
    assert passing((10, 10), np.uint16).base is None
