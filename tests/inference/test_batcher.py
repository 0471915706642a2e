"""Queue, leader, rows and failures, with a model that is nothing but counters: one more stepper is one more model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from accelerator.errors import BatchFailed, GenerationError
from accelerator.inference.batcher import Batcher
from accelerator.inference.sequence import Lane, Row
from accelerator.inference.transformer import StepTimes


class Counters:
    """A state: one number a row, and how often it was enlarged."""

    def __init__(self, rows: int) -> None:
        self.values = np.zeros(rows, np.int64)

    @property
    def rows(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return 100 * self.rows

    def make_rows(self, rows: int) -> None:
        self.values = np.pad(self.values, (0, rows - self.rows))

    def reserve(self, positions: int) -> None:
        pass

    def move(self, source: int, target: int) -> None:
        self.values[target] = self.values[source]


class Counting:
    """Begins at the prompt's number and adds one a step; ends at a multiple of 10, refuses 13 and breaks at 666."""

    invariant = True

    def __init__(self) -> None:
        self.widths: list[int] = []
        self.leaders: set[int] = set()
        self.working = threading.Lock()

    def state(self, rows: int, positions: int) -> Counters:
        return Counters(rows)

    def positions(self, row: Row) -> int:
        return 0

    def row_bytes(self, states: Sequence[Counters], row: Row) -> int:
        return 100

    def prefill(self, row: Row) -> Callable[[Counters, int], None]:
        begin = int(row.prompt[0, 0])
        if begin < 0:
            raise GenerationError("below zero")

        def run(state: Counters, first: int) -> None:
            state.values[first] = begin

        return run

    def step(self, lane: Lane[Counters]) -> None:
        assert self.working.acquire(blocking=False), "two leaders"
        self.widths.append(lane.width)
        self.leaders.add(threading.get_ident())
        lane.state.values[: lane.width] += 1
        self.working.release()
        if 666 in lane.state.values:
            raise ValueError("the beast")

    def draw(self, lane: Lane[Counters]) -> None:
        for row, value in zip(lane.sequences, lane.state.values, strict=False):
            if value == 13:
                row.fail(GenerationError("unlucky"))
            else:
                row.emit(np.array([value]), ended=value % 10 == 0)

    def renew(self) -> None:
        pass


def row_of(begin: int, most: int = 100, batching: Any = "on") -> Row:
    return Row(np.array([[begin]]), (), None, most, batching, StepTimes())  # type: ignore[arg-type]


def numbers(batcher: Batcher, *args: Any) -> list[int]:
    return [int(frame[0]) for frame in batcher.run(row_of(*args))]


@pytest.mark.parametrize("batching", ["off", "invariant", "on"])
def test_rows_of_any_length_join_and_leave(batching: str) -> None:
    batcher = Batcher(Counting(), rows=4)
    begins = [21, 5, 38, 101, 17, 66, 90, 4, 49]
    expected = [list(range(begin, begin // 10 * 10 + (11 if begin % 10 else 1))) for begin in begins]
    streams = [batcher.run(row_of(begin, 100, batching)) for begin in begins]
    taken = [[int(next(stream)[0])] for stream in streams[:3]]
    taken += [[] for _ in streams[3:]]
    for own, stream in zip(taken, streams, strict=True):
        own.extend(int(frame[0]) for frame in stream)
    assert taken == expected
    assert batcher.busy == 0
    assert max(batcher.stepper.widths) == (1 if batching == "off" else 3)  # type: ignore[attr-defined]


def test_one_leads_and_all_others_follow() -> None:
    stepper = Counting()
    batcher, answers = Batcher(stepper), dict[int, list[int]]()
    gate = threading.Barrier(6)

    def work(begin: int) -> None:
        gate.wait()
        answers[begin] = numbers(batcher, begin, 400)

    threads = [threading.Thread(target=work, args=(begin,)) for begin in range(701, 707)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {begin: list(range(begin, 711)) for begin in range(701, 707)}
    assert stepper.leaders <= {thread.ident for thread in threads}


def test_what_cannot_begin_fails_alone() -> None:
    batcher = Batcher(Counting())
    good = batcher.run(row_of(31))
    assert int(next(good)[0]) == 31
    with pytest.raises(GenerationError, match="below zero"):
        next(batcher.run(row_of(-1)))
    assert [int(frame[0]) for frame in good] == list(range(32, 41))


def test_a_row_that_fails_on_its_way_fails_alone() -> None:
    batcher = Batcher(Counting())
    good, unlucky = batcher.run(row_of(31)), batcher.run(row_of(11))
    assert [int(next(each)[0]) for each in (good, unlucky, unlucky)] == [31, 11, 12]
    with pytest.raises(GenerationError, match="unlucky"):
        next(unlucky)
    assert [int(frame[0]) for frame in good] == list(range(32, 41))


def test_a_step_that_fails_is_an_error_for_all_rows_in_it_and_none_later() -> None:
    batcher = Batcher(Counting())
    streams = [batcher.run(row_of(begin)) for begin in (664, 51)]
    for stream in streams:
        next(stream)
    for stream in streams:
        with pytest.raises(BatchFailed, match="2 sequences failed: ValueError: the beast"):
            list(stream)
    with pytest.raises(ValueError, match="the beast"):
        list(batcher.run(row_of(665)))
    assert numbers(batcher, 8) == [8, 9, 10]


def test_who_finds_no_row_or_memory_waits() -> None:
    for how, most in (({"rows": 2}, 2), ({"cache_bytes": 300}, 3), ({"cache_bytes": 1}, 1)):
        batcher = Batcher(Counting(), **how)
        streams = [batcher.run(row_of(1, 6)) for _ in range(5)]
        for stream in streams:
            next(stream)
        for stream in streams:
            assert [int(frame[0]) for frame in stream] == [2, 3, 4, 5, 6]
        assert max(batcher.stepper.widths) == most  # type: ignore[attr-defined]


def test_closing_a_stream_frees_its_row() -> None:
    batcher = Batcher(Counting(), rows=2)
    first, second, third = (batcher.run(row_of(1)) for _ in range(3))
    next(first), next(second)
    first.close()
    assert batcher.busy == 1
    assert int(next(third)[0]) == 1
    assert batcher.busy == 2
