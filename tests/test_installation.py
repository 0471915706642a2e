"""Hints that install more of the package must work for how it was installed."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path

import pytest

from accelerator import installation
from accelerator.installation import DISTRIBUTION, checkout, install_command

PROJECT = Path(__file__).parents[1]


def installed(monkeypatch: pytest.MonkeyPatch, folder: Path, record: dict | None) -> None:
    """As if the package lay in `folder`, installed from what pip recorded."""
    meta = folder / f"{DISTRIBUTION.replace('-', '_')}-1.dist-info"
    meta.mkdir(parents=True)
    (meta / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {DISTRIBUTION}\nVersion: 1\n")
    if record is not None:
        (meta / "direct_url.json").write_text(json.dumps(record))
    monkeypatch.setattr(installation, "__file__", str(folder / "accelerator" / "installation.py"))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: importlib.metadata.PathDistribution(meta))


def test_the_name_is_the_projects() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == DISTRIBUTION
    for requirements in project["optional-dependencies"].values():
        for requirement in requirements:
            assert "accelerator" not in requirement or requirement.startswith(f"{DISTRIBUTION}[")
    assert checkout() == PROJECT


def test_from_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(PROJECT)
    assert install_command("quality") == 'pip install -e ".[quality]"'
    assert install_command() == 'pip install -e "."'
    monkeypatch.chdir(tmp_path)
    assert install_command("quality") == f'pip install -e "{PROJECT}[quality]"'


def test_from_an_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed(monkeypatch, tmp_path, None)
    assert checkout() is None
    assert install_command("quality") == 'pip install "accelerator-tts[quality]"'
    assert install_command() == 'pip install "accelerator-tts"'


def test_from_an_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "a wheel.whl"
    wheel.touch()
    installed(monkeypatch, tmp_path / "site", {"url": wheel.as_uri(), "archive_info": {}})
    assert install_command("quality") == f'pip install "accelerator-tts[quality] @ {wheel.as_uri()}"'
    wheel.unlink()
    assert install_command("quality") == 'pip install ".[quality]" in a checkout of accelerator-tts'


def test_from_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vcs = {"vcs": "git", "commit_id": "abc"}
    installed(monkeypatch, tmp_path, {"url": "https://example.org/x.git", "vcs_info": vcs})
    assert install_command() == 'pip install "accelerator-tts @ git+https://example.org/x.git@abc"'


@pytest.mark.parametrize("record", [{}, {"url": 3}])
def test_a_record_that_says_nothing(record: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed(monkeypatch, tmp_path, record)
    assert install_command() == 'pip install "accelerator-tts"'


def test_no_hint_names_another_project() -> None:
    """`tts-accelerator` and `accelerator` on the index are other people's."""
    for file in [*(PROJECT / "accelerator").rglob("*.py"), *(PROJECT / "docs").rglob("*.md"), PROJECT / "README.md"]:
        text = file.read_text(encoding="utf-8")
        assert "tts-accelerator" not in text, file
        assert not re.search(r"pip install \"?accelerator", text), f"{file}: no registry has it yet"
