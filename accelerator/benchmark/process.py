"""One arm's process, as the benchmark sees it: questions as JSON lines down its stdin, answers up its stdout."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from ..errors import EngineError

__all__ = ["ArmFailed", "ArmGone", "Process"]

_MODULE = "accelerator.benchmark.worker"
_PATIENCE_S = 3600.0  # for one answer; exporting a large engine on a small machine takes many minutes


class ArmFailed(EngineError):
    """An arm answered a question with an error; its process goes on."""


class ArmGone(ArmFailed):
    """An arm's process ended, or was ended because it did not answer."""


class Process:
    """A started worker. `started`: `time.perf_counter()` just before. progress: told what the worker reports.

    module: the worker's, which is run.
    """

    def __init__(
        self, progress: Callable[[str], None], *, patience_s: float = _PATIENCE_S, module: str = _MODULE
    ) -> None:
        self._progress, self._patience_s = progress, patience_s
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - see close
        # The engine may have been made importable by the caller's sys.path alone.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self.started = time.perf_counter()
        self._child = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path},
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name="benchmark-reader", daemon=True)
        self._reader.start()

    def ask(self, do: str, **arguments: Any) -> Any:
        """The worker's answer. Raises ArmFailed if that is an error, ArmGone if there is none."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._child.stdin.flush()
        except OSError as error:
            raise self._gone() from error
        while True:
            try:
                line = self._lines.get(timeout=self._patience_s)
            except queue.Empty:
                self.close()
                raise ArmGone(f"no answer to {do!r} for {self._patience_s:g} s: the process was ended") from None
            if line is None:
                raise self._gone()
            message = json.loads(line)
            if "progress" in message:
                self._progress(message["progress"])
            elif "error" in message:
                raise ArmFailed(message["error"])
            else:
                return message["answer"]

    def close(self) -> None:
        """End the process and free its pipes."""
        with contextlib.suppress(OSError):
            if self._child.stdin is not None:
                self._child.stdin.close()  # the worker ends at the end of its input
        try:
            self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._reader.join(timeout=5)
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._errors.close()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _gone(self) -> ArmGone:
        status = self._child.wait()
        self._errors.seek(0)
        last = [line.strip() for line in self._errors.read().splitlines() if line.strip()][-1:]
        cause = f"signal {-status}" if status < 0 else f"status {status}"
        hint = "; the system may have run out of memory" if status == -9 else ""
        return ArmGone(f"the process ended with {cause}{hint}{''.join(f': {line}' for line in last)}")
