"""`python -m accelerator.reference.training all`: the stages in their order, and none after one that was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accelerator.reference.errors import ReferenceEngineError
from accelerator.reference.training import codec, corpus, evaluate, language_model, pack, plot, tokens
from accelerator.reference.training.__main__ import main

STAGES = [
    (corpus, "make"),
    (codec, "train_codec"),
    (tokens, "tokenize"),
    (language_model, "train_language_model"),
    (codec, "train_decoder"),
    (pack, "pack"),
    (plot, "plot"),
    (evaluate, "evaluate"),
]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, dict[str, Any]]]:
    seen: list[tuple[str, Path, dict[str, Any]]] = []

    def stage(name: str) -> Any:
        def run(work: Path, **options: Any) -> Any:
            seen.append((name, work, options))
            return {"word_error_rate": 0.2} if name == "evaluate" else work / name

        return run

    for module, name in STAGES:
        monkeypatch.setattr(module, name, stage(name))
    return seen


def test_one_command_runs_every_stage(called: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["all", "--work", str(tmp_path), "--hours", "2", "--threads", "1", "--seed", "3", "--compile"]) == 0
    assert [name for name, _, _ in called] == [name for _, name in STAGES]
    assert {work for _, work, _ in called} == {tmp_path}
    options = {name: given for name, _, given in called}
    assert options["make"]["hours"] == 2.0
    assert options["train_language_model"]["compiled"]
    for name in ("make", "train_codec", "train_language_model", "train_decoder", "evaluate"):
        assert options[name]["seed"] == 3
    assert "0.2" in capsys.readouterr().out


def test_it_ends_where_a_stage_was_stopped(
    called: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(work: Path, **options: Any) -> Any:
        raise ReferenceEngineError("the codec is at step 3 of 6000")

    monkeypatch.setattr(tokens, "tokenize", refuse)
    assert main(["all", "--work", str(tmp_path)]) == 1
    assert [name for name, _, _ in called] == ["make", "train_codec"]
    assert "step 3 of 6000" in capsys.readouterr().out
