"""What users meet in their first hour: help on a narrow terminal, commands of the documents, hints behind errors."""

from __future__ import annotations

import inspect
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from accelerator.audio.checks import read_audio, write_wav
from accelerator.benchmark import BenchOptions
from accelerator.benchmark.feed_forward import FeedForwardOptions
from accelerator.benchmark.serving_plan import SCENARIOS, ServingOptions
from accelerator.cache import ContentCache
from accelerator.cli import app, bench, cache, convert, doctor
from accelerator.cli.console import Output
from accelerator.errors import InvalidReference

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
NARROW = 60


def run(*args: str, width: int = 120) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(args), terminal_width=width)
    return result.exit_code, result.stdout, result.stderr


def commands() -> list[tuple[str, ...]]:
    """Every command and group by its words."""
    groups: dict[tuple[str, ...], typer.Typer] = {
        (): app,
        ("bench",): bench.app,
        ("cache",): cache.app,
        ("convert",): convert.app,
    }
    named = [(*words, str(c.name)) for words, group in groups.items() for c in group.registered_commands]
    return [*groups, *named]


def of_the_documents() -> Iterator[tuple[str, str]]:
    """(page, command) of each line of a document that calls `accelerator`."""
    for page in PAGES:
        for block in SHELL.findall(page.read_text(encoding="utf-8")):
            for line in block.splitlines():
                before, called, words = line.partition("accelerator ")
                if called and (not before or before.endswith(("bin/", "&& "))):
                    first, *others = words.partition("  #")[0].split(" | ")  # "cache list | verify": several in a line
                    group = first.split()[0]
                    for each in (first, *(f"{group} {other}" for other in others)):
                        yield str(page.relative_to(ROOT)), each.strip()


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_help_fits_a_narrow_terminal_and_leaves_nothing_out(words: tuple[str, ...]) -> None:
    code, out, _ = run(*words, "--help", width=NARROW)
    assert code == 0
    assert [line for line in out.splitlines() if len(line.rstrip()) > NARROW] == []
    assert [line for line in out.splitlines() if line.endswith("...") and not line.startswith((" ", "Usage"))] == []
    listed = out.partition("\nCommands:\n")[2]
    assert "..." not in listed


def test_a_group_says_whole_sentences() -> None:
    listed = " ".join(run("--help", width=NARROW)[1].partition("\nCommands:\n")[2].split())
    assert "doctor Show the hardware, versions, cache and engines as this package sees them" in listed


@pytest.mark.parametrize(("page", "command"), sorted(set(of_the_documents())))
def test_commands_in_documents_exist_with_their_options(page: str, command: str) -> None:
    code, out, err = run(*shlex.split(command, comments=True), "--help")
    assert (code, err) == (0, ""), f"{page}: accelerator {command}"
    assert out.startswith("Usage: ")


def test_the_documents_have_commands() -> None:
    found = {command.split()[0] for _, command in of_the_documents()}
    assert {"doctor", "demo", "synth", "export", "engines", "bench", "cache"} <= found


def default(options: type, name: str) -> object:
    return inspect.signature(options).parameters[name].default


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["engine"], f"[default: {default(BenchOptions, 'rounds')}]"),
        (["engine"], f"Size of the reference engine. [default: {default(BenchOptions, 'size')}]"),
        (["llama-cpp"], f"Size of the reference engine. [default: {default(BenchOptions, 'size')}]"),
        (["serving"], f"Size of the reference engine. [default: {default(ServingOptions, 'size')}]"),
        (["serving"], f"[default: {default(ServingOptions, 'rounds')}]"),
        (["serving"], f"[default: {default(ServingOptions, 'frames')}]"),
        (["serving"], f"{', '.join(list(SCENARIOS)[:-1])} or {list(SCENARIOS)[-1]}"),
        (["feed-forward"], f"[default: {default(FeedForwardOptions, 'rounds')}]"),
    ],
)
def test_help_of_a_benchmark_says_its_own_defaults(words: list[str], said: str) -> None:
    out = " ".join(run("bench", *words, "--help")[1].split())
    assert said in out
    assert "serving 3" not in out


def test_the_first_voice_is_the_one_that_speaks_by_itself() -> None:
    from accelerator.reference.bundled import load_bundled

    engine = load_bundled()
    assert engine is not None
    names = run("voices")[1].split()
    assert names[0] == engine.default_speaker
    assert sorted(names) == sorted(engine.speakers)


