"""`bench`: its options reach the benchmark, and its results the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.commands import TINY, run


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list:
    from accelerator import benchmark

    given = []

    def measure(options: object, report) -> dict:
        given.append(options)
        report("measuring")
        return {"rtf": float("inf"), "rows": (1, 2)}

    monkeypatch.setattr(benchmark, "run", measure)
    monkeypatch.setattr(benchmark, "to_markdown", lambda result: f"| {result['rows'][0]} |\n")
    monkeypatch.setattr(benchmark, "to_svg", lambda result: "<svg/>")
    return given


def test_passes_its_options_on(given: list, tmp_path: Path):
    files = {name: tmp_path / f"a.{name}" for name in ("json", "markdown", "svg")}
    args = ["--precision", "int8", "--precision", "fp32", "--rounds", "2", "--context", "64", "--threads", "1"]
    args += ["--proof", "warn"]
    args += [word for name, path in files.items() for word in (f"--{name}", str(path))]
    result = run("bench", *TINY, *args, "--seconds", "2", "--quick", "--cache-dir", tmp_path)
    assert result.exit_code == 0, result.output
    (options,) = given
    assert (options.engine, options.size, options.checkpoint) == ("reference", "tiny", None)
    assert (options.precisions, options.contexts) == (("int8", "fp32"), (64,))
    assert (options.rounds, options.threads, options.quick, options.proof) == (2, 1, True, "warn")
    assert options.frames == 2 * 16_000 // 256
    assert options.cache_dir == tmp_path
    assert result.stdout == "| 1 |\n"
    assert "measuring" in result.stderr
    written = json.loads(files["json"].read_text())
    command = "accelerator bench engine --size tiny --precision int8 --precision fp32 --rounds 2"
    command += " --context 64 --threads 1 --proof warn --seconds 2 --quick"
    assert written == {"command": command, "rtf": None, "rows": [1, 2]}
    assert (files["markdown"].read_text(), files["svg"].read_text()) == ("| 1 |\n", "<svg/>")


def test_leaves_defaults_to_the_benchmark(given: list):
    from accelerator.benchmark import BenchOptions

    assert run("bench").exit_code == 0
    assert given == [BenchOptions()]


def test_names_its_default(given: list):
    assert run("bench", "engine", *TINY).exit_code == 0
    assert run("bench", *TINY).exit_code == 0
    assert given[0] == given[1]


@pytest.mark.parametrize("measure", ["serving", "quality", "recipes", "llama-cpp", "feed-forward"])
def test_a_flag_is_the_command_of_its_name(measure: str):
    assert run("bench", f"--{measure}", "--help").stdout == run("bench", measure, "--help").stdout
    assert run("bench", measure, "--svgs", "x").exit_code == 2


@pytest.mark.parametrize(
    ("args", "exit_code"),
    [
        (["--frames", "9", "--seconds", "2"], 2),
        (["--precision", "auto"], 2),
        (["--engine", "nope"], 2),
        (["--rounds", "0"], 2),
        (["--json", "/nowhere/at/all.json"], 1),
        (["--checkpoint", "/nowhere/at/all"], 1),
    ],
)
def test_refuses(given: list, args: list[str], exit_code: int):
    assert run("bench", *args).exit_code == exit_code
    assert given == []
