"""The group `bench`: which measurement is meant by a command line, and the command line as a record has it."""

from __future__ import annotations

import shlex
from typing import Any

import typer

from .group import Listing

__all__ = ["COMMAND", "WITH_PEERS", "Measures"]

COMMAND = f"{__name__}.command"  # in `ctx.meta`
WITH_PEERS = ("piper", "kokoro", "kitten", "spark-tts")  # engines of `benchmark.peers`, without importing it
_DEFAULT = "engine"
_MEASURES = ("serving", "quality", "recipes", "llama-cpp", "feed-forward", "peers")  # `--serving` is `bench serving`
_PLACES = ("--json", "--markdown", "--svg", "--cache-dir")  # where files go is no part of what was measured


class Measures(Listing):
    """Commands of which `engine` is meant where none is named, or `peers` for an engine that has some."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        asked = [name for name in _MEASURES if f"--{name}" in args]
        if len(asked) > 1:
            raise typer.BadParameter(f"these are {len(asked)} measurements: give one", param_hint=f"--{asked[1]}")
        if asked:
            args = [asked[0], *(word for word in args if word != f"--{asked[0]}")]
        elif not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = [_default(args), *args]
        ctx.meta[COMMAND] = _command(args)
        return list(super().parse_args(ctx, args))


def _default(args: list[str]) -> str:
    words = [part for word in args for part in word.split("=", 1)]  # "--engine piper" and "--engine=piper"
    engine = words[words.index("--engine") + 1 :][:1] if "--engine" in words else []
    return "peers" if set(engine) & set(WITH_PEERS) else _DEFAULT


def _command(words: list[str]) -> str:
    """The command line, as somebody else would give it."""
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if before not in _PLACES and word.partition("=")[0] not in _PLACES
    ]
    return shlex.join(["accelerator", "bench", *kept])
