"""The demo: what it measures and says, at the smallest size."""

from __future__ import annotations

import json
import shutil
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from accelerator import reference
from accelerator.benchmark.demo import FRAMES, UNTRAINED, DemoOptions, open_voice, run
from accelerator.cli import app
from accelerator.errors import EngineError, InvalidOption, InvalidText

PRECISIONS = ["--precision", "fp32", "--precision", "int8"]


@pytest.fixture(scope="module")
def cache(exports: Path, fast: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own with the tiny engine's float32 exports, which are built once for all test modules."""
    root = tmp_path_factory.mktemp("cache")
    for part in fast.status()["parts"].values():
        for export in part["exports"].values():
            path = Path(export["path"])
            shutil.copytree(path, root / path.relative_to(exports))
    return root


@pytest.fixture(scope="module")
def shown(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """The figures of `demo --json`, and the file it wrote."""
    output = tmp_path_factory.mktemp("demo") / "out.wav"
    args = ["demo", "--size", "tiny", *PRECISIONS, "--rounds", "2", "-o", str(output), "--cache-dir", str(cache)]
    result = CliRunner().invoke(app, [*args, "--json"])
    assert result.exit_code == 0, result.output
    assert "Measuring" in result.stderr
    return json.loads(result.stdout), output


def test_the_second_run_finds_everything(shown: tuple[dict, Path]):
    figures, _ = shown
    assert figures["second_run"]["cache"] == {"text2semantic": "hit", "decoder": "hit"}  # no voice, so no encoder
    assert figures["first_run"]["errors"] == figures["second_run"]["errors"] == {}
    assert figures["second_run"]["seconds"] > 0


def test_rows_compare_pytorch_with_each_precision(shown: tuple[dict, Path]):
    rows = shown[0]["rows"]
    assert [(row["asked"], row["precision"]) for row in rows] == [
        ("pytorch", "fp32"),
        ("fp32", "fp32"),
        ("int8", "int8"),
    ]
    assert rows[0]["backend"] == "pytorch"
    assert rows[0]["speed_up"] == 1
    for row in rows:
        assert len(row["rtf_rounds"]) == 2
        assert min(row["rtf_rounds"]) <= row["rtf"] <= max(row["rtf_rounds"])
        assert row["speed_up"] == pytest.approx(rows[0]["rtf"] / row["rtf"])
        assert row["frames_per_s"] > 0
        assert row["ttfa_s"] > 0
        assert row["audio_s"] == pytest.approx(FRAMES * 256 / 16_000)


def test_pytorch_gets_its_best_setting(shown: tuple[dict, Path]):
    import torch

    threads = torch.get_num_threads()
    assert shown[0]["torch_threads"] in {1, threads}
    assert shown[0]["others_cpus"] is None or shown[0]["others_cpus"] >= 0


def test_writes_what_it_says(shown: tuple[dict, Path]):
    figures, output = shown
    assert figures["output"] == str(output)
    with wave.open(str(output)) as file:
        assert (file.getnframes(), file.getframerate()) == (figures["samples"], figures["sample_rate"])
    assert figures["samples"] / figures["sample_rate"] == pytest.approx(figures["metrics"]["audio_s"])


def test_the_audio_is_handed_over_before_anything_is_compared(cache: Path):
    events: list[str] = []
    options = DemoOptions(size="tiny", precisions=("fp32",), rounds=1, cache_dir=cache)
    result = run(options, report=events.append, write=lambda audio, rate: events.append(f"{len(audio)} at {rate}"))
    assert events.index(f"{len(result.audio)} at 16000") < min(i for i, e in enumerate(events) if "Second run" in e)
    assert result.figures["spoken_s"] > result.figures["first_run"]["seconds"]


def test_says_plainly_that_the_weights_are_random(shown: tuple[dict, Path]):
    voice = shown[0]["voice"]
    assert (voice["size"], voice["trained"], voice["note"]) == ("tiny", False, UNTRAINED)
    assert "random" in voice["note"]
    assert "noise" in voice["note"]


def test_table(shown: tuple[dict, Path], cache: Path, tmp_path: Path):
    output = tmp_path / "out.wav"
    args = ["demo", "--size", "tiny", "--precision", "fp32", "--rounds", "1", "--cache-dir", str(cache)]
    result = CliRunner().invoke(app, [*args, "-o", str(output), "--text", "Good evening."])
    assert result.exit_code == 0, result.output
    for word in ("backend", "rtf", "frames/s", "first audio", "speed-up", "pytorch", "onnxruntime", "1.00 x", "random"):
        assert word in result.stdout
    assert "First run: ready in" in result.stderr
    assert result.stderr.index("Spoken") < result.stderr.index("Second run")
    assert "Second run, from the cache" in result.stderr
    assert output.stat().st_size > 1000


def test_speaks_in_a_voice(shown: tuple[dict, Path], cache: Path):
    t = np.arange(16_000) / 16_000
    voice = cache.parent / "voice.wav"
    from accelerator.audio.checks import write_wav

    write_wav(voice, (0.3 * np.sin(2 * np.pi * 180 * t)).astype(np.float32), 16_000)
    options = DemoOptions(size="tiny", reference=voice, precisions=("fp32",), rounds=1, cache_dir=cache)
    figures, audio, rate = run(options, report=lambda line: None)
    assert set(figures["second_run"]["cache"]) == {"encoder", "text2semantic", "decoder"}
    assert len(audio) == FRAMES * 256
    assert rate == 16_000


def test_speaks_as_the_speaker_chosen(cache: Path, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lm = replace(tiny.config.language_model, speakers=("ann", "bob"), speaker_begin=324)
    config = replace(tiny.config, language_model=lm, max_new_tokens=8)
    reference.ReferenceEngine(config, tiny.language_model, tiny.codec).save(tmp_path / "voice.safetensors")
    monkeypatch.setattr("accelerator.reference.bundled.bundled_voice", lambda: tmp_path / "voice.safetensors")
    audio = {}
    for speaker in (None, "ann", "bob"):
        options = DemoOptions(speaker=speaker, precisions=("fp32",), rounds=1, cache_dir=cache)
        figures, audio[speaker], _ = run(options, report=lambda line: None)
        assert figures["voice"]["speaker"] == (speaker or "ann")
        assert figures["voice"]["speakers"] == ["ann", "bob"]
        assert figures["voice"]["trained"]
    np.testing.assert_array_equal(audio[None], audio["ann"])  # the first is the one that speaks unless told otherwise
    assert audio["ann"].shape == audio["bob"].shape
    assert not np.array_equal(audio["ann"], audio["bob"])


@pytest.mark.parametrize(
    ("args", "exit_code"),
    [
        (["--text", "..."], 1),
        (["--reference", "/nowhere/voice.wav"], 1),
        (["--size", "tiny", "--voice", "nobody"], 1),
        (["--voice", "slt", "--reference", __file__], 1),
        (["-o", "/nowhere/at/all/demo.wav"], 1),
        (["--size", "huge"], 2),
        (["--rounds", "0"], 2),
    ],
)
def test_refuses(args: list[str], exit_code: int, tmp_path: Path):
    output = [] if "-o" in args else ["-o", str(tmp_path / "demo.wav")]
    result = CliRunner().invoke(app, ["demo", *args, *output, "--json", "--cache-dir", str(tmp_path / "cache")])
    assert result.exit_code == exit_code
    assert json.loads(result.stdout)["error"]["exit_code"] == exit_code
    assert list(tmp_path.iterdir()) == []


def test_random_until_one_is_bundled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("accelerator.reference.bundled.bundled_voice", lambda: None)
    voice = open_voice("tiny")
    assert (voice.size, voice.trained) == ("tiny", False)


def test_a_bundled_one_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    reference.load("small", seed=7).save(tmp_path / "voice.safetensors")
    monkeypatch.setattr("accelerator.reference.bundled.bundled_voice", lambda: tmp_path / "voice.safetensors")
    voice = open_voice()
    assert (voice.size, voice.trained) == ("small", True)
    assert not open_voice("tiny").trained


def test_a_saved_one(tmp_path: Path):
    reference.load("tiny").save(tmp_path / "mine.safetensors")
    assert open_voice(path=tmp_path / "mine.safetensors").size == "tiny"
    with pytest.raises(EngineError, match="not 'small'"):
        open_voice("small", tmp_path / "mine.safetensors")


def test_an_unknown_size():
    with pytest.raises(EngineError, match="unknown size"):
        open_voice("enormous")


def test_options_are_checked():
    with pytest.raises(InvalidOption, match="rounds"):
        DemoOptions(rounds=0)
    with pytest.raises(InvalidText):
        run(DemoOptions(text="?"), report=lambda line: None)
