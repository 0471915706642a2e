"""Help and the values that options take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from accelerator.cli import app
from tests.cli.commands import run


def commands(group: Any, *path: str) -> Iterator[tuple[list[str], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)
        else:
            yield [*path, name], command


@pytest.mark.parametrize("path", [path for path, _ in commands(typer.main.get_command(app))], ids=" ".join)
def test_every_word_of_it_is_shown(path: list[str]):
    """Rich takes "[default: ...]" for markup, and shows nothing."""
    command = {tuple(p): c for p, c in commands(typer.main.get_command(app))}[tuple(path)]
    shown = "".join(run(*path, "--help").stdout.split())
    assert shown.startswith("Usage:")
    for option in command.params:
        if option.help:
            assert "".join(option.help.split()) in shown, option.name
        if isinstance(option.default, (str, int, float)) and not isinstance(option.default, bool):
            assert "[default:" in shown


def test_voice_is_a_name_everywhere():
    for path, command in commands(typer.main.get_command(app)):
        for option in command.params:
            assert "--speaker" not in option.opts, path
            if "--voice" in option.opts:
                assert "knows by name" in option.help, path


def test_engines_are_those_there_are():
    from accelerator.cli.options import ENGINES
    from accelerator.engines import CHECKPOINTS

    assert set(ENGINES.replace(" or ", ", ").split(", ")) == {"reference", *CHECKPOINTS}


def test_formats_are_those_there_are():
    from accelerator.audio.files import FORMATS

    assert ", ".join(FORMATS).replace(", m4a", " or m4a") in " ".join(run("synth", "--help").stdout.split())
