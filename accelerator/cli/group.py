"""The command group: every way a command can end, and its exit code.

0 done    1 an error of ours, said in one line    2 wrong usage    130 interrupted    141 nobody reads the output
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import AcceleratorError
from .console import BROKEN_PIPE, INTERRUPTED, Output
from .streams import Unprintable, foreign_bytes, safe_streams, silence

__all__ = ["Command", "Commands", "Listing"]

_ENDLESS = 1000  # more letters than a sentence of help has

# Newer versions of typer bring their own click, older ones use the package: ask typer.
_ClickException: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class Command(TyperCommand):
    """A command whose texts are texts. Names of files may be any bytes, and are paths by now."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest, parameters = list(super().parse_args(ctx, args)), list[Any](self.params)
        for param in parameters:
            value = ctx.params.get(param.name)
            for text in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(text, str) and (found := foreign_bytes(text)) is not None:
                    encoding = sys.getfilesystemencoding().upper()
                    said = f"the byte 0x{found[1]:02X} at position {found[0]} is not {encoding}"
                    raise typer.BadParameter(f"{said}: convert the text first, as iconv does", ctx=ctx, param=param)
        return rest


class Listing(TyperGroup):
    """A group whose help says of each command a whole sentence, on several lines where the terminal is narrow."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Refuses a command that there is not with those that there are."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            near = get_close_matches(args[0], known, n=1)
            meant = f": did you mean {near[0]}?" if near else "."
            ctx.fail(f"There is no command {args[0]!r}{meant} The commands are {', '.join(known)}.")
        return super().resolve_command(ctx, args)

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
        safe_streams()
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
            except BrokenPipeError:
                code = BROKEN_PIPE
            except Unprintable as error:
                code = _unprintable(out, error)
            code = _flush(out, code if isinstance(code, int) else 0)
        if not standalone_mode:
            return code
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; the errors it may end with become exit codes."""
        out: Output = ctx.obj
        try:
            return super().invoke(ctx)
        except (_ClickException, typer.Exit, typer.Abort, Unprintable):
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


def _unprintable(out: Output, error: Unprintable) -> int:
    out.note(f"Error: stdout cannot be written ({error.strerror}): send what is printed elsewhere", style="bold red")
    return 1


def _flush(out: Output, code: int) -> int:
    """What is still buffered goes out now, since Python tells of what cannot be written at exit otherwise."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = BROKEN_PIPE
        silence(sys.stdout)
    except Unprintable as error:
        code = code or _unprintable(out, error)
        silence(sys.stdout)
    return code
