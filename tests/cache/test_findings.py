"""What was found out about files is asked again once they have changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accelerator.cache import remembered
from accelerator.cache.digest import SETTLED_S


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("accelerator.cache.findings.time.time", lambda: later())
    return tmp_path


def later() -> float:
    """When files made now are settled."""
    return os.stat(__file__).st_ctime + 1e9


def counting(*files: Path) -> tuple[list[int], Callable[[], tuple[dict[str, Any], list[Path]]]]:
    asked: list[int] = []

    def find() -> tuple[dict[str, Any], list[Path]]:
        asked.append(1)
        return {"sizes": [file.stat().st_size for file in files]}, list(files)

    return asked, find


def test_a_file_that_stays_is_looked_into_once(root: Path) -> None:
    file = root / "file"
    file.write_text("one")
    asked, find = counting(file)
    assert [remembered({"a": 1}, find) for _ in range(3)] == [{"sizes": [3]}] * 3
    assert len(asked) == 1
    assert remembered({"a": 2}, find) == {"sizes": [3]}
    assert len(asked) == 2


@pytest.mark.parametrize("change", ["written", "replaced", "back in time"])
def test_a_file_that_changes_is_looked_into_again(root: Path, change: str) -> None:
    file = root / "file"
    file.write_text("one")
    before = file.stat()
    asked, find = counting(file)
    remembered({}, find)
    if change == "replaced":
        (root / "new").write_text("two")
        (root / "new").replace(file)
    else:
        file.write_text("two")
    if change == "back in time":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    remembered({}, find)
    assert len(asked) == 2


def test_a_file_that_comes_into_a_folder_counts(root: Path) -> None:
    folder = root / "folder"
    folder.mkdir()
    asked, find = counting(folder)
    remembered({}, find)
    (folder / "new").touch()
    remembered({}, find)
    assert len(asked) == 2


def test_what_is_gone_or_new_is_not_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = root / "file"
    file.write_text("one")
    asked, find = counting(file)
    monkeypatch.setattr("accelerator.cache.findings.time.time", lambda: file.stat().st_ctime + SETTLED_S / 2)
    for _ in range(2):
        remembered({}, find)
    assert len(asked) == 2


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no such owners")
def test_nothing_is_believed_where_others_can_write(root: Path) -> None:
    file = root / "file"
    file.write_text("one")
    (root / "cache").mkdir()
    (root / "cache").chmod(0o777)
    asked, find = counting(file)
    for _ in range(2):
        remembered({}, find)
    assert len(asked) == 2
    assert not list((root / "cache").iterdir())


def test_what_fails_is_tried_again(root: Path) -> None:
    def fail() -> tuple[dict[str, Any], list[Path]]:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            remembered({}, fail)
