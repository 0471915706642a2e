"""The command group: every way a command can end, and its exit code.

0 done    1 an error of ours, said in one line    2 wrong usage    130 interrupted    141 nobody reads the output
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import AcceleratorError
from .console import BROKEN_PIPE, INTERRUPTED, Output

__all__ = ["Commands", "Listing"]

_ENDLESS = 1000  # more letters than a sentence of help has

# Newer versions of typer bring their own click, older ones use the package: ask typer.
_ClickException: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class Listing(TyperGroup):
    """A group whose help says of each command a whole sentence, on several lines where the terminal is narrow."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, command.get_short_help_str(limit=_ENDLESS)) for name, command in commands if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Commands(Listing):
    """Typer's group with our exit codes and messages. `ctx.obj` is the `Output` of the run."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        _make_streams_safe()
        arguments = sys.argv[1:] if args is None else list(args)
        out = Output(json=_wants_json(arguments))
        with out.logging():
            try:
                code = super().main(arguments, prog_name, complete_var, False, windows_expand_args, obj=out, **extra)
            except _ClickException as error:
                code = error.exit_code
                if out.json:
                    out.failed(error, code, hint="See --help.")
                else:
                    error.show()
            except typer.Abort as error:
                interrupted = isinstance(error.__cause__, KeyboardInterrupt)
                code = INTERRUPTED if interrupted else 1
                if not interrupted:
                    out.note("Nothing was done.")
            code = _flush(code if isinstance(code, int) else 0)
        if not standalone_mode:
            return code
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; the errors it may end with become exit codes."""
        out: Output = ctx.obj
        try:
            return super().invoke(ctx)
        except (_ClickException, typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise typer.Exit(BROKEN_PIPE) from None
        except (AcceleratorError, Exception) as error:
            out.failed(error)
            raise typer.Exit(1) from None


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether errors belong on stdout, also those of parsing. `bench` gives its --json a file."""
    given = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    command = next((word for word in given if not word.startswith("-")), "")
    return "--json" in given and command != "bench"


def _make_streams_safe() -> None:
    """Standard streams that are closed become empty ones; a character that a terminal lacks is replaced, not fatal."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _flush(code: int) -> int:
    """What is still buffered goes out now, since Python tells of a broken pipe at exit otherwise."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = BROKEN_PIPE
    if code == BROKEN_PIPE:
        with contextlib.suppress(OSError, ValueError):  # not a real file, as in tests
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
