"""The benchmark of a codec's decoder, on a double whose figures mean nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from accelerator import kernels
from accelerator.benchmark import codec, page
from accelerator.cli import app
from accelerator.engines.spark_tts import SparkAdapter
from accelerator.errors import InvalidOption
from tests.engines.spark_tts import bicodec, toy

pytest.importorskip("transformers", reason="pip install transformers")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked to be opened; the double is."""
    asked: list[Any] = []
    tokens = toy.tokenizer()

    def adapter(engine: str, path: Path, **_: Any) -> SparkAdapter:
        asked.append((engine, path))
        return SparkAdapter(bicodec.SparkTTS(tokens, toy.language_model(tokens)))

    monkeypatch.setattr("accelerator.optimizer.adapter_from_checkpoint", adapter)
    return asked


@pytest.mark.filterwarnings("ignore")
def test_it_measures_all_that_was_proven(opened: list[Any], tmp_path: Path) -> None:
    command = ["bench", "feed-forward", "--engine", "spark-tts", "--checkpoint", str(tmp_path), "--quick"]
    command += ["--rounds", "2", "--threads", "1", "--cache-dir", str(tmp_path / "cache")]
    files = ["--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]
    done = CliRunner().invoke(app, [*command, *files])
    assert done.exit_code == 0, done.output
    assert opened == [("spark-tts", tmp_path)]
    result = json.loads((tmp_path / "r.json").read_text())
    less = "native-bf16" if kernels.multiplies_bf16() else "native-int16"
    ours = {"native-fp32", less} if kernels.available() else set()
    arms = {"pytorch", "onnxruntime", *ours}
    assert set(result["arms"]) == arms
    assert set(result["figures"]) == {"decode_1s", "decode_3s", "decode_8s", "stream_8s"}
    for by_arm in result["figures"].values():
        assert set(by_arm) == arms
        assert all(figures["n"] == 2 and figures["median"] > 0 for figures in by_arm.values())
    for measure, by_base in result["ratios"].items():
        assert set(by_base) == {"pytorch", "onnxruntime"}
        for base, by_arm in by_base.items():
            assert set(by_arm) == ours
            for arm, times in by_arm.items():
                pairs = zip(*(result["figures"][measure][each]["values"] for each in (base, arm)), strict=True)
                assert times["values"] == pytest.approx([a / b for a, b in pairs])
    table = (tmp_path / "r.md").read_text()
    assert all(f"`{name}`" in table for name in arms)
    assert "8 s in a stream's windows" in table
    assert page._KINDS[result["kind"]] is codec


def test_what_it_cannot_do_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="at least 1"):
        codec.CodecOptions(tmp_path, rounds=0)
    with pytest.raises(InvalidOption, match="of vits no codec is measured alone: choose from spark-tts"):
        codec.CodecOptions(tmp_path, "vits")
    for words in (["--engine", "spark-tts"], ["--engine", "kokoro", "--checkpoint", str(tmp_path)]):
        done = CliRunner().invoke(app, ["bench", "feed-forward", *words])
        assert done.exit_code == 2
        assert "vits, or spark-tts with --checkpoint" in " ".join(done.output.replace("│", " ").split())
    done = CliRunner().invoke(app, ["bench", "feed-forward", "--checkpoint", str(tmp_path)])
    assert done.exit_code == 2
    assert "--checkpoint is not for --engine vits" in " ".join(done.output.replace("│", " ").split())
