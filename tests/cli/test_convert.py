"""`convert spark-tts`: what is asked, what is shown, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accelerator.engines.spark_tts import convert
from accelerator.engines.spark_tts.convert import Verdict
from tests.cli.commands import answer, error, run

GOOD = Verdict("decoder", {"passed": True, "max_error": 1e-6, "bar": {"max_error": 1e-4}, "lengths": [37, 161]})
BAD = Verdict("prenet", {"passed": False, "max_error": 0.5, "bar": {"max_error": 1e-4}, "lengths": [37, 161]})
NONE = Verdict("encoder", error="encoder cannot be written in operator set 16: the lowest that works is 17\nand more")

Asked = list[tuple[Path, dict[str, Any]]]


@pytest.fixture
def converting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Asked]:
    """Conversions that end with these verdicts; returns what they were asked."""

    def ends(*verdicts: Verdict) -> Asked:
        asked: Asked = []

        def converted(adapter: Any, folder: Path, **how: Any) -> list[Verdict]:
            del how["progress"]
            asked.append((folder, how))
            return list(verdicts)

        monkeypatch.setattr(convert, "convert", converted)
        monkeypatch.setattr(
            "accelerator.engines.spark_tts.adapter.SparkAdapter.from_checkpoint", lambda path, cache: path
        )
        return asked

    return ends


def test_by_default_all_is_dynamic_and_verified(converting: Callable[..., Asked], tmp_path: Path) -> None:
    asked = converting(GOOD)
    found = answer("convert", "spark-tts", "--model_dir", tmp_path)
    assert asked == [(tmp_path / "onnx", {"dynamic": True, "opset": 17, "verify": True, "precision": "fp32"})]
    assert found["output_dir"] == str(tmp_path / "onnx")
    assert found["files"] == [
        {"name": "decoder", "passed": True, "proof": {**GOOD.figures, "lengths": [37, 161]}, "error": None}
    ]


@pytest.mark.parametrize("sign", ["-", "_"])
def test_both_spellings(converting: Callable[..., Asked], tmp_path: Path, sign: str) -> None:
    asked = converting(GOOD)
    words = ["--model-dir", "M", "--output-dir", "O", "--no-dynamic-axes", "--opset-version", "18"]
    given = [*words, "--skip-verification", "--cpu-only"]
    spelled = [each.replace("-", sign).replace(sign * 2, "--", 1) for each in given]
    answer("convert", "spark-tts", *spelled, "--precision", "int8")
    assert asked == [(Path("O"), {"dynamic": False, "opset": 18, "verify": False, "precision": "int8"})]


def test_a_table_of_differences(converting: Callable[..., Asked], tmp_path: Path) -> None:
    converting(GOOD)
    result = run("convert", "spark-tts", "--model-dir", tmp_path)
    assert result.exit_code == 0
    (row,) = (line for line in result.stdout.splitlines() if "decoder" in line)
    assert row.split() == ["decoder", "37,", "161", "max_error", "1e-06", "passed"]
    assert "speaks by itself" in result.stdout


def test_one_that_differs_is_1(converting: Callable[..., Asked], tmp_path: Path) -> None:
    converting(GOOD, BAD, NONE)
    found = answer("convert", "spark-tts", "--model-dir", tmp_path, exit_code=1)
    assert found["error"]["type"] == "ExportError"
    assert [each["passed"] for each in found["files"]] == [True, False, False]
    result = run("convert", "spark-tts", "--model-dir", tmp_path)
    assert result.exit_code == 1
    assert "nothing was written: prenet differs from PyTorch, max_error 0.5; encoder cannot be" in result.stderr
    assert "the lowest that works is 17" in result.stderr
    assert "and more" not in result.stderr
    assert "failed" in result.stdout


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    assert "is not a Spark-TTS checkpoint" in error("convert", "spark-tts", "--model-dir", tmp_path)["message"]
    assert list(tmp_path.iterdir()) == []


def test_files_have_one_precision(tmp_path: Path) -> None:
    found = error("convert", "spark-tts", "--model-dir", tmp_path, "--precision", "auto", exit_code=2)
    assert "fp32, int8, int4" in found["message"]
