"""Candidate recipes: in int4's place in an adapter, compared with float32 on a voice that says noise, and heard."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from accelerator.benchmark import quality
from accelerator.benchmark.candidates import CANDIDATES, SLOT, adapter_of, check_names
from accelerator.benchmark.recipes import RecipeOptions, run
from accelerator.cli import app
from accelerator.engines.reference import ReferenceAdapter
from accelerator.errors import InvalidOption
from accelerator.export.component import PRECISIONS
from accelerator.export.graph.quantize import RECIPES
from accelerator.parts.language_model import LANGUAGE_MODEL
from accelerator.reference import ReferenceEngine

NAMES = ("rtn-64", "kquant-64", "kquant-64+fast", "coarse-256")


@pytest.fixture(scope="module")
def voice(tiny: ReferenceEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lm = replace(tiny.config.language_model, speakers=("ann", "bob"), speaker_begin=324)
    path = tmp_path_factory.mktemp("voice") / "voice.safetensors"
    ReferenceEngine(replace(tiny.config, language_model=lm), tiny.language_model, tiny.codec).save(path)
    return path


@pytest.fixture(scope="module")
def result(voice: Path, exports: Path) -> dict[str, Any]:
    options = RecipeOptions(voice=voice, recipes=NAMES, sentences=2, frames=12, cache_dir=exports)
    return run(options, report=lambda line: None)


def test_float32_is_itself(result: dict[str, Any]) -> None:
    row = result["rows"][0]
    assert (row["recipe"], row["weight_error"]) == ("fp32", 0)
    assert row["main_kl"] == row["codes_kl"] == (0, 0, 0)
    assert row["main_agreement"] == row["codes_agreement"] == (1, 1, 1)


def test_every_recipe_has_its_figures(result: dict[str, Any]) -> None:
    rows = {row["recipe"]: row for row in result["rows"]}
    assert list(rows) == [*RECIPES, *NAMES]
    assert 0 < result["frames"] <= 24
    assert 0 < rows["int8"]["weight_error"] < 0.01 < rows["kquant-64"]["weight_error"] < rows["rtn-64"]["weight_error"]
    assert rows["kquant-64+fast"]["weight_error"] < rows["kquant-64"]["weight_error"]
    codebooks = 4
    for name, row in rows.items():
        total = row["main_kl"][0] + (codebooks - 1) * row["codes_kl"][0]
        assert row["frame_kl"][0] == pytest.approx(total, abs=3e-4)
        if name in NAMES:
            assert row["times_int4"][0] == pytest.approx(row["frame_kl"][0] / rows["int4"]["frame_kl"][0], rel=0.1)
        for figure in ("frame_kl", "main_relative_error", "codes_relative_error"):
            value, low, high = row[figure]
            assert low <= value <= high
            assert (value > 0) == (name != "fp32"), figure
    assert rows["int8"]["main_relative_error"][0] < rows["rtn-64"]["main_relative_error"][0]


def test_the_fast_model_in_eight_bits_changes_codes_only(result: dict[str, Any]) -> None:
    rows = {row["recipe"]: row for row in result["rows"]}
    mixed, plain = rows["kquant-64+fast"], rows["kquant-64"]
    assert mixed["main_kl"] == plain["main_kl"]
    assert mixed["codes_relative_error"][0] < plain["codes_relative_error"][0]


def test_bytes_are_those_of_the_matrices(result: dict[str, Any], tiny: ReferenceEngine) -> None:
    spec, _ = adapter_of(tiny, "rtn-64").backbone()
    rows = {row["recipe"]: row for row in result["rows"]}
    assert rows["fp32"]["bytes"] == spec.weight_bytes
    assert rows["rtn-64"]["bytes"] < rows["kquant-64+fast"]["bytes"] < rows["int8"]["bytes"] < spec.weight_bytes / 2


def test_the_command_says_the_same_again(voice: Path, exports: Path, result: dict[str, Any], tmp_path: Path) -> None:
    args = ["bench", "recipes", "--checkpoint", str(voice), "--cache-dir", str(exports), "--sentences", "1"]
    files = ["--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]
    tables = []
    for _ in range(2):
        done = CliRunner().invoke(app, [*args, "--recipe", "rtn-64", *files])
        assert done.exit_code == 0, done.output
        tables.append((tmp_path / "r.md").read_text())
    assert tables[0] == tables[1]
    assert tables[0].strip() == done.stdout.strip()
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["recipe"] for row in rows] == [*RECIPES, "rtn-64"]
    assert rows[3]["weight_error"] == result["rows"][3]["weight_error"]


@pytest.mark.parametrize(
    "args",
    [
        ["recipes", "--recipe", "magic"],
        ["--recipe", "rtn-64"],
        ["--recipes", "--quality"],
        ["recipes", "--engine", "fish-speech"],
        ["recipes", "--quality"],
        ["--recipes", "--llama-cpp"],
    ],
)
def test_what_makes_no_sense_is_refused(args: list[str]) -> None:
    assert CliRunner().invoke(app, ["bench", *args]).exit_code in (1, 2)


def test_a_candidate_takes_the_place_of_int4_in_one_adapter_only(tiny: ReferenceEngine) -> None:
    def component(adapter: Any) -> Any:
        return next(c for p in adapter.parts() for c in p.components if c.name == LANGUAGE_MODEL)

    ours = component(adapter_of(tiny, "hqq-128"))
    assert ours.recipes[SLOT] == vars(CANDIDATES["hqq-128"])
    assert ours.recipes["int8"] == vars(RECIPES["int8"])
    assert component(ReferenceAdapter(tiny)).recipes[SLOT] == vars(RECIPES[SLOT])
    assert not set(CANDIDATES) & {*PRECISIONS, *RECIPES}


def test_names_are_checked() -> None:
    check_names(tuple(CANDIDATES))
    with pytest.raises(InvalidOption, match="no recipe called 'magic'; there are rtn-32"):
        RecipeOptions(recipes=("magic",))
    with pytest.raises(InvalidOption, match="no recipe called 'int4'"):
        quality.QualityOptions(recipes=("int4",))
    with pytest.raises(InvalidOption, match="at least 1"):
        RecipeOptions(sentences=0)


def test_a_candidate_speaks_in_the_measure_of_quality(voice: Path, exports: Path) -> None:
    def say(text: str, speaker: str) -> np.ndarray:
        t = np.arange(8000) / 16_000
        return np.sin(2 * np.pi * {"ann": 300, "bob": 2500}[speaker] * t).astype(np.float32)

    options = quality.QualityOptions(
        voice=voice, precisions=(), recipes=("rtn-64",), sentences=1, how=("name",), cache_dir=exports
    )
    result = quality.run(options, say=say, recognise=lambda audio: "a", report=lambda line: None)
    arms = [(row["backend"], row["precision"], row.get("asked")) for row in result["rows"]]
    backend = arms[-1][0]
    assert backend in ("onnxruntime", "native"), "whichever is faster here"
    assert arms == [("flite", None, None), ("pytorch", "fp32", None), (backend, "rtn-64", "rtn-64")]
    assert f"| {backend} rtn-64 | name |" in quality.to_markdown(result)
