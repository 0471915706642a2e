"""`doctor`: the machine, the versions, what runs, and what to do about it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import accelerator
from accelerator.cache import ContentCache, make_key
from accelerator.hardware import detect
from accelerator.pipeline.tuning import ORIGINAL, Tuning, Way
from accelerator.runtime.options import RunOptions
from tests.cli.commands import answer, run


def test_json(cache: Path):
    found = answer("doctor", "--cache-dir", cache)
    parts = {"hardware", "tier", "versions", "providers", "cache", "voices", "engines", "kernels", "choices", "heard"}
    parts |= {"warnings", "accelerators"}
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


def test_text(tmp_path: Path):
    result = run("doctor", "--cache-dir", tmp_path)
    assert result.exit_code == 0
    for word in ("Processor", "Tier", "onnxruntime", "Writable", "reference", str(tmp_path)):
        assert word in result.stdout


def test_says_what_runs(exported: dict, cache: Path):
    found = answer("doctor", "--cache-dir", cache)
    choices = {choice["part"]: choice for choice in found["choices"]}
    for name, part in exported["parts"].items():
        assert choices[name]["backend"] == part["backend"]
        assert choices[name]["seconds"] == part["probe"]["seconds"]
        assert (choices[name]["engine"], choices[name]["precision"]) == ("reference", part["precision"])
    text = run("doctor", "--cache-dir", cache).stdout
    assert "reference text2semantic" in text
    assert "(a first guess, for a large model; what runs is below)" in text
    assert "Compiled kernels" in text


@pytest.mark.parametrize(
    ("part", "best", "says"),
    [
        ("segments", "pool-2", "2 at once, on one thread each (67.0 ms one after the other, 41.0 ms at once)"),
        ("segments", "original", "one after the other (67.0 ms one after the other, 81.0 ms at once)"),
        ("graph", "original", "the engine itself, as it is faster here (81.0 ms a unit of work, the engine itself 67"),
    ],
)
def test_says_how_segments_are_spoken(part: str, best: str, says: str, tmp_path: Path):
    cache = ContentCache(tmp_path)
    seconds = {
        Way("pool", RunOptions(threads=2, backend="pool")): 0.041 if best == "pool-2" else 0.081,
        ORIGINAL: 0.067,
    }
    tuning = Tuning.of(part, seconds, 0.0, 1.0)
    cache.write_note(make_key(tuning=part), f"tuning-{detect(store=tmp_path).fingerprint}-auto", tuning.to_dict())
    (choice,) = answer("doctor", "--cache-dir", tmp_path)["choices"]
    assert (choice["part"], choice["way"]) == (part, best)
    shown = " ".join(run("doctor", "--cache-dir", tmp_path).stdout.split())
    assert f"{part} {says}" in shown


@pytest.mark.parametrize(
    ("wanted", "says"), [("none", "ACCELERATOR_KERNELS=none"), ("sse", "ACCELERATOR_KERNELS is 'sse'")]
)
def test_says_why_there_are_no_kernels(wanted: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
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


def test_what_a_warm_cache_means_that_cannot_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("accelerator.cache.ContentCache.writable", False)
    (warning,) = [w for w in answer("doctor", "--cache-dir", cache)["warnings"] if "cannot be written" in w]
    assert "its 4 entries are used" in warning


def test_what_is_missing_and_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("accelerator.cli.doctor._PACKAGES", ("no-such-package",))
    monkeypatch.setattr("accelerator.cli.doctor._versions", lambda: {"onnxruntime": "1", "no-such-package": None})
    (warning,) = [w for w in answer("doctor", "--cache-dir", tmp_path)["warnings"] if "Not installed" in w]
    assert warning.startswith("Not installed: no-such-package. Install them: pip install -e ")


def test_warns_of_a_cache_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("not a directory")
    found = answer("doctor", "--cache-dir", tmp_path / "file")
    assert not found["cache"]["writable"]
    assert any("cannot be written" in warning for warning in found["warnings"])


def test_warnings_of_the_hardware(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
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


def tuned(engine: str, part: str, precision: str = "", *, backend: str = "native", others: float = 1.5) -> dict:
    """What is kept of a measurement."""
    way = Way(backend, RunOptions(backend="onnxruntime" if backend.startswith("onnx") else backend))
    seconds = {way: 0.001, ORIGINAL: 0.002}
    return Tuning.of(part, seconds, others, 1.0, engine=engine, precisions={way: precision}).to_dict()


def remember(root: Path, *notes: dict) -> None:
    fingerprint = detect(store=root).fingerprint
    for number, note in enumerate(notes):
        assert ContentCache(root).write_note(make_key(number=number), f"tuning-{fingerprint}-auto", note)


def test_what_runs_is_grouped_by_engine_and_said_once(tmp_path: Path):
    old = tuned("", "graph")
    del old["engine"], old["precisions"]
    remember(
        tmp_path,
        tuned("reference", "text2semantic", "int8"),
        tuned("piper", "text", "fp32", backend="onnxruntime", others=0.0),
        old,
        tuned("piper", "decoder", "int8", backend="onnxruntime-int8", others=0.5),
        tuned("piper", "decoder", "int8", backend="onnxruntime-int8", others=0.9),
    )
    lines = run("doctor", "--cache-dir", tmp_path).stdout.splitlines()
    start = next(at for at, line in enumerate(lines) if "Sequences at once" in line)
    ways = [" ".join(line.split()).split(" (")[0] for line in lines[start + 1 : start + 5]]
    assert ways == [
        "piper decoder onnxruntime int8, 1 thread",
        "piper text onnxruntime fp32, 1 thread",
        "reference text2semantic native int8, 1 thread",
        "some engine graph native, 1 thread",
    ]
    busy = [line for line in lines if "CPUs busy" in line]
    assert busy == [
        "- Measured while others kept up to 1.5 CPUs busy: piper decoder, reference text2semantic, some engine graph. "
        "A later start measures again, `accelerator tune` does it now."
    ]
    assert len(answer("doctor", "--cache-dir", tmp_path)["choices"]) == 5


@pytest.mark.parametrize(
    ("place", "store", "says"),
    [
        ("redis://:s3cret@127.0.0.1:1/0", "redis://127.0.0.1:1/0", "it cannot be reached"),
        ("redis://:s3/cret@host", "ACCELERATOR_VOICES", "the address of voices cannot be read"),
        ("", None, None),
    ],
)
def test_says_where_voices_are_kept(
    place: str, store: str | None, says: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    if "127" in place:
        pytest.importorskip("redis", reason="needs redis-py: the extra redis")
    monkeypatch.setenv("ACCELERATOR_VOICES", place)
    found = answer("doctor", "--cache-dir", tmp_path)
    assert found["voices"]["store"] == (store or str(tmp_path))
    shown = run("doctor", "--cache-dir", tmp_path).stdout
    assert "s3" not in f"{found}{shown}"
    if says is not None:
        assert says in found["voices"]["problem"]
        assert any("encoded in each process" in warning for warning in found["warnings"])
    else:
        assert found["voices"]["problem"] is None
