"""The command line: results on stdout, everything else on stderr, and an exit code for every end."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import accelerator
from accelerator.cli import app
from accelerator.cli.console import Output
from accelerator.errors import CacheError
from tests.cli.commands import FEW, TINY, error, run, script


def test_version():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"accelerator {accelerator.__version__}\n")


def test_help_names_every_command():
    result = run("--help")
    assert result.exit_code == 0
    for command in (
        "doctor",
        "demo",
        "engines",
        "voices",
        "options",
        "export",
        "convert",
        "tune",
        "synth",
        "bench",
        "cache",
    ):
        assert command in result.stdout


@pytest.mark.parametrize("args", [["--help"], ["cache", "path"], ["synth", "--help"], ["cache", "list", "--json"]])
def test_light_commands_load_neither_torch_nor_onnxruntime(args: list[str], tmp_path: Path):
    code = (
        "import sys\nfrom accelerator.cli import app\n"
        "code = app(sys.argv[1:], standalone_mode=False)\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'psutil', 'soundfile'} & set(sys.modules)\n"
        "sys.exit(f'{heavy} after {code}' if heavy or code else 0)"
    )
    done = script(code, *args)
    assert done.returncode == 0, done.stderr


def test_runs_as_a_module(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "accelerator", "cache", "path", "--cache-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path}\n", "")


@pytest.mark.parametrize(
    "args", [["nonsense"], [], ["synth"], ["synth", "hi"], ["doctor", "--nonsense"], ["cache", "prune"]]
)
def test_wrong_usage_is_2(args: list[str]):
    assert run(*args).exit_code == 2


@pytest.mark.parametrize(
    ("args", "meant", "known"),
    [
        (["doctro"], "did you mean doctor?", "doctor, demo, engines"),
        (["cache", "lst"], "did you mean list?", "path, list, verify, prune, clear."),
        (["bench", "servign"], "did you mean serving?", "engine, serving, quality"),
        (["bench", "nothing-like-it"], "'nothing-like-it'. The", "feed-forward, peers, tables."),
    ],
)
def test_a_command_that_there_is_not(args: list[str], meant: str, known: str):
    result = run(*args)
    assert result.exit_code == 2
    assert meant in result.stderr
    assert known in result.stderr


def test_a_command_that_there_is_not_with_json():
    assert "did you mean list?" in error("cache", "lst", exit_code=2)["message"]


def test_wrong_usage_with_json_is_json(tmp_path: Path):
    found = error("synth", "hi", "-o", tmp_path / "a.wav", "--precision", "int2", exit_code=2)
    assert found["type"] == "BadParameter"
    assert "int2" in found["message"]


def test_the_sizes_offered_are_the_engines():
    from accelerator.cli.options import PrecisionName, SizeName
    from accelerator.export.component import PRECISIONS
    from accelerator.reference import SIZES

    assert {size.value for size in SizeName} == set(SIZES)
    assert {name.value for name in PrecisionName} == {"auto", *PRECISIONS}


# How a command can end, beside well.


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    def fail_with(failure: BaseException) -> None:
        def fail(*args: object) -> None:
            raise failure

        monkeypatch.setattr("accelerator.cache.ContentCache.entries", fail)

    return fail_with


def test_an_error_of_ours_is_a_line_and_a_hint(failing):
    failing(CacheError("the disk is\nfull"))
    result = run("cache", "list")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[0] == "Error: the disk is full"
    assert "--cache-dir" in result.stderr.splitlines()[1]
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback(failing):
    failing(CacheError("full"))
    result = run("cache", "list", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "Error: full" in result.stderr


def test_an_unexpected_error_is_told_as_such(failing):
    failing(ZeroDivisionError("by zero"))
    assert error("cache", "list")["message"] == "unexpected ZeroDivisionError: by zero"


def test_ctrl_c(failing):
    failing(KeyboardInterrupt())
    assert run("cache", "list").exit_code == 130


def test_ctrl_c_in_a_process(tmp_path: Path):
    code = (
        "import os, signal, time\nfrom accelerator.cli import main, synth\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job's shell ignores it
        "def read():\n os.kill(os.getpid(), signal.SIGINT)\n time.sleep(20)\n"
        "synth._read_stdin = read\nmain()"
    )
    done = script(code, "synth", "-", "-o", str(tmp_path / "a.wav"))
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("args", [["cache", "list"], ["cache", "list", "--json"], ["--help"]], ids=" ".join)
def test_a_reader_who_leaves(args: list[str], cache: Path):
    process = subprocess.Popen(
        [sys.executable, "-m", "accelerator", *args],
        env={**os.environ, "ACCELERATOR_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


class Full(io.RawIOBase):
    """A file on a full disk."""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(params=["buffered", "unbuffered"])
def full(request: pytest.FixtureRequest) -> io.TextIOWrapper:
    binary = io.BufferedWriter(Full()) if request.param == "buffered" else Full()
    return io.TextIOWrapper(binary, encoding="utf-8", write_through=request.param == "unbuffered")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["cache", "--help"],
        ["cache", "list"],
        ["cache", "list", "--json"],
        ["doctor"],
        ["voices"],
        ["bench", "tables", "docs/benchmarks"],
    ],
    ids=" ".join,
)
def test_stdout_on_a_full_disk(
    args: list[str], full: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(sys, "stdout", full)
    assert app(args, standalone_mode=False) == 1
    said = f"Error: stdout cannot be written ({os.strerror(errno.ENOSPC)}): send what is printed elsewhere\n"
    assert capsys.readouterr().err == said


def test_stderr_on_a_full_disk(
    full: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """What is said beside a result is no part of it."""
    monkeypatch.setattr(sys, "stderr", full)
    assert app(["voices", *TINY], standalone_mode=False) == 0
    assert app(["nonsense"], standalone_mode=False) == 2


def test_speech_is_kept_where_stdout_is_on_a_full_disk(
    full: io.TextIOWrapper, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        command = ["synth", "Hi.", "-o", str(tmp_path / "a.wav"), *TINY, *FEW, "--cache-dir", str(cache)]
        assert app(command, standalone_mode=False) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    assert (tmp_path / "a.wav").stat().st_size > 1000


@pytest.mark.parametrize(
    "args",
    [
        ["synth", "caf\udce9", "-o", "a.wav"],
        ["synth", "hi", "-o", "a.wav", "--voice", "caf\udce9"],
        ["synth", "hi", "-o", "a.wav", "--engine", "caf\udce9"],
        ["synth", "hi", "-o", "a.wav", "--reference-text", "caf\udce9"],
        ["demo", "--text", "caf\udce9"],
        ["bench", "quality", "--recipe", "fine", "--recipe", "caf\udce9"],
    ],
    ids=lambda args: " ".join(args).replace("\udce9", "?"),
)
def test_texts_that_are_not_utf8(args: list[str]):
    """A byte that Python cannot decode is such a character in `sys.argv` (PEP 383)."""
    result = run(*args)
    assert result.exit_code == 2
    assert "the byte 0xE9 at position 3 is not" in result.stderr


def test_names_of_files_that_are_not_utf8(tmp_path: Path):
    folder = tmp_path / "caf\udce9"
    try:
        folder.mkdir()
        (folder / "a.txt").write_text("?!")
    except OSError:
        pytest.skip("this file system has no such names")
    assert error("synth", "--file", folder / "a.txt", "-o", folder / "a.wav")["message"].startswith("the text has no")
    assert "ONNX Runtime opens no file there" in error("cache", "path", "--cache-dir", folder)["message"]
    (folder / "voice.onnx").touch()
    found = error("voices", "--engine", "piper", "--checkpoint", folder / "voice.onnx")
    assert "ONNX Runtime opens no such file" in found["message"]


@pytest.mark.skipif(sys.platform == "win32", reason="names are not bytes there")
def test_names_are_printed_as_they_are():
    code = "from accelerator.cli import streams\nstreams.safe_streams()\nprint('caf\\udce9')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert done.stdout == b"caf\xe9\n"


def test_names_in_json_are_names(capsys: pytest.CaptureFixture[str]):
    Output(json=True).document({"path": "Gr\u00fc\udce9"})
    assert json.loads(capsys.readouterr().out) == {"path": "Gr\u00fc\udce9"}


def test_warnings_are_lines_without_tracebacks(monkeypatch: pytest.MonkeyPatch):
    def warn(self: object) -> list:
        try:
            raise ValueError("cause")
        except ValueError:
            logging.getLogger("accelerator.cache.store").warning("it is %s", "odd", exc_info=True)
        logging.getLogger("accelerator.cache.store").info("a detail")
        return []

    monkeypatch.setattr("accelerator.cache.ContentCache.entries", warn)
    assert run("cache", "list").stderr == "Warning: it is odd\n"
    assert run("cache", "list", "-v").stderr == "Warning: it is odd\nInfo: a detail\n"
    assert "ValueError: cause" in run("cache", "list", "--debug").stderr


def test_logging_is_left_as_it_was():
    log = logging.getLogger("accelerator")
    before = log.level, log.propagate, list(log.handlers)
    run("cache", "list", "--debug")
    assert (log.level, log.propagate, log.handlers) == before


@pytest.mark.parametrize("args", [["doctor"], ["engines"], ["cache", "list"], ["synth", "--help"], ["nonsense"]])
@pytest.mark.parametrize(
    "terminal",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"COLUMNS": "60"},
    ],
    ids=str,
)
def test_poor_terminals(args: list[str], terminal: dict[str, str], cache: Path):
    environment = {**os.environ, **terminal, "ACCELERATOR_CACHE": str(cache)}
    command = [sys.executable, "-m", "accelerator", *args]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=100)
    assert done.returncode == (2 if args == ["nonsense"] else 0), done.stderr
    assert b"Traceback" not in done.stderr
    if "COLUMNS" not in terminal:
        (done.stdout + done.stderr).decode("ascii")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes descriptors")
@pytest.mark.parametrize("args", ["cache list", "doctor", "cache list --json", "nonsense"])
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(args: str, closed: str, cache: Path):
    command = f"{shlex.quote(sys.executable)} -m accelerator {args} {closed}"
    environment = {**os.environ, "ACCELERATOR_CACHE": str(cache)}
    done = subprocess.run(["sh", "-c", command], capture_output=True, env=environment, timeout=100)
    assert done.returncode == (2 if args == "nonsense" else 0)
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes descriptors")
@pytest.mark.parametrize(("args", "says"), [("- -o a.wav <&-", "stdin is closed"), ("hi -o - >&-", "stdout is closed")])
def test_closed_streams_that_are_needed(args: str, says: str, cache: Path, tmp_path: Path):
    options = shlex.join([*TINY, *FEW, "--precision", "fp32", "--cache-dir", str(cache)])
    command = f"{shlex.quote(sys.executable)} -m accelerator synth {options} {args}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_json_is_json_on_any_terminal(tmp_path: Path):
    place = tmp_path / "Grüße"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "accelerator", "cache", "path", "--json", "--cache-dir", str(place)]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=100, check=True)
    assert json.loads(done.stdout.decode("ascii")) == {"path": str(place)}
