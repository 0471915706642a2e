"""`export`: what is built, how faithful and how fast it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from accelerator.errors import CacheError
from tests.cli.commands import TINY, answer, run


def test_says_how_faithful_and_how_fast_each_part_is(exported: dict, cache: Path):
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
def test_builds_what_is_missing(copied: Path):
    found = answer("export", *TINY, "--precision", "int8", "--threads", "1", "--cache-dir", copied)
    exports = found["parts"]["text2semantic"]["exports"]
    assert (exports["embeddings"]["cache"], exports["text2semantic"]["cache"]) == ("hit", "built")
    assert exports["text2semantic"]["precision"] == "int8"
    assert exports["text2semantic"]["proof"]["kl"] < 0.01
    names = [(e["name"], e["precision"]) for e in answer("cache", "list", "--cache-dir", copied)["entries"]]
    assert ("text2semantic", "int8") in names


def test_for_people(exported: dict, cache: Path):
    result = run("export", *TINY, "--precision", "fp32", "--cache-dir", cache)
    assert result.exit_code == 0
    assert "hit" in result.stdout
    assert "built" not in result.stdout
    assert "max_error" in result.stdout
    assert "as it was: " in result.stdout
    assert "random" in result.stderr


def test_a_part_that_cannot_be_exported_is_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def fail(*args: object, **kwargs: object) -> None:
        raise CacheError("no place")

    monkeypatch.setattr("accelerator.pipeline.selection.export_best", fail)
    found = answer("export", *TINY, "--cache-dir", tmp_path, exit_code=1)
    assert found["error"]["type"] == "ExportError"
    assert "no place" in found["error"]["message"]
    assert found["parts"]["decoder"]["backend"] == "pytorch"


def test_who_asks_for_pruning_is_told_what_became_of_it(exported: dict, cache: Path):
    result = run("export", *TINY, "--precision", "fp32", "--prune", "0.3", "--cache-dir", cache)
    assert result.exit_code == 0
    assert "pruning 0.3 of decoder is not used: there is no known way to prune it" in " ".join(result.stderr.split())
    assert "not pruned: there is no known" in " ".join(result.stdout.split())


def test_a_share_to_prune_is_below_one(cache: Path):
    found = answer("export", *TINY, "--prune", "30", "--cache-dir", cache, exit_code=1)["error"]
    assert found["message"] == "prune must be a share between 0 and 1, as 0.3, or None, not 30.0"
