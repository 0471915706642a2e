"""The page of benchmarks: its tables come from records, `results/DATE-CPU/NAME.json` beside it.

    page.write_text(updated(page.read_text(), page.parent / "results"))

A record is what a benchmark wrote by `--json`. Of the records with one CPU and one NAME the newest is shown, so that a
new measurement takes an old one's place by its name. Older results that were kept as tables only were copied into
records (`source`: "transcribed"; `from`: the table's file), which lack whatever the table did not say.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidOption
from . import codec, feed_forward, peers, report, serving_report, yardstick

__all__ = ["BEGIN", "END", "current", "processor", "tables", "updated"]

BEGIN, END = "<!-- tables of `accelerator bench tables` -->", "<!-- end of tables -->"
_KINDS: Mapping[str, Any] = {
    "accelerator-benchmark": report,
    "accelerator-llama-cpp-benchmark": yardstick,
    "accelerator-serving-benchmark": serving_report,
    "accelerator-feed-forward-benchmark": feed_forward,
    "accelerator-codec-benchmark": codec,
    "accelerator-peers-benchmark": peers,
}
_FOLDER = re.compile(r"(?P<date>\d{4}-\d\d-\d\d)-(?P<cpu>.+)")
_PACKAGES = {"accelerator": "accelerator", "torch": "PyTorch", "onnxruntime": "ONNX Runtime"}
_INSTRUCTIONS = {  # the first that a processor has says most about how fast it is
    "amx_int8": "AMX",
    "avx512_vnni": "AVX512-VNNI",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "i8mm": "I8MM",
    "asimddp": "NEON with dot products",
}
_WIDTH = 120

Record = Mapping[str, Any]


def updated(text: str, results: Path) -> str:
    """The page with its tables made anew. Raises InvalidOption if it has no place for them, or for a wrong record."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise InvalidOption(f"the page has no place for tables: put the lines {BEGIN!r} and {END!r} into it")
    return f"{before}{BEGIN}\n\n{tables(results)}\n\n{END}{after}"


def tables(results: Path) -> str:
    """A section for each processor, with a table for each of its benchmarks."""
    sections: list[str] = []
    for records in current(results).values():
        sections.append(f"## {processor(next(iter(records.values())))}")
        for record in records.values():
            sections += _section(record)
    return "\n\n".join(sections)


def current(results: Path) -> dict[str, dict[str, Record]]:
    """CPU -> name of a benchmark -> its newest record; the processor measured last comes first."""
    found: dict[str, dict[str, Record]] = {}
    for path in sorted(results.glob("*/*.json"), key=lambda path: (path.parent.name, path.name), reverse=True):
        cpu, record = _read(path)
        found.setdefault(cpu, {}).setdefault(path.stem, record)
    return {cpu: dict(sorted(records.items())) for cpu, records in found.items()}


def processor(record: Record) -> str:
    """What it ran on, in a few words."""
    hardware = record["machine"]["hardware"]
    best = next((name for flag, name in _INSTRUCTIONS.items() if flag in hardware["isa"]), None)
    cores = f"{hardware['usable_cores']} core{'s' * (hardware['usable_cores'] != 1)}"
    return ", ".join(word for word in (hardware["brand"], best, cores) if word)


def _read(path: Path) -> tuple[str, Record]:
    """A record and its folder's name for the CPU."""
    folder = _FOLDER.fullmatch(path.parent.name)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidOption(f"{path} is no JSON ({error}): write it by a benchmark's --json") from error
    if not isinstance(record, dict) or record.get("kind") not in _KINDS or not record.get("command"):
        raise InvalidOption(f"{path} is no record of a benchmark: write it by `accelerator bench ... --json`")
    if folder is None or folder["date"] != record["began"][:10]:
        raise InvalidOption(
            f"{path} was measured on {record['began'][:10]}: name its folder {record['began'][:10]}-CPU"
        )
    if record["options"].get("quick"):
        raise InvalidOption(f"{path} is of a quick run, whose figures mean nothing: measure without --quick")
    return folder["cpu"], record


def _section(record: Record) -> Iterator[str]:
    """Heading, command, machine with versions, and the figures."""
    made = _KINDS[record["kind"]]
    yield f"### {made.title(record)}"
    yield f"```sh\n{record['command']}\n```"
    yield _wrapped(_machine(record))
    yield _wrapped(re.sub(r"^## ", "#### ", made.figures(record), flags=re.MULTILINE))


def _machine(record: Record) -> str:
    versions = record["machine"]["versions"]
    packages = ", ".join(f"{title} {versions[name]}" for name, title in _PACKAGES.items() if name in versions)
    rounds = record["plan"]["rounds"]
    medians = "One round" if rounds == 1 else f"Medians of {rounds} rounds, quartiles in brackets"
    copied = [f"Copied from [its table](results/{record['from']})."] if record.get("source") == "transcribed" else []
    said = [f"{processor(record)}; {record['began'][:10]}; {packages}. {medians}.", *copied, *record.get("notes", ())]
    return "\n\n".join((" ".join(said), *(f"> **Warning:** {warning}" for warning in record["warnings"])))


def _wrapped(text: str) -> str:
    """Lines of prose broken; rows of tables and headings cannot be."""
    return "\n".join(line if line.startswith(("|", "#")) else _broken(line) for line in text.splitlines())


def _broken(line: str) -> str:
    behind = next((indent for mark, indent in (("- ", "  "), ("> ", "> ")) if line.startswith(mark)), "")
    return textwrap.fill(line, _WIDTH, subsequent_indent=behind, break_long_words=False, break_on_hyphens=False)
