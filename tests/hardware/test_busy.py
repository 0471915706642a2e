"""How busy others keep the machine: figures from fixed readings of the clock."""

from __future__ import annotations

from typing import Any

import pytest

from accelerator.hardware.busy import BusyClock


@pytest.mark.parametrize(
    ("wall", "busy", "ours", "expected"),
    [
        (2.0, 3.0, 1.0, 1.0),  # two seconds in which others had two
        (4.0, 1.0, 1.0, 0.0),
        (4.0, 1.0, 1.01, 0.0),  # the two counters do not tick together
        (0.1, 0.01, 0.0, None),  # one tick over a moment: nothing can be said
        (0.0, 0.01, 0.0, None),
    ],
)
def test_what_others_used(
    monkeypatch: pytest.MonkeyPatch, wall: float, busy: float, ours: float, expected: Any
) -> None:
    readings = iter([(10.0, 100.0, 7.0), (10.0 + wall, 100.0 + busy, 7.0 + ours)])
    monkeypatch.setattr(BusyClock, "_now", staticmethod(lambda: next(readings)))
    assert BusyClock().others_cpus() == expected


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BusyClock, "_now", staticmethod(lambda: None))
    assert BusyClock().others_cpus() is None
