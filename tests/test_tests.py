"""The tests mirror the package: a folder for a room, a file for a module or something it does, none too long."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import ROOT

TESTS = ROOT / "tests"
FILES = sorted(TESTS.rglob("test_*.py"))
LONGEST = 500  # lines
WHOLE = {
    "documentation": "README and docs",
    "first_hour": "what a newcomer meets",
    "forks": "wrapped engines in forked processes, through all rooms",
    "layers": "the architecture",
    "packaging": "the wheel",
    "privacy": "what leaves the machine, is written and is run, whoever does it",
    "protocol": "a skeleton of every kind of engine through the whole pipeline",
    "tests": "this file",
    "types": "what a type checker says of callers' code",
}


def rooms_modules(room: Path) -> set[str]:
    """What the tests of a folder of the package may be called after; a room's own name stands for its `__init__`."""
    within = {path.stem.strip("_") for path in room.glob("*.py")} - {"init"}
    return within | {path.parent.name for path in room.glob("*/__init__.py")} | {room.name}


def mirrored(name: str, modules: set[str]) -> bool:
    """Whether the name is a module's, or a module's and what of it is tested."""
    return any(name == module or name.startswith(f"{module}_") for module in modules)


@pytest.mark.parametrize(
    ("name", "answer"),
    [("store", True), ("store_eviction", True), ("cache", True), ("eviction", False), ("stores", False)],
)
def test_a_name_is_a_modules_or_begins_with_one(name: str, answer: bool) -> None:
    assert mirrored(name, rooms_modules(ROOT / "accelerator" / "cache")) is answer


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_every_file_names_what_it_tests(file: Path) -> None:
    room = ROOT / "accelerator" / file.parent.relative_to(TESTS)
    assert (room / "__init__.py").is_file(), f"there is no room {room}: give its tests the name of one"
    name = file.stem.removeprefix("test_")
    known = rooms_modules(room) | (WHOLE.keys() if file.parent == TESTS else set())
    assert mirrored(name, known), f"{room} has no module called so: rename the file, or give a reason in WHOLE"


def test_whole_project_tests_exist() -> None:
    assert {name for name in WHOLE if not (TESTS / f"test_{name}.py").is_file()} == set()


def test_no_file_is_too_long() -> None:
    lengths = {path.relative_to(TESTS).as_posix(): len(path.read_bytes().splitlines()) for path in TESTS.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}, "split by what is tested"


def test_tests_are_functions() -> None:
    found = [path.name for path in FILES if re.search(r"^class Test", path.read_text(encoding="utf-8"), re.M)]
    assert found == [], "write plain functions, and put fixtures into the nearest conftest.py"


def test_every_folder_is_a_package() -> None:
    """So that files of two rooms may have one name."""
    assert {path.parent for path in FILES} <= {path.parent for path in TESTS.rglob("__init__.py")}