@pytest.mark.parametrize(
    ("engine", "download"), [("vits", "facebook/mms-tts-eng"), ("fish-speech", "fishaudio/openaudio-s1-mini")]
)
def test_an_engine_without_a_checkpoint_says_where_one_comes_from(engine: str, download: str) -> None:
    code, _, err = run("synth", "Hello.", "-o", "a.wav", "--engine", engine)
    assert code == 2
    assert f"{engine} needs --checkpoint DIR: `hf download {download} --local-dir DIR` fetches one" in err


@pytest.mark.parametrize(
    ("engine", "advice"),
    [
        ("piper", "FILE.onnx: a voice of rhasspy/piper-voices, with its .onnx.json beside it"),
        ("kokoro", "FILE.onnx: a model of kokoro-onnx' releases, with voices-v1.0.bin beside it"),
        ("kitten", "DIR: `hf download KittenML/kitten-tts-nano-0.8 --local-dir DIR` fetches one"),
    ],
)
def test_an_engine_that_is_onnx_says_what_its_checkpoint_is(engine: str, advice: str) -> None:
    code, _, err = run("synth", "Hello.", "-o", "a.wav", "--engine", engine)
    assert code == 2
    assert f"{engine} needs --checkpoint {advice}" in " ".join(err.split())


@pytest.mark.parametrize("engine", ["vits", "fish-speech"])
def test_a_folder_that_is_no_checkpoint_says_what_to_give(engine: str, tmp_path: Path) -> None:
    code, _, err = run("synth", "Hello.", "-o", "a.wav", "--engine", engine, "--checkpoint", str(tmp_path))
    assert code == 1
    assert "give the folder of a download" in err
    assert "`accelerator engines` lists how each is opened" in err


@pytest.mark.parametrize(
    ("args", "advice"),
    [
        (["Привет, мир."], "leave it out with --unspeakable skip"),
        (["Hello there.", "--reference", "voice.wav"], "give --reference-text, word for word"),
        (["Hello there.", "--top-p", "3"], "--top-p must be"),
    ],
)
def test_an_error_names_options_as_the_command_line_does(
    args: list[str], advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    t = np.arange(5 * 16_000) / 16_000
    write_wav(tmp_path / "voice.wav", (0.3 * np.sin(2 * np.pi * 180 * t)).astype(np.float32), 16_000)
    code, _, err = run("synth", *args, "-o", "a.wav")
    assert code == 1
    assert advice in " ".join(err.split())


def printed(width: int, rows: list[list[str]]) -> str:
    out = Output()
    out._stdout = Console(file=io.StringIO(), width=width)
    out.table(("engine", "size>", "opened by"), rows, title="Engines")
    assert isinstance(out._stdout.file, io.StringIO)
    return out._stdout.file.getvalue()


def test_a_table_that_would_break_words_is_a_list() -> None:
    rows = [["reference", "3 MiB", "accelerator.reference.engine.ReferenceEngine"], ["vits", "4 GiB", "nobody"]]
    wide = printed(80, rows)
    assert "reference   3 MiB   accelerator.reference.engine.ReferenceEngine" in " ".join(wide.split("\n"))
    assert printed(50, rows).splitlines() == [
        "Engines",
        "reference",
        "  size       3 MiB",
        "  opened by  accelerator.reference.engine.ReferenceEngine",
        "vits",
        "  size       4 GiB",
        "  opened by  nobody",
    ]


def test_doctor_names_further_caches_only_where_there_are_some(tmp_path: Path) -> None:
    place = {"bytes": 0, "entries": 0, "writable": True, "free_bytes": None}
    alone = doctor._cache_rows(ContentCache(tmp_path), place)
    assert [label for label, _ in alone] == ["Path", "Size", "Writable", "Free"]
    beside = doctor._cache_rows(ContentCache(tmp_path, parents=[tmp_path / "image"]), place)
    assert beside == [*alone, ("Also read", str(tmp_path / "image"))]


def test_a_file_that_is_no_audio_is_told_of_in_words() -> None:
    with pytest.raises(InvalidReference) as caught:
        read_audio(io.BytesIO(b"not audio"))
    message = str(caught.value)
    assert message.startswith("the reference audio file cannot be read as audio (Format not recognised)")
    assert "convert it to WAV, FLAC, OGG or MP3" in message
    assert not re.search(r"BytesIO|Errno|<", message)
