"""Figures of rounds, and ratios pair by pair."""

from __future__ import annotations

import pytest

from accelerator.benchmark.statistics import ratio, summarize


def test_summarize_gives_linear_quartiles_and_keeps_the_rounds() -> None:
    figures = summarize([4.0, 1.0, None, 3.0, 2.0, 10.0], "s")
    assert figures == {
        "median": 3.0,
        "min": 1.0,
        "max": 10.0,
        "p25": 2.0,
        "p75": 4.0,
        "n": 5,
        "unit": "s",
        "values": [4.0, 1.0, None, 3.0, 2.0, 10.0],
    }


@pytest.mark.parametrize("values", [[], [None, None]])
def test_nothing_measured_is_no_figure(values: list[float | None]) -> None:
    assert summarize(values, "s") is None


def test_ratios_are_taken_pair_by_pair() -> None:
    # The machine slows down fourfold in round 2: pairs do not see it, and the quotient of medians is another number.
    figures = ratio([10.0, 40.0, 12.0], [5.0, 20.0, 4.0])
    assert figures is not None
    assert figures["values"] == [2.0, 2.0, 3.0]
    assert figures["median"] == 2.0
    assert figures["median"] != 12.0 / 5.0


def test_ratios_leave_out_rounds_that_lack_either() -> None:
    figures = ratio([10.0, None, 9.0, 8.0], [5.0, 2.0, None])
    assert figures is not None
    assert figures["values"] == [2.0, None, None]
    assert figures["n"] == 1
    assert ratio([1.0], []) is None
