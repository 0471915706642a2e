"""`demo --play`: the first player there is, and none."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

from accelerator.cli import app
from accelerator.cli import demo as cli_demo
from accelerator.cli.console import Output


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list:
    played: list = []

    def play(command: list[str], check: bool) -> types.SimpleNamespace:
        played.append(command)
        return types.SimpleNamespace(returncode=1 if "bad" in command[-1] else 0)

    monkeypatch.setattr(cli_demo.subprocess, "run", play)
    monkeypatch.setattr(cli_demo.sys, "platform", "linux")
    return played


def test_with_the_first_player_there_is(played: list, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli_demo.shutil, "which", lambda name: name if name in ("aplay", "ffplay") else None)
    cli_demo._play(Output(), cli_demo._player(), Path("a.wav"))
    assert played == [["aplay", "-q", "a.wav"]]


def test_says_when_it_cannot(played: list, capsys: pytest.CaptureFixture[str]):
    cli_demo._play(Output(), ("afplay",), Path("bad.wav"))
    assert "afplay could not play bad.wav" in capsys.readouterr().err


def test_refuses_before_the_work_without_a_player(played: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(cli_demo.shutil, "which", lambda name: None)
    result = CliRunner().invoke(app, ["demo", "--play", "-o", str(tmp_path / "demo.wav"), "--json"])
    assert result.exit_code == 1
    assert "none is installed" in json.loads(result.stdout)["error"]["message"]
    assert not list(tmp_path.iterdir())
