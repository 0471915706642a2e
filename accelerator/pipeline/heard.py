"""What a listening test said of an engine as it runs here, kept beside its exports: `accelerator bench quality`.

A verdict holds for what was heard: for exactly these exports, on these backends. Whoever runs anything else has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..cache import ContentCache, make_key
from ..runtime.providers import short
from .fallback import Route

__all__ = ["NOTE", "described", "recalled", "remember"]

NOTE = "heard"
_FIGURES = ("word_error_rate", "opinion")


def remember(cache: ContentCache, engine: str, routes: Mapping[str, Route], note: Mapping[str, Any]) -> bool:
    """Keep a verdict on an engine whose parts are prepared; False if it cannot be kept.

    note: engine, checkpoint, sentences, recogniser, verdict, and the differences to the original with their intervals:
    word_error_rate and opinion.
    """
    key = _key(engine, routes)
    return key is not None and cache.write_note(key, NOTE, note)


def recalled(cache: ContentCache, engine: str, routes: Mapping[str, Route]) -> dict[str, Any] | None:
    """The verdict on these parts as they run, or None."""
    key = _key(engine, routes)
    return None if key is None else cache.read_note(key, NOTE)


def described(note: Mapping[str, Any]) -> str:
    """A verdict in a line. Raises KeyError, TypeError or ValueError for what is none."""
    errors, opinion = ([float(value) for value in note[figure]] for figure in _FIGURES)
    more, low, high = (100 * value for value in errors)
    return (
        f"{note['verdict']}: word error rate {more:+.1f} points [{low:+.1f}, {high:+.1f}] by {note['recogniser']}, "
        f"DNSMOS {opinion[0]:+.2f} [{opinion[1]:+.2f}, {opinion[2]:+.2f}], {note['sentences']} sentences"
    )


def _key(engine: str, routes: Mapping[str, Route]) -> str | None:
    """Of what makes the sound. None where it is not decided yet, or nothing is replaced.

    A part that only a recording needs, and that was not called, is no part of it.
    """
    runs: dict[str, Any] = {}
    for name, route in routes.items():
        if route.part.stage == "reference":
            continue
        if (choice := route.choice) is None:
            return None
        if choice.call is not None:
            dtype = None if choice.options is None else choice.options.dtype
            exports = {each: export.entry.key for each, export in choice.exports.items()}
            runs[name] = {"backend": choice.backend, "dtype": dtype, "exports": exports}
            if choice.options is not None and (on := short(choice.options.providers)):
                runs[name]["provider"] = on
    return make_key(heard=engine, runs=runs) if runs else None
