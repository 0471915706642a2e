"""The page of benchmarks is what its records say, and README says nothing that is in none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from accelerator.benchmark import page
from accelerator.benchmark.report import format_value
from accelerator.cli import app
from accelerator.errors import InvalidOption

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "docs" / "benchmarks"
INT4 = "onnxruntime-int4"
UNITS = {"ms": 1e-3, "s": 1.0, "GiB": 2.0**30, "MiB": 2.0**20, "x": 1.0, "": 1.0}
README_ROWS = {  # a row of README's table -> the record that has it, and the measures it is about
    "one frame of codes, context 200": ("fish-speech", ["frame_200"]),
    "one frame of codes, context 1,500": ("fish-speech", ["frame_1500"]),
    "prefill of 200 positions, with the first frame": ("fish-speech", ["prefill_200"]),
    "codec, encoding 10 s of a reference voice": ("fish-speech", ["encode_10s"]),
    "codec, decoding 10 s of audio": ("fish-speech", ["decode_10s"]),
    "end-to-end real-time factor, a sentence of 19 words": ("fish-speech", ["rtf"]),
    "first audio of a stream, known voice, 20 words": ("serving-fish-speech", ["known voice"]),
    "peak memory": ("fish-speech", ["peak_memory"]),
    "a step of the slow model, context 200 and 1,500, beside llama.cpp's Q4_0": (
        "llama-cpp-int4",
        ["step_200", "step_1500"],
    ),
}


@pytest.fixture(scope="module")
def records() -> dict[str, dict[str, page.Record]]:
    return page.current(BENCHMARKS / "results")


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The committed page with one record."""
    shutil.copy(BENCHMARKS / "index.md", tmp_path)
    folder = tmp_path / "results" / "2026-11-21-epyc-avx512"
    folder.mkdir(parents=True)
    shutil.copy(BENCHMARKS / "results" / folder.name / "vits.json", folder)
    return tmp_path


def tables(*args: object) -> Any:
    return CliRunner().invoke(app, ["bench", "tables", *map(str, args)])


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **entries}), encoding="utf-8")


def test_the_committed_page_is_what_the_command_makes() -> None:
    text = (BENCHMARKS / "index.md").read_text(encoding="utf-8")
    assert page.updated(text, BENCHMARKS / "results") == text, "run `accelerator bench tables`"
    assert tables(BENCHMARKS, "--check").exit_code == 0


def test_each_record_says_how_and_where_it_was_made(records: dict[str, dict[str, page.Record]]) -> None:
    text = (BENCHMARKS / "index.md").read_text(encoding="utf-8")
    for by_name in records.values():
        assert f"## {page.processor(next(iter(by_name.values())))}\n" in text
        for record in by_name.values():
            assert record["command"].startswith("accelerator bench ")
            assert f"```sh\n{record['command']}\n```" in text
            if record.get("source") == "transcribed":
                assert (BENCHMARKS / "results" / record["from"]).exists()


def figures(record: page.Record) -> Iterable[Mapping[str, Any]]:
    """Every summary within a record."""
    waiting: list[Any] = [record]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if {"median", "unit", "n"} <= set(each):
                yield each
            waiting += each.values()


def test_copied_figures_are_in_the_tables_they_came_from(records: dict[str, dict[str, page.Record]]) -> None:
    copied = [r for by_name in records.values() for r in by_name.values() if r.get("source") == "transcribed"]
    assert copied
    for record in copied:
        table = (BENCHMARKS / "results" / record["from"]).read_text(encoding="utf-8")
        numbers = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", table)}
        for figure in figures(record):
            said = [float(format_value(figure[which], figure["unit"]).split()[0]) for which in ("median", "p25", "p75")]
            assert set(said) <= numbers, f"{record['from']} has no {said}"


def test_writes_what_records_say(copied: Path) -> None:
    assert tables(copied).exit_code == 0
    text = (copied / "index.md").read_text(encoding="utf-8")
    assert text.count("### ") == 1
    assert "| real-time factor, one sentence | 0.23 (0.23–0.24) | 0.23 (0.22–0.23) | 0.13 (0.13–0.13) | – |" in text
    assert "AMD EPYC, AVX512-VNNI, 2 cores; 2026-11-21; accelerator 0.1.0, PyTorch 2.13.0+cpu" in text
    assert text.partition(page.BEGIN)[0] == (BENCHMARKS / "index.md").read_text("utf-8").partition(page.BEGIN)[0]
    assert tables(copied).stdout == f"{copied / 'index.md'} is up to date\n"


def test_says_that_a_page_is_old(copied: Path) -> None:
    before = (copied / "index.md").read_bytes()
    result = tables(copied, "--check")
    assert result.exit_code == 1
    assert f"run `accelerator bench tables {copied}`" in " ".join(result.stderr.split())
    assert (copied / "index.md").read_bytes() == before


