"""`synth --engine spark-tts-onnx` and `demo spark-tts`: from words of the command line to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator.audio.checks import read_audio
from accelerator.cli import convert
from accelerator.engines import CHECKPOINTS
from accelerator.engines.spark_tts import onnx
from accelerator.engines.spark_tts.convert import Verdict
from tests.cli.commands import answer, error
from tests.skeletons import Tokens

RATE = 16_000
AUDIO = np.linspace(-0.5, 0.5, RATE, dtype=np.float32)


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a converted engine was asked."""
    asked: list[dict[str, Any]] = []

    class Spoken:
        def __init__(self, folder: Path, **options: Any) -> None:
            self._made = {"folder": folder, "cache": options["cache_dir"]}

        def inference(self, text: str, says: Any, save_dir: None, recording: Any, **how: Any) -> Any:
            asked.append({**self._made, "text": text, "says": says, "recording": recording, **how})
            info = {"text": text, "sample_rate": RATE, "tokens": 50, "seconds": 1.0, "elapsed_s": 0.5, "path": None}
            return AUDIO, info

    monkeypatch.setattr(onnx, "SparkTTSONNX", Spoken)
    return asked


@pytest.mark.parametrize("sign", ["-", "_"])
def test_synth_in_the_words_of_the_first_script(
    monkeypatch: pytest.MonkeyPatch, voice: Path, tmp_path: Path, sign: str
) -> None:
    opened = []
    own = CHECKPOINTS["spark-tts-onnx"]
    assert own == "accelerator.engines.spark_tts:ConvertedAdapter"

    def from_checkpoint(path: Path, cache: Any) -> Tokens:
        opened.append(path)
        return Tokens()

    monkeypatch.setattr("accelerator.engines.spark_tts.converted.ConvertedAdapter.from_checkpoint", from_checkpoint)
    words = {"model-dir": str(tmp_path), "prompt-path": str(voice), "output-dir": str(tmp_path / "out"), "text": "Hi."}
    given = [word for name, value in words.items() for word in ("--" + name.replace("-", sign), value)]
    found = answer("synth", "--engine", "spark-tts-onnx", *given)
    assert opened == [tmp_path]
    (file,) = (tmp_path / "out").iterdir()
    assert (found["output"], found["engine"]) == (str(file), "spark-tts-onnx")
    assert found["metrics"]["audio_s"] > 0


def test_synth_says_what_is_missing(tmp_path: Path) -> None:
    found = error("synth", "Hello.", "--engine", "spark-tts-onnx", "-o", tmp_path / "a.wav", exit_code=2)
    assert "needs --checkpoint DIR: `accelerator convert spark-tts --model-dir DIR` makes one" in found["message"]
    assert "give one" in error("synth", "Hello.", exit_code=2)["message"]
    given = ["synth", "Hello.", "--engine", "spark-tts-onnx", "--model-dir", tmp_path, "-o", tmp_path / "a.wav"]
    assert "there is no converted Spark-TTS in" in error(*given)["message"]
    assert "not both" in error(*given, "--text", "Twice.", exit_code=2)["message"]
    assert "give either" in error(*given, "--output-dir", "out", exit_code=2)["message"]


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = error("synth", "Hello.", "--size", "tiny", "--output-dir", tmp_path / "file")
    assert "cannot be written" in found["message"]


def test_the_demonstration_converts_once_and_speaks(
    spoken: list[dict[str, Any]], voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[Path] = []

    def converting(out: Any, model_dir: Path, folder: Path, cache_dir: Any, **how: Any) -> list[Verdict]:
        folder.mkdir()
        converted.append(folder)
        return [Verdict("decoder")]

    monkeypatch.setattr(convert, "run", converting)
    output = ["-o", tmp_path / "demo.wav"]
    found = answer("demo", "spark-tts", "--model_dir", tmp_path, "--text", "Hello.", *output)
    assert found["output"] == str(tmp_path / "demo.wav")
    assert len(read_audio(tmp_path / "demo.wav")[0]) == RATE
    answer("demo", "spark-tts", "--model-dir", tmp_path, "--reference", voice, *output)
    assert converted == [tmp_path / "onnx"]
    described, imitating = spoken
    assert (described["gender"], described["text"], described["recording"]) == ("female", "Hello.", None)
    assert (imitating["recording"], imitating["folder"]) == (voice, tmp_path / "onnx")
    assert "gender" not in imitating


def test_a_demonstration_of_what_differs_is_1(
    spoken: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Verdict("decoder", {"passed": False, "max_error": 0.5, "bar": {"max_error": 1e-4}})
    monkeypatch.setattr(convert, "run", lambda *args, **how: [bad])
    found = error("demo", "spark-tts", "--model-dir", tmp_path, "-o", tmp_path / "demo.wav")
    assert found["type"] == "ExportError"
    assert "decoder differs" in found["message"]
    assert spoken == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["spark-tts"], "needs --model-dir"),
        (["--model-dir", "M"], "`demo spark-tts`"),
        (["piper"], "`demo spark-tts`"),
        (["spark-tts", "--model-dir", "M", "--size", "tiny"], "of the built-in engine"),
    ],
)
def test_a_demonstration_of_nothing_that_there_is(tmp_path: Path, words: list[str], message: str) -> None:
    assert message in error("demo", *words, "-o", tmp_path / "demo.wav", exit_code=2)["message"]
