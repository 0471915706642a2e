"""The benchmark of feed-forward engines, on a model whose figures mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from accelerator.benchmark import feed_forward
from accelerator.cli import app
from accelerator.errors import EngineError, InvalidOption

pytest.importorskip("transformers", reason="pip install transformers")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_measures_all_arms(tmp_path: Path) -> None:
    command = ["bench", "feed-forward", "--quick", "--rounds", "2", "--threads", "1"]
    files = ["--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]
    done = CliRunner().invoke(app, [*command, "--cache-dir", str(tmp_path / "cache"), *files])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "r.json").read_text())
    arms = {"as-shipped", "pytorch-folded", "accelerator", "accelerator-pool"}
    assert set(result["figures"]["text"]) == set(result["figures"]["first"]) == arms
    assert set(result["figures"]["sentence"]) == arms - {"accelerator-pool"}
    for by_arm in result["figures"].values():
        for figures in by_arm.values():
            assert figures["n"] == 2
            assert figures["median"] > 0
    over = result["ratios"]["text"]["as-shipped"]["accelerator"]["values"]
    base, arm = (result["figures"]["text"][name]["values"] for name in ("as-shipped", "accelerator"))
    assert over == pytest.approx([a / b for a, b in zip(base, arm, strict=True)])
    table = (tmp_path / "r.md").read_text()
    assert all(f"`{name}`" in table for name in arms)


def test_what_it_cannot_do_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidOption, match="at least 1"):
        feed_forward.FeedForwardOptions(rounds=0)
    for other in ("--quality", "--serving", "--llama-cpp"):
        done = CliRunner().invoke(app, ["bench", "--feed-forward", other])
        assert done.exit_code == 2
        assert "these are 2 measurements" in " ".join(done.output.split())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="pip install transformers"):
        feed_forward.run(feed_forward.FeedForwardOptions(), report=print)
