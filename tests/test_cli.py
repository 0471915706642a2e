"""The command line: results on stdout, everything else on stderr, and an exit code for every end."""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import types
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

import accelerator
from accelerator.audio.checks import write_wav
from accelerator.cli import app, formats
from accelerator.cli.console import Output
from accelerator.errors import CacheError
from accelerator.export.component import ProgressEvent

TINY = ["--size", "tiny"]
FEW = ["--max-new-tokens", "12", "--seed", "0"]


def run(*args: object, input: str | bytes | None = None):
    return CliRunner().invoke(app, [str(arg) for arg in args], input=input)


def answer(*args: object, exit_code: int = 0, input: str | bytes | None = None) -> dict:
    """The JSON that a command prints, which must be all of its stdout."""
    result = run(*args, "--json", input=input)
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def error(*args: object, exit_code: int = 1, input: str | bytes | None = None) -> dict:
    found = answer(*args, exit_code=exit_code, input=input)["error"]
    assert found["exit_code"] == exit_code
    assert set(found) == {"type", "message", "hint", "exit_code"}
    return found


def script(code: str, *args: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, **options)


@pytest.fixture(scope="module")
def cache(exports: Path, fast: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own with the tiny engine's float32 exports, which are built once for all test modules."""
    root = tmp_path_factory.mktemp("cache")
    for part in fast.status()["parts"].values():
        for export in part["exports"].values():
            path = Path(export["path"])
            shutil.copytree(path, root / path.relative_to(exports))
            shutil.copytree(exports / "notes" / path.name, root / "notes" / path.name)  # what its proof says
    return root


@pytest.fixture(scope="module")
def exported(cache: Path) -> dict:
    """What `export --json` says."""
    return answer("export", *TINY, "--precision", "fp32", "--cache-dir", cache)


@pytest.fixture
def copied(cache: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(cache, tmp_path / "copy"))


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    t = np.arange(16_000) / 16_000
    write_wav(tmp_path / "voice.wav", (0.3 * np.sin(2 * np.pi * 180 * t)).astype(np.float32), 16_000)
    return tmp_path / "voice.wav"


def wav(path: Path) -> tuple[int, int]:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return file.getnframes(), file.getframerate()


class TestSurface:
    def test_version(self):
        result = run("--version")
        assert (result.exit_code, result.stdout) == (0, f"accelerator {accelerator.__version__}\n")

    def test_help_names_every_command(self):
        result = run("--help")
        assert result.exit_code == 0
        for command in ("doctor", "demo", "engines", "voices", "export", "tune", "synth", "bench", "cache"):
            assert command in result.stdout

    @pytest.mark.parametrize("args", [["--help"], ["cache", "path"], ["synth", "--help"], ["cache", "list", "--json"]])
    def test_light_commands_load_neither_torch_nor_onnxruntime(self, args: list[str], tmp_path: Path):
        code = (
            "import sys\nfrom accelerator.cli import app\n"
            "code = app(sys.argv[1:], standalone_mode=False)\n"
            "heavy = {'torch', 'onnxruntime', 'onnx', 'psutil', 'soundfile'} & set(sys.modules)\n"
            "sys.exit(f'{heavy} after {code}' if heavy or code else 0)"
        )
        done = script(code, *args)
        assert done.returncode == 0, done.stderr

    def test_runs_as_a_module(self, tmp_path: Path):
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
    def test_wrong_usage_is_2(self, args: list[str]):
        assert run(*args).exit_code == 2

    def test_wrong_usage_with_json_is_json(self, tmp_path: Path):
        found = error("synth", "hi", "-o", tmp_path / "a.wav", "--precision", "int2", exit_code=2)
        assert found["type"] == "BadParameter"
        assert "int2" in found["message"]

    def test_the_sizes_offered_are_the_engines(self):
        from accelerator.cli.options import PrecisionName, SizeName
        from accelerator.export.component import PRECISIONS
        from accelerator.reference import SIZES

        assert {size.value for size in SizeName} == set(SIZES)
        assert {name.value for name in PrecisionName} == {"auto", *PRECISIONS}


class TestEnds:
    """How a command can end, beside well."""

    @pytest.fixture
    def failing(self, monkeypatch: pytest.MonkeyPatch):
        def fail_with(failure: BaseException) -> None:
            def fail(*args: object) -> None:
                raise failure

            monkeypatch.setattr("accelerator.cache.ContentCache.entries", fail)

        return fail_with

    def test_an_error_of_ours_is_a_line_and_a_hint(self, failing):
        failing(CacheError("the disk is\nfull"))
        result = run("cache", "list")
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.splitlines()[0] == "Error: the disk is full"
        assert "--cache-dir" in result.stderr.splitlines()[1]
        assert "Traceback" not in result.stderr

    def test_debug_shows_the_traceback(self, failing):
        failing(CacheError("full"))
        result = run("cache", "list", "--debug")
        assert result.exit_code == 1
        assert "Traceback" in result.stderr
        assert "Error: full" in result.stderr

    def test_an_unexpected_error_is_told_as_such(self, failing):
        failing(ZeroDivisionError("by zero"))
        assert error("cache", "list")["message"] == "unexpected ZeroDivisionError: by zero"

    def test_ctrl_c(self, failing):
        failing(KeyboardInterrupt())
        assert run("cache", "list").exit_code == 130

    def test_ctrl_c_in_a_process(self, tmp_path: Path):
        code = (
            "import os, signal, time\nfrom accelerator.cli import main, synth\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job's shell ignores it
            "def read():\n os.kill(os.getpid(), signal.SIGINT)\n time.sleep(20)\n"
            "synth._read_stdin = read\nmain()"
        )
        done = script(code, "synth", "-", "-o", str(tmp_path / "a.wav"))
        assert done.returncode == 130
        assert "Traceback" not in done.stderr

    def test_a_reader_who_leaves(self, cache: Path):
        process = subprocess.Popen(
            [sys.executable, "-m", "accelerator", "cache", "list", "--cache-dir", str(cache)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""
        process.stderr.close()

    def test_warnings_are_lines_without_tracebacks(self, monkeypatch: pytest.MonkeyPatch):
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

    def test_logging_is_left_as_it_was(self):
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
    def test_poor_terminals(self, args: list[str], terminal: dict[str, str], cache: Path):
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
    def test_closed_streams(self, args: str, closed: str, cache: Path):
        command = f"{shlex.quote(sys.executable)} -m accelerator {args} {closed}"
        environment = {**os.environ, "ACCELERATOR_CACHE": str(cache)}
        done = subprocess.run(["sh", "-c", command], capture_output=True, env=environment, timeout=100)
        assert done.returncode == (2 if args == "nonsense" else 0)
        assert b"Traceback" not in done.stderr

    @pytest.mark.skipif(sys.platform == "win32", reason="a shell closes descriptors")
    @pytest.mark.parametrize(
        ("args", "says"), [("- -o a.wav <&-", "stdin is closed"), ("hi -o - >&-", "stdout is closed")]
    )
    def test_closed_streams_that_are_needed(self, args: str, says: str, cache: Path, tmp_path: Path):
        options = shlex.join([*TINY, *FEW, "--precision", "fp32", "--cache-dir", str(cache)])
        command = f"{shlex.quote(sys.executable)} -m accelerator synth {options} {args}"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=100, cwd=tmp_path)
        assert done.returncode == 1
        assert says in done.stderr
        assert list(tmp_path.iterdir()) == []

    def test_json_is_json_on_any_terminal(self, tmp_path: Path):
        place = tmp_path / "Grüße"
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        command = [sys.executable, "-m", "accelerator", "cache", "path", "--json", "--cache-dir", str(place)]
        done = subprocess.run(command, capture_output=True, env=environment, timeout=100, check=True)
        assert json.loads(done.stdout.decode("ascii")) == {"path": str(place)}


def commands(group: Any, *path: str) -> Iterator[tuple[list[str], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)
        else:
            yield [*path, name], command


class TestHelp:
    @pytest.mark.parametrize("path", [path for path, _ in commands(typer.main.get_command(app))], ids=" ".join)
    def test_every_word_of_it_is_shown(self, path: list[str]):
        """Rich takes "[default: ...]" for markup, and shows nothing."""
        command = {tuple(p): c for p, c in commands(typer.main.get_command(app))}[tuple(path)]
        shown = "".join(run(*path, "--help").stdout.split())
        assert shown.startswith("Usage:")
        for option in command.params:
            if option.help:
                assert "".join(option.help.split()) in shown, option.name
            if isinstance(option.default, (str, int, float)) and not isinstance(option.default, bool):
                assert "[default:" in shown

    def test_voice_is_a_name_everywhere(self):
        for path, command in commands(typer.main.get_command(app)):
            for option in command.params:
                assert "--speaker" not in option.opts, path
                if "--voice" in option.opts:
                    assert "knows by name" in option.help, path

    def test_engines_are_those_there_are(self):
        from accelerator.cli.options import ENGINES
        from accelerator.engines import CHECKPOINTS

        assert set(ENGINES.replace(" or ", ", ").split(", ")) == {"reference", *CHECKPOINTS}

    def test_formats_are_those_there_are(self):
        from accelerator.audio.files import FORMATS

        assert ", ".join(FORMATS).replace(", m4a", " or m4a") in " ".join(run("synth", "--help").stdout.split())


class TestLists:
    def test_engines(self):
        found = {engine["name"]: engine for engine in answer("engines")["engines"]}
        assert set(found) >= {"reference", "fish-speech", "vits"}
        assert found["reference"]["available"]
        assert found["vits"]["checkpoints"]
        text = run("engines").stdout
        assert "--engine reference" in text

    def test_what_an_engine_lacks(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("accelerator.cli.voices._found", lambda module: module != "transformers")
        found = {engine["name"]: engine for engine in answer("engines")["engines"]}
        assert found["vits"]["missing"] == "transformers"
        assert "pip install transformers" in run("engines").stdout

    def test_voices(self):
        assert answer("voices")["voices"] == ["slt", "rms", "awb"]
        assert run("voices").stdout.split() == ["slt", "rms", "awb"]
        assert "knows no voices" in run("voices", *TINY).stderr
        assert error("voices", "--engine", "nope", exit_code=2)["type"] == "BadParameter"


class TestDoctor:
    def test_json(self, cache: Path):
        found = answer("doctor", "--cache-dir", cache)
        parts = {"hardware", "tier", "versions", "providers", "cache", "engines", "kernels", "choices", "warnings"}
        assert set(found) == parts
        assert found["versions"]["accelerator"] == accelerator.__version__
        assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
        assert "CPUExecutionProvider" in found["providers"]
        assert found["tier"]["threads"] >= 1
        assert found["hardware"]["usable_cores"] >= 1
        assert len(found["hardware"]["fingerprint"]) == 16
        place = found["cache"]
        assert (place["path"], place["writable"], place["parents"]) == (str(cache), True, [])
        assert place["entries"] == 4
        assert place["bytes"] > 100_000
        engines = {engine["name"]: engine for engine in found["engines"]}
        assert engines["reference"]["available"]
        assert engines["fish-speech"]["checkpoints"]

    def test_text(self, tmp_path: Path):
        result = run("doctor", "--cache-dir", tmp_path)
        assert result.exit_code == 0
        for word in ("Processor", "Tier", "onnxruntime", "Writable", "reference", str(tmp_path)):
            assert word in result.stdout

    def test_says_what_runs(self, exported: dict, cache: Path):
        found = answer("doctor", "--cache-dir", cache)
        choices = {choice["part"]: choice for choice in found["choices"]}
        for name, part in exported["parts"].items():
            assert choices[name]["backend"] == part["backend"]
            assert choices[name]["seconds"] == part["probe"]["seconds"]
        text = run("doctor", "--cache-dir", cache).stdout
        assert "text2semantic" in text
        assert "Compiled kernels" in text

    @pytest.mark.parametrize(
        ("wanted", "says"), [("none", "ACCELERATOR_KERNELS=none"), ("sse", "ACCELERATOR_KERNELS is 'sse'")]
    )
    def test_says_why_there_are_no_kernels(
        self, wanted: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        from accelerator.kernels import compiler

        monkeypatch.setenv("ACCELERATOR_KERNELS", wanted)
        compiler.available.cache_clear()
        try:
            found = answer("doctor", "--cache-dir", tmp_path)["kernels"]
            assert not found["available"]
            assert says in found["reason"]
            assert says in run("doctor", "--cache-dir", tmp_path).stdout
        finally:
            compiler.available.cache_clear()

    def test_what_a_warm_cache_means_that_cannot_be_written(self, cache: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("accelerator.cache.ContentCache.writable", False)
        (warning,) = [w for w in answer("doctor", "--cache-dir", cache)["warnings"] if "cannot be written" in w]
        assert "its 4 entries are used" in warning

    def test_what_is_missing_and_how_to_install_it(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        monkeypatch.setattr("accelerator.cli.doctor._PACKAGES", ("no-such-package",))
        monkeypatch.setattr("accelerator.cli.doctor._versions", lambda: {"onnxruntime": "1", "no-such-package": None})
        (warning,) = [w for w in answer("doctor", "--cache-dir", tmp_path)["warnings"] if "Not installed" in w]
        assert warning.startswith("Not installed: no-such-package. Install them: pip install -e ")

    def test_warns_of_a_cache_that_cannot_be_written(self, tmp_path: Path):
        (tmp_path / "file").write_text("not a directory")
        found = answer("doctor", "--cache-dir", tmp_path / "file")
        assert not found["cache"]["writable"]
        assert any("cannot be written" in warning for warning in found["warnings"])

    def test_warnings_of_the_hardware(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        from dataclasses import replace

        from accelerator.hardware import detect

        profile = replace(
            detect(), cpu_quota=0.5, virtualised=True, threads_per_core=1, logical_cpus=8, memory_available=1 << 30
        )
        monkeypatch.setattr("accelerator.hardware.detect", lambda **_: profile)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        warnings = " ".join(answer("doctor", "--cache-dir", tmp_path)["warnings"])
        assert "allows 0.5 CPUs" in warnings
        assert "8 CPUs as cores" in warnings
        assert "1.0 GiB of memory" in warnings
        assert "OMP_NUM_THREADS=3" in warnings


class TestExport:
    def test_says_how_faithful_and_how_fast_each_part_is(self, exported: dict, cache: Path):
        assert exported["engine"] == "reference"
        assert exported["cache"] == str(cache)
        assert exported["elapsed_s"] > 0
        assert set(exported["parts"]) == {"encoder", "text2semantic", "decoder"}
        for name, part in exported["parts"].items():
            assert part["errors"] == []
            for export in part["exports"].values():
                assert export["cache"] == "hit"
                assert export["proof"]["passed"]
                assert Path(export["path"]).is_dir()
            assert part["probe"]["seconds"]["original"] > 0, name

    @pytest.mark.slow
    def test_builds_what_is_missing(self, copied: Path):
        found = answer("export", *TINY, "--precision", "int8", "--threads", "1", "--cache-dir", copied)
        exports = found["parts"]["text2semantic"]["exports"]
        assert (exports["embeddings"]["cache"], exports["text2semantic"]["cache"]) == ("hit", "built")
        assert exports["text2semantic"]["precision"] == "int8"
        assert exports["text2semantic"]["proof"]["kl"] < 0.01
        names = [(e["name"], e["precision"]) for e in answer("cache", "list", "--cache-dir", copied)["entries"]]
        assert ("text2semantic", "int8") in names

    def test_for_people(self, exported: dict, cache: Path):
        result = run("export", *TINY, "--precision", "fp32", "--cache-dir", cache)
        assert result.exit_code == 0
        assert "hit" in result.stdout
        assert "built" not in result.stdout
        assert "max_error" in result.stdout
        assert "as it was: " in result.stdout
        assert "random" in result.stderr

    def test_a_part_that_cannot_be_exported_is_1(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        def fail(*args: object, **kwargs: object) -> None:
            raise CacheError("no place")

        monkeypatch.setattr("accelerator.pipeline.selection.export_best", fail)
        found = answer("export", *TINY, "--cache-dir", tmp_path, exit_code=1)
        assert found["error"]["type"] == "ExportError"
        assert "no place" in found["error"]["message"]
        assert found["parts"]["decoder"]["backend"] == "pytorch"


def assert_alike(wav: bytes, other: bytes) -> None:
    """Samples of 16 bits, but for the last: sums of a window may be taken in another order than those of a whole."""
    a, b = (np.frombuffer(data[44:], "<i2").astype(int) for data in (wav, other))
    assert len(a) == len(b)
    assert np.abs(a - b).max() <= 1
    assert np.abs(a).max() > 1000


class TestTune:
    """The parts are real, their times are not: what is measured is told by `seconds`, and how busy others are."""

    @pytest.fixture
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
        told = {"onnxruntime": 1.0, "pytorch": 2.0, "others": 0.0}
        adapter = accelerator.engines.reference.ReferenceAdapter
        own = adapter.parts

        def parts(self: Any) -> list[Any]:
            from dataclasses import replace

            return [replace(part, probe=lambda call, torch=part.original: seconds(call == torch)) for part in own(self)]

        def seconds(is_torch: bool) -> float:
            return told["pytorch" if is_torch else "onnxruntime"]

        monkeypatch.setattr(adapter, "parts", parts)
        monkeypatch.setattr("accelerator.hardware.busy.BusyClock.others_cpus", lambda _: told["others"])
        return told

    def test_changes_what_a_busy_machine_chose(self, machine: dict[str, float], copied: Path):
        args = ("tune", *TINY, "--precision", "fp32", "--threads", "1", "--cache-dir", copied)
        known = set(answer("doctor", "--cache-dir", copied)["warnings"])  # what was truly measured may wait, too
        machine.update(others=1.5, onnxruntime=3.0)
        first = answer(*args)
        assert first["others_cpus"] == 1.5
        for part in first["parts"].values():
            assert (part["before"], part["result"]) == ({}, "measured for the first time")
            assert (part["after"]["backend"], part["after"]["calm"]) == ("original", False)
        warnings = answer("doctor", "--cache-dir", copied)["warnings"]
        waiting = [w for w in warnings if "while others kept 1.5 CPUs busy" in w]
        assert [w.split()[0] for w in sorted(waiting)] == ["decoder", "encoder", "text2semantic"]
        machine.update(others=0.0, onnxruntime=1.0)
        second = answer(*args)
        for part in second["parts"].values():
            assert (part["before"]["backend"], part["after"]["backend"]) == ("original", "onnxruntime")
            assert (part["after"]["calm"], part["result"]) == (True, "changed: a seed sounds different")
        warnings = answer("doctor", "--cache-dir", copied)["warnings"]
        assert not any("tune" in warning for warning in warnings if warning not in known)
        third = answer(*args)
        assert third["others_cpus"] is None
        assert {part["result"] for part in third["parts"].values()} == {"known; --again measures it"}
        machine.update(others=1.0, onnxruntime=9.0)
        fourth = answer(*args, "--again")
        for part in fourth["parts"].values():
            assert part["after"]["backend"] == "onnxruntime"
            assert part["result"] == "the same: the machine was busier than when it was measured"

    def test_for_people(self, machine: dict[str, float], copied: Path):
        args = ("tune", *TINY, "--precision", "fp32", "--threads", "1", "--cache-dir", copied)
        machine.update(others=1.5)
        result = run(*args)
        assert result.exit_code == 0
        for text in ("text2semantic", "onnxruntime-1: 1.00 s", "busy: 1.5 CPUs", "measured for the first time"):
            assert text in result.stdout
        assert "others kept 1.5 CPUs busy meanwhile" in result.stderr
        machine.update(others=0.0)
        result = run(*args, "--again")
        assert "calm" in result.stdout
        assert "The machine was calm" in result.stdout
        assert "busy" not in result.stderr

    def test_a_part_that_cannot_be_exported_is_1(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        def fail(*args: object, **kwargs: object) -> None:
            raise CacheError("no room")

        monkeypatch.setattr("accelerator.pipeline.selection.export_best", fail)
        found = answer("tune", *TINY, "--cache-dir", tmp_path, exit_code=1)
        assert "no room" in found["error"]["message"]
        assert {part["result"] for part in found["parts"].values()} == {"not measured"}

    def test_help_says_what_a_seed_promises(self):
        assert "a seed" in run("tune", "--help").stdout
        told = " ".join(run("synth", "--help").stdout.replace("│", " ").split())
        assert "Same seed, same audio, on one machine with one tuning" in told


class TestSynth:
    def test_writes_what_it_says(self, cache: Path, tmp_path: Path):
        target = tmp_path / "out.wav"
        found = answer("synth", "Hello there.", "-o", target, *TINY, *FEW, "--precision", "fp32", "--cache-dir", cache)
        assert set(found) == {"output", "engine", "format", "sample_rate", "samples", "chunks", "metrics"}
        assert (found["format"], found["chunks"]) == ("wav", 1)
        assert found["output"] == str(target)
        assert wav(target) == (found["samples"], found["sample_rate"])
        metrics = found["metrics"]
        assert metrics["frames"] == 12
        assert found["samples"] / found["sample_rate"] == pytest.approx(metrics["audio_s"])
        assert metrics["rtf"] == pytest.approx(metrics["elapsed_s"] / metrics["audio_s"], rel=0.05)
        assert metrics["cache"]["text2semantic"] == "hit"
        assert metrics["fallback"] == []
        assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]

    def test_one_line_for_people(self, cache: Path, tmp_path: Path):
        result = run("synth", "Hello", "-o", tmp_path / "a.wav", *TINY, *FEW, "--cache-dir", cache)
        assert result.exit_code == 0
        assert result.stdout.count("\n") == 1
        for word in ("s of speech", "rtf", "first audio after", "text2semantic", "decoder"):
            assert word in result.stdout

    def test_streamed_audio_is_the_same(self, cache: Path, tmp_path: Path):
        paths = [tmp_path / "whole.wav", tmp_path / "stream.wav"]
        options = [*TINY, *FEW, "--precision", "fp32", "--cache-dir", cache]
        whole = answer("synth", "Hello", "-o", paths[0], *options)
        streamed = answer("synth", "Hello", "-o", paths[1], "--stream", *options)
        assert streamed["chunks"] == 2
        assert streamed["samples"] == whole["samples"]
        assert_alike(*(path.read_bytes() for path in paths))

    def test_stdin_to_stdout(self, cache: Path, tmp_path: Path):
        options = [*TINY, *FEW, "--precision", "fp32", "--cache-dir", cache]
        run("synth", "Grüße", "-o", tmp_path / "a.wav", *options)
        result = run("synth", "-", "-o", "-", *options, input="Grüße\n".encode())
        assert result.exit_code == 0, result.output
        assert result.stdout_bytes == (tmp_path / "a.wav").read_bytes()
        streamed = run("synth", "-", "-o", "-", "--stream", *options, input="Grüße\r\n".encode())
        assert_alike(streamed.stdout_bytes, result.stdout_bytes)
        assert streamed.stdout_bytes[:4] == b"RIFF"
        assert "s of speech" in streamed.stderr

    def test_speaks_by_name(self, cache: Path, tmp_path: Path, voice: Path):
        options = [*TINY, *FEW, "--precision", "fp32", "--cache-dir", cache]
        found = error("synth", "Hello", "-o", tmp_path / "a.wav", "--voice", "anna", *options, exit_code=1)
        assert (found["type"], "anna" in found["message"]) == ("InvalidOption", True)
        both = ["--voice", "anna", "--reference", voice]
        found = error("synth", "Hello", "-o", tmp_path / "a.wav", *both, *options, exit_code=2)
        assert "not both" in found["message"]

    def test_speaks_a_long_text_in_segments(self, cache: Path, tmp_path: Path):
        options = [*TINY, *FEW, "--precision", "fp32", "--cache-dir", cache]
        text = "This is a sentence that is spoken. " * 12
        found = answer("synth", text, "-o", tmp_path / "a.wav", *options)
        assert "".join(s["text"] for s in found["metrics"]["segments"]) == text
        assert len(found["metrics"]["segments"]) > 1

    def test_speaks_in_a_voice(self, copied: Path, tmp_path: Path, voice: Path):
        options = ["--reference", voice, "--reference-text", "la", "--precision", "fp32", "--cache-dir", copied]
        found = answer("synth", "Hello", "-o", tmp_path / "a.wav", *TINY, *FEW, *options)
        assert "encoder" in found["metrics"]["backends"]

    def test_an_engine_saved_to_a_file(self, cache: Path, tmp_path: Path):
        from accelerator.reference import load

        load("tiny").save(tmp_path / "engine.safetensors")
        options = ["--checkpoint", tmp_path / "engine.safetensors", "--precision", "fp32", "--cache-dir", cache]
        found = answer("synth", "Hello", "-o", tmp_path / "a.wav", *FEW, *options)
        assert found["metrics"]["cache"]["decoder"] == "hit"  # the same weights

    def test_an_engine_from_its_checkpoint(self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        from accelerator.engines import CHECKPOINTS
        from accelerator.engines.reference import ReferenceAdapter
        from accelerator.reference import load

        class Adapter(ReferenceAdapter):
            @classmethod
            def from_checkpoint(cls, path: Path) -> Adapter:
                assert path == tmp_path
                return cls(load("tiny"))

        module = types.ModuleType("an_engine")
        module.Adapter = Adapter
        monkeypatch.setitem(sys.modules, "an_engine", module)
        monkeypatch.setitem(CHECKPOINTS, "an-engine", "an_engine:Adapter")
        options = ["--engine", "an-engine", "--checkpoint", tmp_path, "--precision", "fp32", "--cache-dir", cache]
        found = answer("synth", "Hello", "-o", tmp_path / "a.wav", *FEW, *options)
        assert (found["engine"], found["metrics"]["frames"]) == ("an-engine", 12)
        wrong = error("synth", "Hello", "-o", tmp_path / "a.wav", *options, *TINY, exit_code=2)
        assert "sizes" in wrong["message"]

    @pytest.mark.parametrize(
        ("args", "exit_code", "kind", "says"),
        [
            (["hi", "--engine", "nope"], 2, "BadParameter", "choose one of"),
            (["hi", "--engine", "fish-speech"], 2, "BadParameter", "--checkpoint DIR"),
            (["hi", "--checkpoint", "/nowhere/at/all"], 1, "EngineError", "does not exist"),
            (["hi", "--size", "huge"], 2, "BadParameter", "huge"),
            (["hi", "--reference", "/nowhere/voice.wav"], 1, "InvalidReference", "does not exist"),
            (["hi", "--reference-text", "la"], 1, "InvalidReference", "--reference"),
            (["hi", "--top-p", "7"], 1, "InvalidOption", "top_p"),
            (["hi", "--seed", "-1"], 1, "InvalidOption", "seed"),
            (["?!"], 1, "InvalidText", "no letter"),
            (["hi", "-o", "/nowhere/at/all/a.wav"], 1, "InvalidOption", "directory does not exist"),
            (["hi", "-o", "."], 1, "InvalidOption", "is a directory"),
            (["hi", "-o", "-"], 2, "BadParameter", "stdout"),
            (["hi", "-o", "a.aiff"], 1, "InvalidOption", "the formats are wav, flac, mp3, ogg, opus, m4a"),
            (["hi", "-o", "a"], 1, "InvalidOption", "no suffix"),
            (["hi", "--format", "aac"], 1, "InvalidOption", "no audio format 'aac'"),
            ([], 2, "BadParameter", "give a text"),
            (["hi", "--file", "a.txt"], 2, "BadParameter", "not both"),
            (["--file", "/nowhere/at/all.txt"], 1, "InvalidText", "cannot be read"),
        ],
    )
    def test_refuses(self, args: list[str], exit_code: int, kind: str, says: str, tmp_path: Path):
        output = [] if "-o" in args else ["-o", tmp_path / "a.wav"]
        found = error("synth", *args, *output, "--cache-dir", tmp_path / "cache", exit_code=exit_code)
        assert found["type"] == kind
        assert says in found["message"]
        assert list(tmp_path.iterdir()) == []  # before anything was loaded, exported or written

    @pytest.mark.parametrize(("suffix", "kind"), [("mp3", "MP3"), ("flac", "FLAC"), ("ogg", "OGG"), ("opus", "OGG")])
    @pytest.mark.parametrize("stream", [[], ["--stream"]])
    def test_writes_what_the_suffix_says(self, suffix: str, kind: str, stream: list, cache: Path, tmp_path: Path):
        options = [*TINY, *FEW, *stream, "--precision", "fp32", "--cache-dir", cache]
        found = answer("synth", "Hello there.", "-o", tmp_path / f"a.{suffix}", *options)
        info = soundfile.info(str(tmp_path / f"a.{suffix}"))
        assert (info.format, found["format"]) == (kind, suffix)
        assert info.frames == found["samples"]
        assert [path.name for path in tmp_path.iterdir()] == [f"a.{suffix}"]

    @pytest.mark.parametrize("stream", [[], ["--stream"]])
    def test_format_decides_where_no_suffix_does(self, stream: list, cache: Path, tmp_path: Path):
        options = [*TINY, *FEW, *stream, "--precision", "fp32", "--cache-dir", cache]
        result = run("synth", "Hello", "-o", "-", "--format", "flac", *options)
        assert result.exit_code == 0, result.output
        assert result.stdout_bytes[:4] == b"fLaC"
        answer("synth", "Hello", "-o", tmp_path / "a.wav", "--format", "flac", *options)
        assert (tmp_path / "a.wav").read_bytes()[:4] == b"fLaC"

    def test_speaks_a_file(self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        options = [*TINY, *FEW, "--precision", "fp32", "--cache-dir", cache]
        monkeypatch.chdir(tmp_path)
        (tmp_path / "text.txt").write_text("Grüße\n", encoding="utf-8")
        run("synth", "Grüße", "-o", "a.wav", *options)
        assert "speaks the name" not in run("synth", "-f", "text.txt", "-o", "b.wav", *options).stderr
        assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()
        result = run("synth", "text.txt", "-o", "c.wav", *options)
        assert result.exit_code == 0
        assert "speaks the name 'text.txt'" in result.stderr
        assert "--file text.txt" in result.stderr

    def test_grows_as_it_is_spoken(self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        from accelerator.audio.files import AudioWriter

        sizes: list[int] = []
        write = AudioWriter.write

        def watched(self: AudioWriter, audio: np.ndarray) -> None:
            write(self, audio)
            (partial,) = tmp_path.glob("a.*.partial.wav")
            sizes.append(partial.stat().st_size)

        monkeypatch.setattr(AudioWriter, "write", watched)
        options = [*TINY, *FEW, "--precision", "fp32", "--cache-dir", cache]
        found = answer("synth", "This is a sentence that is spoken. " * 12, "-o", tmp_path / "a.wav", *options)
        assert len(sizes) == found["chunks"] > 1
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == 44 + 2 * found["samples"]
        assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]

    @pytest.mark.parametrize("keep", [[], ["--keep-partial"]])
    @pytest.mark.parametrize("suffix", ["wav", "mp3"])
    def test_ctrl_c_while_it_speaks(
        self, keep: list, suffix: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        from accelerator.audio.files import AudioWriter

        write, written = AudioWriter.write, []

        def interrupted(self: AudioWriter, audio: np.ndarray) -> None:
            if written:
                raise KeyboardInterrupt
            write(self, audio)
            written.append(len(audio))

        monkeypatch.setattr(AudioWriter, "write", interrupted)
        (tmp_path / f"a.{suffix}").write_bytes(b"before")
        options = [*TINY, *FEW, *keep, "--precision", "fp32", "--cache-dir", cache]
        text = "This is a sentence that is spoken. " * 12
        result = run("synth", text, "-o", tmp_path / f"a.{suffix}", *options)
        assert result.exit_code == 130
        assert (tmp_path / f"a.{suffix}").read_bytes() == b"before"
        partial = list(tmp_path.glob(f"a.*.partial.{suffix}"))
        assert len(partial) == len(keep)
        if keep:
            assert soundfile.info(str(partial[0])).frames == written[0]
            assert str(partial[0]) in result.stderr

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full in this file system")
    @pytest.mark.parametrize("stream", [[], ["--stream"]])
    def test_a_full_disk(self, stream: list, cache: Path):
        found = error("synth", "hi", "-o", "/dev/full", *TINY, *FEW, *stream, "--cache-dir", cache)
        assert found["type"] == "InvalidOption"
        assert "'/dev/full' cannot be written (No space left on device)" in found["message"]

    @pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout in this file system")
    def test_stdout_by_name_and_descriptors(self, cache: Path, tmp_path: Path):
        """What is said for people goes to stderr then, or it would be in the audio."""
        command = [sys.executable, "-m", "accelerator", "synth", "Hello", *TINY, *FEW, "--cache-dir", str(cache)]
        command += ["--precision", "fp32"]
        answer("synth", "Hello", *TINY, *FEW, "--cache-dir", cache, "--precision", "fp32", "-o", tmp_path / "a.wav")
        expected = (tmp_path / "a.wav").read_bytes()
        piped = subprocess.run([*command, "-o", "/dev/stdout"], capture_output=True, timeout=100)
        assert piped.stdout == expected
        assert b"s of speech" in piped.stderr
        with open(tmp_path / "b.wav", "wb") as file:
            subprocess.run(
                [*command, "-o", "/dev/stdout"], stdout=file, stderr=subprocess.PIPE, check=True, timeout=100
            )
        assert (tmp_path / "b.wav").read_bytes() == expected
        if shutil.which("bash"):
            words = " ".join(map(shlex.quote, command))
            script = f"{words} -o >(cat > {shlex.quote(str(tmp_path / 'c.wav'))}); sleep 1"
            subprocess.run(["bash", "-c", script], check=True, capture_output=True, timeout=100)
            assert (tmp_path / "c.wav").read_bytes() == expected

    @pytest.mark.parametrize(("data", "says"), [(b"", "empty"), (b"\xff\xfe", "UTF-8"), (b"a" * 500_000, "split it")])
    def test_refuses_what_stdin_says(self, data: bytes, says: str, tmp_path: Path):
        found = error("synth", "-", "-o", tmp_path / "a.wav", input=data)
        assert found["type"] == "InvalidText"
        assert says in found["message"]

    def test_refuses_a_damaged_checkpoint(self, tmp_path: Path):
        (tmp_path / "engine.safetensors").write_bytes(b"nonsense")
        found = error("synth", "hi", "-o", tmp_path / "a.wav", "--checkpoint", tmp_path / "engine.safetensors")
        assert found["type"] == "EngineError"


class TestCache:
    def test_path_and_its_default(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        assert answer("cache", "path", "--cache-dir", tmp_path) == {"path": str(tmp_path)}
        monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path / "elsewhere"))
        assert run("cache", "path").stdout == f"{tmp_path / 'elsewhere'}\n"
        assert not (tmp_path / "elsewhere").exists()

    def test_list(self, cache: Path):
        found = answer("cache", "list", "--cache-dir", cache)
        assert {entry["name"] for entry in found["entries"]} == {"embeddings", "text2semantic", "encoder", "decoder"}
        for entry in found["entries"]:
            fields = {"key", "engine", "name", "precision", "bytes", "last_used", "created_at", "layer", "path"}
            assert set(entry) == fields
            assert entry["engine"] == "reference"
            assert entry["precision"] == "fp32"
            assert entry["layer"] == "primary"
            assert Path(entry["path"]).is_dir()
            assert entry["created_at"].endswith("Z")
        assert found["bytes"] == sum(entry["bytes"] for entry in found["entries"])
        text = run("cache", "list", "--cache-dir", cache).stdout
        assert "text2semantic" in text
        assert "4 entries" in text

    def test_an_empty_one(self, tmp_path: Path):
        found = answer("cache", "list", "--cache-dir", tmp_path)
        assert found == {"path": str(tmp_path), "bytes": 0, "entries": []}
        assert "0 entries" in run("cache", "list", "--cache-dir", tmp_path).stdout

    def test_verify(self, cache: Path):
        assert answer("cache", "verify", "--cache-dir", cache) == {
            "path": str(cache),
            "entries": 4,
            "ok": True,
            "problems": [],
        }
        assert "all sound" in run("cache", "verify", "--cache-dir", cache).stdout

    def test_verify_reports_a_corrupt_entry(self, copied: Path):
        victim = next(copied.glob("v1/*/*/decoder.onnx"))
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
        found = answer("cache", "verify", "--cache-dir", copied, exit_code=1)
        assert (found["ok"], found["entries"]) == (False, 4)
        (problem,) = found["problems"]
        assert problem["path"] == str(victim.parent)
        assert problem["key"] == victim.parent.name
        result = run("cache", "verify", "--cache-dir", copied)
        assert result.exit_code == 1
        assert "1 of 4 entries damaged" in result.stdout
        assert victim.exists()  # only looked at

    def test_prune(self, copied: Path):
        before = answer("cache", "list", "--cache-dir", copied)
        result = run("cache", "prune", "--max-bytes", "0", "--cache-dir", copied)
        assert "--force" in result.stderr  # all used a moment ago
        limit = before["bytes"] - 1
        found = answer("cache", "prune", "--max-bytes", limit, "--force", "--cache-dir", copied)
        assert [e["key"] for e in found["removed"]] == [before["entries"][0]["key"]]
        assert found["bytes"] == before["bytes"] - found["freed_bytes"]
        assert answer("cache", "prune", "--max-bytes", "0", "--force", "--cache-dir", copied)["bytes"] == 0

    def test_prune_refuses_what_is_no_size(self, tmp_path: Path):
        found = error("cache", "prune", "--max-bytes", "2X", "--cache-dir", tmp_path, exit_code=2)
        assert "'2X' is no size" in found["message"]

    def test_clear(self, copied: Path):
        assert "say --yes" in error("cache", "clear", "--cache-dir", copied, exit_code=2)["message"]
        found = answer("cache", "clear", "--yes", "--cache-dir", copied)
        assert (found["removed"], answer("cache", "list", "--cache-dir", copied)["entries"]) == (4, [])
        assert found["freed_bytes"] > 100_000


class TestBench:
    @pytest.fixture
    def given(self, monkeypatch: pytest.MonkeyPatch) -> list:
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

    def test_passes_its_options_on(self, given: list, tmp_path: Path):
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
        assert json.loads(files["json"].read_text()) == {"rtf": None, "rows": [1, 2]}
        assert (files["markdown"].read_text(), files["svg"].read_text()) == ("| 1 |\n", "<svg/>")

    def test_leaves_defaults_to_the_benchmark(self, given: list):
        from accelerator.benchmark import BenchOptions

        assert run("bench").exit_code == 0
        assert given == [BenchOptions()]

    def test_names_its_default(self, given: list):
        assert run("bench", "engine", *TINY).exit_code == 0
        assert run("bench", *TINY).exit_code == 0
        assert given[0] == given[1]

    @pytest.mark.parametrize("measure", ["serving", "quality", "recipes", "llama-cpp", "feed-forward"])
    def test_a_flag_is_the_command_of_its_name(self, measure: str):
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
    def test_refuses(self, given: list, args: list[str], exit_code: int):
        assert run("bench", *args).exit_code == exit_code
        assert given == []


class TestFormats:
    @pytest.mark.parametrize(
        ("text", "count"),
        [
            ("0", 0),
            ("1024", 1024),
            ("12 B", 12),
            ("2G", 2 << 30),
            ("2g", 2 << 30),
            ("500M", 500 << 20),
            ("1.5GiB", 3 << 29),
            (" 1 KiB ", 1024),
            ("800MB", 800_000_000),
            ("1T", 1 << 40),
        ],
    )
    def test_sizes(self, text: str, count: int):
        assert formats.parse_size(text) == count

    @pytest.mark.parametrize("text", ["", "G", "-1", "2X", "1e9", "2 G B", "iB", "5iB", "nan", "inf"])
    def test_no_sizes(self, text: str):
        with pytest.raises(ValueError, match="is no size"):
            formats.parse_size(text)

    def test_for_people(self):
        assert [formats.size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 40)] == [
            "0 B",
            "1023 B",
            "1.5 KiB",
            "5.0 MiB",
            "3.0 TiB",
        ]
        assert [formats.seconds(s) for s in (1e-5, 0.0123, 0.456, 2.5, 321.0, None, float("inf"))] == [
            "10 µs",
            "12.3 ms",
            "456 ms",
            "2.50 s",
            "321 s",
            "-",
            "-",
        ]
        assert formats.iso_time(0) == "1970-01-01T00:00:00Z"

    def test_plain(self):
        value = {"a": (Path("/x"), np.float32(0.5), float("nan"), None, True), 1: np.int64(3)}
        assert formats.plain(value) == {"a": ["/x", 0.5, None, None, True], "1": 3}


class TestProgress:
    """What is drawn on a terminal, at moments of a clock that the test sets."""

    @pytest.fixture
    def console(self):
        from rich.console import Console

        return Console(force_terminal=True, width=100, color_system=None, file=io.StringIO())

    @pytest.fixture
    def drawn(self, console: Any):
        from rich.progress import Progress

        from accelerator.cli.progress import Bars, columns

        now = [0.0]
        progress = Progress(*columns(100), console=console, get_time=lambda: now[0], auto_refresh=False)
        bars = Bars(progress)

        def lines(seconds: float) -> list[str]:
            now[0] += seconds
            with console.capture() as capture:
                console.print(progress.get_renderable())
            return [" ".join(line.split()) for line in capture.get().splitlines()]

        return bars, progress, lines

    def test_a_stage_without_a_known_end_pulses_and_its_clock_runs(self, drawn: Any):
        bars, progress, lines = drawn
        bars(ProgressEvent("decoder", "build", 3, 4, "fp32"))
        lines(5)
        (task,) = progress.tasks
        assert (task.completed, task.total) == (3, 4)
        bars(ProgressEvent("decoder", "build", 4, 4, "fp32"))
        bars(ProgressEvent("decoder", "prove", precision="fp32"))
        (line,) = lines(33)
        assert line.endswith("comparing with PyTorch 0:00:33")
        (task,) = progress.tasks
        assert (task.total, task.finished) == (None, False)
        assert lines(60)[0].endswith("0:01:33")

    def test_the_last_step_is_not_the_end(self, drawn: Any):
        bars, progress, lines = drawn
        bars(ProgressEvent("decoder", "build", 4, 4, "fp32"))
        (line,) = lines(7)
        assert line.endswith("exporting 0:00:07")
        assert progress.tasks[0].total is None

    def test_a_stage_within_another(self, drawn: Any):
        bars, _, lines = drawn
        bars(ProgressEvent("text2semantic", "prove", precision="int8"))
        bars(ProgressEvent("snake kernels", "compile"))
        told = lines(20)
        assert any("text2semantic int8" in line and "done" in line for line in told)
        assert any("kernels" in line and line.endswith("compiling for this processor 0:00:20") for line in told)
        bars(ProgressEvent("text2semantic", "probe", 1, 3, "int8"))
        told = lines(2)
        assert any("text2semantic int8" in line and line.endswith("measuring what is faster 0:00:02") for line in told)
        assert any("kernels" in line and "done" in line for line in told)

    def test_speech_tells_how_far_it_is(self, drawn: Any):
        bars, _, lines = drawn
        seconds = [0.0]
        bars(ProgressEvent("decoder", "ready"))
        bars.speaking(lambda: f"{seconds[0]:.1f} s spoken")
        seconds[0] = 12.5
        assert lines(3)[-1].endswith("12.5 s spoken 0:00:03")

    def test_on_a_terminal_only(self, console: Any, capsys: pytest.CaptureFixture[str]):
        from accelerator.cli.progress import bars

        with Output().progress() as receive:  # not a terminal here
            receive(ProgressEvent("decoder", "build", 1, 4, "fp32"))
            receive.speaking(lambda: "")
        assert capsys.readouterr() == ("", "")
        with bars(console) as receive:
            receive(ProgressEvent("decoder", "build", 1, 4, "fp32"))
            receive(ProgressEvent("encoder", "prove", precision="fp32"))
        text = console.file.getvalue()
        assert "decoder fp32" in text
        assert "comparing with PyTorch" in text

    def test_compiling_is_told_to_who_prepares(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        from accelerator.export.component import telling
        from accelerator.kernels import compiler
        from accelerator.kernels.units.snake import SNAKE

        monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path))
        monkeypatch.setattr(compiler, "_compile", lambda unit: b"code")
        monkeypatch.setattr(compiler, "_processor", lambda: ("any", ""))
        events: list[ProgressEvent] = []
        with telling(events.append):
            assert compiler._object(SNAKE) == b"code"
            compiler._object(SNAKE)  # found: nothing is compiled
        compiler._object(SNAKE)
        assert events == [ProgressEvent("snake kernels", "compile")]