def test_takes_the_newest_of_a_processor_and_name(copied: Path) -> None:
    old = copied / "results" / "2026-11-21-epyc-avx512"
    new, other = old.with_name("2026-12-01-epyc-avx512"), old.with_name("2026-10-01-epyc-avx2")
    for folder, began in ((new, "2026-12-01T10:00:00Z"), (other, "2026-10-01T10:00:00Z")):
        shutil.copytree(old, folder)
        change(folder / "vits.json", began=began, source="measured", warnings=["the machine was busy"])
    found = page.current(copied / "results")
    assert {cpu: record["vits"]["began"][:10] for cpu, record in found.items()} == {
        "epyc-avx512": "2026-12-01",
        "epyc-avx2": "2026-10-01",
    }
    text = page.tables(copied / "results")
    assert (text.count("### "), text.count("> **Warning:** the machine was busy")) == (2, 2)
    assert "Copied from" not in text


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"began": "2026-11-20T00:00:00Z"}, "name its folder 2026-11-20-CPU"),
        ({"options": {"quick": True}}, "measure without --quick"),
        ({"kind": "a guess"}, "is no record of a benchmark"),
        ({"command": ""}, "is no record of a benchmark"),
    ],
)
def test_refuses_what_is_no_measurement(copied: Path, entries: dict[str, Any], why: str) -> None:
    change(copied / "results" / "2026-11-21-epyc-avx512" / "vits.json", **entries)
    with pytest.raises(InvalidOption, match=why):
        page.tables(copied / "results")


def test_refuses_a_page_without_a_place_and_a_folder_without_a_page(copied: Path) -> None:
    (copied / "index.md").write_text("# Benchmarks\n", encoding="utf-8")
    assert "has no place for tables" in tables(copied).stderr
    assert "name its folder" in " ".join(tables(copied / "results").stderr.split())


def summaries(record: page.Record, measures: list[str]) -> list[Mapping[str, Any]]:
    """All figures of some measures: of every arm, and how many times less they are."""
    found: list[Mapping[str, Any]] = []
    waiting: list[Any] = [record]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            found += [figure for name in measures if name in each for figure in figures({"": each[name]})]
            waiting += each.values()
    return found


def in_cells(cells: list[str]) -> list[tuple[str, str]]:
    """(number, unit) of what stands in a row; of "15.8, 30.7 ms" both have the unit."""
    found: list[tuple[str, str]] = []
    for cell in cells:
        unit = ""
        for number, own in reversed(re.findall(r"(\d+(?:\.\d+)?)(?:\s*(ms|s|GiB|x)\b)?", cell)):
            unit = own or unit
            found.append((number, unit))
    return found


def is_figure(number: str, unit: str, figure: Mapping[str, Any]) -> bool:
    half = 0.5 * 10.0 ** -len(number.partition(".")[2])
    kinds = {"ms": "s", "s": "s", "GiB": "bytes", "x": "ratio", "": "ratio"}
    return figure["unit"] == kinds[unit] and abs(figure["median"] / UNITS[unit] - float(number)) <= half + 1e-9


def test_every_figure_of_readmes_table_is_in_a_record(records: dict[str, dict[str, page.Record]], readme: str) -> None:
    rows = [line.strip("|").split("|") for line in readme.splitlines() if re.match(r"\|.*\d (ms|GiB|s)?\b.*\|$", line)]
    table = {row[0].strip(): row[1:] for row in rows if row[0].strip() in README_ROWS}
    assert set(table) == set(README_ROWS)
    for label, (name, measures) in README_ROWS.items():
        there = summaries(records["epyc-avx512"][name], measures)
        said = in_cells(table[label])
        assert said
        for number, unit in said:
            assert any(is_figure(number, unit, figure) for figure in there), f"{label}: {number} {unit}"


def test_every_figure_below_readmes_table_is_in_a_record(
    records: dict[str, dict[str, page.Record]], readme: str
) -> None:
    engine, vits = records["epyc-avx2"]["fish-speech"], records["epyc-avx512"]["vits"]["figures"]["sentence"]
    arm = engine["arms"][INT4]["metrics"]
    over, sized = (engine["ratios"][base][INT4] for base in ("over_as_shipped", "over_right_sized"))

    def said(figure: Mapping[str, Any]) -> str:
        return format_value(figure["median"], figure["unit"])

    text = " ".join(readme.split())
    assert f"a frame takes {said(arm['frame_200'])}, {said(sized['frame_200'])} times less than right-sized" in text
    assert (
        f"spoken at {said(arm['rtf'])} of real time ({said(over['rtf'])} and {said(sized['rtf'])} times less)" in text
    )
    assert f"10 s of audio are decoded in {said(arm['decode_10s'])}" in text
    own, alone = said(vits["accelerator"]), said(vits["as-shipped"])
    assert f"a sentence at {own} of real time, in transformers alone at {alone}" in text


def test_what_readme_says_of_the_voice_is_on_its_page(readme: str) -> None:
    text = (ROOT / "docs" / "voice.md").read_text(encoding="utf-8")
    errors = {
        (system.strip(), how.strip()): float(error)
        for system, how, error in re.findall(r"^\| ([a-z0-9 ]+) \| ([a-z ]*)\| (\d+\.\d) %", text, re.MULTILINE)
    }
    four = [error for (system, _), error in errors.items() if system.endswith("int4")]
    rest = [e for (system, _), e in errors.items() if not system.endswith("int4") and system != "flite"]
    assert (len(four), len(rest)) == (2, 6)
    said = f"misunderstands {min(rest):.0f} to {max(rest):.0f} % of its words ({max(four):.0f} % in int4)"
    assert f"{said}, and {errors['flite', '']:.0f} % of those of flite" in " ".join(readme.split())
