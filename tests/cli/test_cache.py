"""`cache`: what is there, whether it is sound, and how it goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import answer, error, run


def test_path_and_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert answer("cache", "path", "--cache-dir", tmp_path) == {"path": str(tmp_path)}
    monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path / "elsewhere"))
    assert run("cache", "path").stdout == f"{tmp_path / 'elsewhere'}\n"
    assert not (tmp_path / "elsewhere").exists()


def test_list(cache: Path):
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


def test_an_empty_one(tmp_path: Path):
    found = answer("cache", "list", "--cache-dir", tmp_path)
    assert found == {"path": str(tmp_path), "bytes": 0, "entries": []}
    assert "0 entries" in run("cache", "list", "--cache-dir", tmp_path).stdout


def test_verify(cache: Path):
    assert answer("cache", "verify", "--cache-dir", cache) == {
        "path": str(cache),
        "entries": 4,
        "ok": True,
        "problems": [],
    }
    assert "all sound" in run("cache", "verify", "--cache-dir", cache).stdout


def test_verify_reports_a_corrupt_entry(copied: Path):
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


def test_prune(copied: Path):
    before = answer("cache", "list", "--cache-dir", copied)
    result = run("cache", "prune", "--max-bytes", "0", "--cache-dir", copied)
    assert "--force" in result.stderr  # all used a moment ago
    limit = before["bytes"] - 1
    found = answer("cache", "prune", "--max-bytes", limit, "--force", "--cache-dir", copied)
    assert [e["key"] for e in found["removed"]] == [before["entries"][0]["key"]]
    assert found["bytes"] == before["bytes"] - found["freed_bytes"]
    assert answer("cache", "prune", "--max-bytes", "0", "--force", "--cache-dir", copied)["bytes"] == 0


def test_prune_refuses_what_is_no_size(tmp_path: Path):
    found = error("cache", "prune", "--max-bytes", "2X", "--cache-dir", tmp_path, exit_code=2)
    assert "'2X' is no size" in found["message"]


def test_clear(copied: Path):
    assert "say --yes" in error("cache", "clear", "--cache-dir", copied, exit_code=2)["message"]
    found = answer("cache", "clear", "--yes", "--cache-dir", copied)
    assert (found["removed"], answer("cache", "list", "--cache-dir", copied)["entries"]) == (4, [])
    assert found["freed_bytes"] > 100_000
