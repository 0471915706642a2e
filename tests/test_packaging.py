"""What is installed must be whole: a wheel has no training in it, and nothing that a wheel has may import that."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "accelerator"
TRAINING = PACKAGE / "reference" / "training"


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    return dict(tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8")))


def test_a_wheel_has_all_packages_but_training(settings: dict[str, Any]) -> None:
    setuptools = pytest.importorskip("setuptools")
    find = settings["tool"]["setuptools"]["packages"]["find"]
    found = set(setuptools.find_packages(str(PROJECT), include=find["include"], exclude=find["exclude"]))
    there = {".".join(f.parent.relative_to(PROJECT).parts) for f in PACKAGE.rglob("__init__.py")}
    assert there - found == {"accelerator.reference.training"}
    assert not found - there
    assert settings["tool"]["setuptools"]["include-package-data"] is False  # or MANIFEST.in would bring it back


@pytest.mark.parametrize(
    "file", [f for f in PACKAGE.rglob("*.py") if TRAINING not in f.parents], ids=lambda f: str(f.relative_to(PACKAGE))
)
def test_nothing_in_a_wheel_imports_training(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not any("training" in name.split(".") for name in names)


def test_files_that_packages_need_are_named(settings: dict[str, Any]) -> None:
    for package, patterns in settings["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            assert list(PROJECT.joinpath(*package.split(".")).glob(pattern)), pattern
    data = [f for f in PACKAGE.rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc", ".nbi", ".nbc")]
    assert {f.parent.name for f in data} == {"accelerator", "voices"}


def test_licences_and_the_voices_are_shipped(settings: dict[str, Any]) -> None:
    files = settings["project"]["license-files"]
    assert set(files) == {"LICENSE", "accelerator/reference/voices/LICENSE.txt"}
    for file in files:
        assert (PROJECT / file).stat().st_size > 1000


def test_the_source_distribution_can_be_tested() -> None:
    lines = (PROJECT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    assert {"graft tests", "graft docs", "graft accelerator/reference/training"} <= set(lines)
