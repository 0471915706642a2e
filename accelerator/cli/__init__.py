"""The command line: `accelerator doctor | demo | engines | voices | options | export | convert | tune | ...`.

Results go to stdout, everything else to stderr. Commands import what they need when they run, so that `--help` does not
wait for torch. `group` holds the exit codes, `console` the output, `options` what several commands share.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import bench, cache, convert, demo, doctor, export, synth, tune, voices
from .group import Command, Commands
from .options import BOTH_SPELLINGS, Debug, Verbose

__all__ = ["app", "main"]

app = typer.Typer(
    cls=Commands,
    help="Makes text-to-speech engines fast on CPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it takes "[default: ...]" for markup, and drops it
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"accelerator {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Makes text-to-speech engines fast on CPUs."""


app.command("doctor", cls=Command)(doctor.doctor)
app.command("demo", cls=Command, context_settings=BOTH_SPELLINGS)(demo.demo)
app.command("engines", cls=Command)(voices.engines)
app.command("voices", cls=Command)(voices.voices)
app.command("options", cls=Command)(voices.options)
app.command("export", cls=Command)(export.export)
app.command("synth", cls=Command, context_settings=BOTH_SPELLINGS)(synth.synth)
app.command("tune", cls=Command)(tune.tune)
app.add_typer(convert.app, name="convert")
app.add_typer(bench.app, name="bench")
app.add_typer(cache.app, name="cache")


def main() -> None:
    """The console script. Ends the process with the exit codes of `group`."""
    app()
