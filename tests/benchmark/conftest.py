"""Workers of the serving benchmark that answer at once."""

from __future__ import annotations

import pytest

from accelerator.benchmark.process import ArmFailed
from tests.benchmark.workers import FakeProcess


@pytest.fixture
def fake() -> type[FakeProcess]:
    class Fake(FakeProcess):
        log: list[str] = []  # noqa: RUF012 - of this test alone
        faults: dict[str, ArmFailed] = {}  # noqa: RUF012

    return Fake
