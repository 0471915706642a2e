"""The process of one arm: `python -m accelerator.benchmark.worker`, driven by `process.Process`.

A question is a JSON object with `do`: prepare, open, tune, measure or memory; an answer is {"answer": ...} or
{"error": reason}, with {"progress": text} in between. The end of stdin ends the process.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from .machine import memory
from .plan import Measure, Plan

__all__ = ["Worker", "main", "serve"]


class Worker:
    """Answers questions about one arm. Torch is imported with the first of them, not before."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._arm: Any = None

    def prepare(self, plan: dict[str, Any], scratch: str) -> dict[str, Any]:
        from .arms import prepare

        return prepare(Plan.from_dict(plan), Path(scratch), self._say)

    def open(self, plan: dict[str, Any], arm: str, weights: str | None) -> dict[str, Any]:
        from .arms import open_arm

        self._arm = open_arm(Plan.from_dict(plan), arm, Path(weights) if weights else None)
        return {"notes": self._arm.notes, "spin_us": self._arm.spin_us}

    def tune(self, plan: dict[str, Any], threads: dict[str, int] | None) -> dict[str, Any]:
        """Use these threads, or find the best ones."""
        from .measure import tune

        self._arm.threads = threads or tune(self._arm, Plan.from_dict(plan))
        return {"threads": self._arm.threads, "frame_s": self._arm.frame_s}

    def measure(self, measure: dict[str, Any], frames: int, text: str) -> dict[str, float]:
        from .measure import take

        return take(self._arm, Measure(**measure), frames=frames, text=text)

    def memory(self) -> dict[str, int]:
        return memory()


def serve(questions: TextIO, answers: TextIO, make: Callable[[Callable[[str], None]], Any] = Worker) -> None:
    """Answer until the questions end. make: the worker, whose methods they name."""

    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    worker = make(lambda text: send({"progress": text}))
    for line in questions:
        question = json.loads(line)
        try:
            answer = getattr(worker, question.pop("do"))(**question)
        except Exception as error:  # an arm that fails is a result, and the next question may be answerable
            traceback.print_exc()
            send({"error": f"{type(error).__name__}: {error}"})
        else:
            send({"answer": answer})


def main(make: Callable[[Callable[[str], None]], Any] = Worker) -> None:
    # Engines print to stdout as they please: the pipe is kept for answers, and everything else goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    serve(sys.stdin, answers, make)


if __name__ == "__main__":
    main()
