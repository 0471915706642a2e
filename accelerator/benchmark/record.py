"""What every result says of its run: when, with which options, on what, and how idle that was."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from .machine import BusyClock, busy_warning, describe_machine, others_warning

__all__ = ["Record"]


class Record:
    """A run, which begins when this is made. report: told of what disturbs the figures."""

    def __init__(self, kind: str, schema: int, report: Callable[[str], None]) -> None:
        self._kind, self._schema, self._report = kind, schema, report
        self._machine, self._began, self._clock = describe_machine(), time.time(), BusyClock()
        self._warnings: list[str] = []
        self._warn(busy_warning(self._machine))

    def result(self, plan: Mapping[str, Any], **figures: Any) -> dict[str, Any]:
        """The JSON-able result of a run that ends now. plan: as JSON has it, with its `options`."""
        self._machine["others_cpus"] = self._clock.others_cpus()
        self._warn(others_warning(self._machine))
        return {
            "schema": self._schema,
            "kind": self._kind,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._began)),
            "elapsed_s": time.time() - self._began,
            "options": plan["options"],
            "plan": {name: value for name, value in plan.items() if name != "options"},
            "machine": self._machine,
            "warnings": self._warnings,
            **figures,
        }

    def _warn(self, warning: str | None) -> None:
        if warning:
            self._warnings.append(warning)
            self._report(f"warning: {warning}")
