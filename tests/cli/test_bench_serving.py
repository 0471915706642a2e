"""`bench serving`: its options reach the benchmark, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from accelerator.benchmark.serving import ServingOptions
from accelerator.cli import app


def test_the_command_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from accelerator.benchmark import serving

    given: list[ServingOptions] = []
    monkeypatch.setattr(serving, "run", lambda options, report: given.append(options) or {"rows": 1})
    monkeypatch.setattr(serving, "to_markdown", lambda result: f"{result['rows']} row\n")
    monkeypatch.setattr(serving, "to_svg", lambda result: "<svg/>")
    file = tmp_path / "a.json"
    words = "serving --size tiny --scenario voice --scenario memory --full --precision int8 --rounds 2 --frames 9 "
    words += "--requests 8"
    result = CliRunner().invoke(app, ["bench", *words.split(), "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "1 row" in result.stdout
    assert json.loads(file.read_text()) == {"command": f"accelerator bench {words}", "rows": 1}
    chosen: dict[str, Any] = {"scenarios": ("voice", "memory"), "full": True, "precision": "int8"}
    assert given == [ServingOptions(size="tiny", rounds=2, frames=9, requests=8, **chosen)]
    assert CliRunner().invoke(app, ["bench", "--serving"]).exit_code == 0
    assert given[1] == ServingOptions()


@pytest.mark.parametrize(
    "words",
    [
        "--scenario voice",
        "--full",
        "serving --scenario speed",
        "serving --precision int8 --precision int4",
        "serving --context 64",
        "--serving --quick --full",
    ],
)
def test_the_command_refuses(words: str) -> None:
    result = CliRunner().invoke(app, ["bench", *words.split()])
    assert result.exit_code != 0
    assert "Traceback" not in result.output
