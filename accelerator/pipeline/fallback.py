"""Fallback, in one place: each part of an engine is called through a route that knows both implementations.

A route calls what the part runs on; if that fails, or answers what cannot be right, it logs the traceback, records the
reason in the request's metrics and lets the original answer. A part that streams hands over at the item where it
failed: what was produced is kept, and the original continues from there. A part that fails `MAX_FAILURES` times in a
row is switched off for the process; a failure that the original shares is due to the request, and does not count. If
the original's audio is silent or clipped where the part's was, the engine means it: that check is retired, so that
later requests do not run both.

These are the only broad `except` clauses of the package, beside those that translate a library's errors into ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import BadOutput, BatchFailed, InvalidInput
from ..hardware.forks import Lock
from ..metrics import Meter, current_meter
from ..parts.part import Part
from .selection import Choice

__all__ = ["MAX_FAILURES", "Route"]

logger = logging.getLogger(__name__)

MAX_FAILURES = 3


class Route:
    """One part's implementations behind one call. Loads on first use; safe to call from several threads."""

    def __init__(self, part: Part, load: Callable[[Part], Choice]) -> None:
        self.part = part
        self._load = load
        self._lock = Lock()
        self._choice: Choice | None = None
        self._failures = 0
        self._retired: dict[str, str] = {}  # check of audio -> the message of the original's failure
        self.errors: list[str] = []

    def __call__(self, *args: Any, **options: Any) -> Any:
        """The part's answer: a value, or for a part that streams an iterator of items.

        exclusive: False where other calls run at the same time; the call then uses one thread.
        """
        return self._stream(*args, **options) if self.part.streams else self._once(*args, **options)

    def prepare(self, load: Callable[[Part], Choice] | None = None) -> Choice:
        """Export, load and probe unless done before. A failure is recorded, and the original goes on serving the part.

        load: used instead of the route's own, even if the part was loaded before.
        """
        with self._lock:
            if self._choice is None or load is not None:
                try:
                    self._choice = (load or self._load)(self.part)
                except Exception as error:
                    logger.warning("%s stays as it was: %s", self.part.name, error, exc_info=True)
                    self.errors.append(_describe(error))
                    self._choice = Choice(None, f"preparing it failed: {_describe(error)}", type(error).__name__)
                    current_meter().fell_back(self.part.name, error)
            return self._choice

    @property
    def choice(self) -> Choice | None:
        """What was decided, or None before the first use."""
        return self._choice

    def status(self) -> dict[str, Any]:
        """What runs here and why; JSON-able."""
        choice = self._choice
        if choice is None:
            return {"backend": self.part.runs_on, "reason": "not prepared yet", "errors": []}
        return {
            "backend": choice.backend or self.part.runs_on,
            "reason": choice.reason,
            "precision": choice.precision if choice.call is not None else None,
            "options": choice.options.to_dict() if choice.options else None,
            "probe": dict(choice.probe),
            "exports": {
                name: {
                    "precision": export.precision,
                    "cache": "built" if export.entry.created else "hit",
                    "layer": export.entry.layer,
                    "path": str(export.path),
                    "proof": dict(export.proof),
                    "rejected": [dict(each) for each in export.rejected],
                }
                for name, export in choice.exports.items()
            },
            **({"pruned": dict(choice.pruned)} if choice.pruned else {}),
            "retired_checks": dict(self._retired),
            "errors": list(self.errors),
        }

    def close(self) -> None:
        """Drop what was loaded; the part stays as it was."""
        with self._lock:
            self._choice = Choice(None, "closed", "Closed")

    def _once(self, *args: Any, exclusive: bool = True, **options: Any) -> Any:
        choice, meter, failure = self.prepare(), current_meter(), None
        call = choice.call if exclusive else choice.shared or choice.call
        if call is None:
            meter.stays(self.part.name, choice.cause, choice.reason)
        else:
            try:
                with meter.stage(self.part.stage):
                    answer = call(*args, **options)
                self._check(answer)
            except InvalidInput:
                raise
            except Exception as error:
                failure = self._failed(error, meter)
            else:
                return self._succeeded(answer, meter, choice)
        meter.used(self.part.name, self.part.runs_on, own=True)
        with meter.stage(self.part.stage):
            answer = _after(failure, lambda: self.part.original(*args, **options))
        self._compare(failure, answer)
        return answer

    def _stream(self, *args: Any, resume: list[Any] | None = None, **options: Any) -> Iterator[Any]:
        items, failure = list(resume or ()), None
        choice, meter = self.prepare(), current_meter()
        call = choice.call
        if call is None:
            meter.stays(self.part.name, choice.cause, choice.reason)
        else:
            # Only what `call` raises is a failure of the part, not what a consumer throws at a yield.
            produced = _lazily(lambda: call(*args, resume=list(items), **options))
            while True:
                try:
                    item = self._next(produced, meter)
                except StopIteration:
                    if items:
                        self._succeeded(None, meter, choice)
                        return
                    failure = self._failed(BadOutput(f"{self.part.name} answered with nothing"), meter)
                    break
                except InvalidInput:
                    raise
                except Exception as error:
                    failure = self._failed(error, meter)
                    break
                meter.used(self.part.name, choice.backend or self.part.runs_on)
                items.append(item)
                yield item
        produced = _lazily(lambda: self.part.original(*args, resume=list(items), **options))
        meter.used(self.part.name, self.part.runs_on, own=True)
        uncounted = failure
        while True:
            try:
                with meter.stage(self.part.stage):
                    item = _after(failure, lambda: next(produced))
            except StopIteration:
                if uncounted is not None and items:
                    self._count(uncounted)
                return
            self._compare(uncounted, item)
            uncounted = None
            yield item

    def _next(self, produced: Iterator[Any], meter: Meter) -> Any:
        with meter.stage(self.part.stage):
            item = next(produced)
        self._check(item)
        return item

    def _succeeded(self, answer: Any, meter: Meter, choice: Choice) -> Any:
        self._failures = 0
        meter.used(self.part.name, choice.backend or self.part.runs_on)
        return answer

    def _failed(self, error: Exception, meter: Meter) -> Exception:
        logger.warning("%s failed, the original takes over: %s", self.part.name, error, exc_info=True)
        meter.fell_back(self.part.name, error)
        self.errors.append(_describe(error))
        del self.errors[:-10]
        return error

    def _check(self, answer: Any) -> None:
        try:
            self.part.check(answer)
        except BadOutput as error:
            if error.check not in self._retired:
                raise

    def _compare(self, failure: Exception | None, answer: Any) -> None:
        """Judge a failure once the original has answered instead."""
        if failure is None:
            return
        try:
            self._check(answer)
        except BadOutput as error:
            if error.check is not None and isinstance(failure, BadOutput) and failure.check == error.check:
                self._retired[error.check] = str(error)
                logger.warning(
                    "%s: the original is %s, too (%s): not checked any more",
                    self.part.name,
                    error.check,
                    error,
                )
        else:
            self._count(failure)

    def _count(self, error: Exception) -> None:
        """The original has served what the part could not: switch the part off after too many failures in a row."""
        with self._lock:
            if isinstance(error, BatchFailed):
                if error.counted:
                    return  # one failed run, reported by all of its sequences
                error.counted = True
            self._failures += 1
            if self._failures >= MAX_FAILURES and self._choice is not None and self._choice.call is not None:
                logger.error(
                    "%s failed %d times in a row: switched off for this process", self.part.name, self._failures
                )
                reason = f"switched off after {self._failures} failures: {_describe(error)}"
                self._choice = Choice(None, reason, type(error).__name__)


def _after(failure: Exception | None, call: Callable[[], Any]) -> Any:
    """Call the original; if it fails too, the error names both."""
    try:
        return call()
    except Exception as error:
        if failure is not None and error.__cause__ is None and not isinstance(error, StopIteration):
            raise error from failure
        raise


def _lazily(call: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    yield from call()


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
