"""A digest of the code behind an export or a proof, found by following imports, so that it cannot go stale.

    digest(build, weights)      of the files in which these are defined, and of all that those import

Imports are followed at any depth (also those within functions, and through a package's names to the defining file) in
the folders that compute, and in the engine's own package. Other folders are not in the digest, nor are their imports:
their code does not change any result. Nor is anything outside this package, unless it is named.

A file counts by its text without comments, docstrings (any string statement) and blank lines. A syntax tree would
differ between versions of Python.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ..cache import remembered

__all__ = ["ROOMS", "code", "digest", "modules"]

ROOMS = (
    *("export.graph", "export.tracing", "export.proof", "codec", "parts", "inference", "kernels"),
    *("export.calibration", "export.pruning", "runtime.quantization"),
    "reference",  # which only its own engine imports
)
_PACKAGE = __name__.partition(".")[0]
_PLACE = Path(__file__).parents[1]
_STRING = r'"""(?:\\.|[^\\])*?"""' r"|'''(?:\\.|[^\\])*?'''" r'|"(?:\\.|[^"\\\n])*"' r"|'(?:\\.|[^'\\\n])*'"
_BLANK = r"\n(?:[ \t\f]*(?:#[^\n]*)?\n)+"  # lines of nothing, or of a comment
_BEHIND = r"(?:[ \t\f]+(?:#[^\n]*)?|#[^\n]*)(?=\n|\Z)"
_PIECE = re.compile(rf"(?P<string>{_STRING})|(?P<blank>{_BLANK})|{_BEHIND}", re.DOTALL)


def digest(*roots: Any) -> str:
    """sha256 of the code of these modules, and of those that they import.

    roots: functions, classes, modules, or the names of modules; a partial function counts as the function it calls.
    """
    return _digest(tuple(sorted({_module(root) for root in roots})))


def modules(*roots: Any) -> set[str]:
    """The names of the modules whose code is in the digest."""
    names = {_module(root) for root in roots}
    rooms = (*(f"{_PACKAGE}.{room}" for room in ROOMS), *map(_room, names))
    found: set[str] = set()
    while names:
        found |= names
        used = {other for name in names for other in _imports(name)}
        names = {other for other in used - found if any(f"{other}.".startswith(f"{room}.") for room in rooms)}
    return found


def code(text: str) -> str:
    """A file's text without comments, string statements and blank lines."""
    return _code(text, list(_statements(ast.parse(text).body)))


def _code(text: str, statements: Sequence[ast.AST]) -> str:
    lines = [line.encode() for line in text.split("\n")]  # in a syntax tree, columns are bytes
    for node in reversed(statements):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
            rest = lines[last][node.end_col_offset :]
            lines[first : last + 1] = [lines[first][: node.col_offset] + rest]
    return _PIECE.sub(_kept, "\n" + b"\n".join(lines).decode()).strip("\n")


def _kept(piece: re.Match[str]) -> str:
    return piece["string"] or ("\n" if piece["blank"] else "")


@functools.cache
def _digest(roots: tuple[str, ...]) -> str:
    """Reading so many files takes a third of a second, so it is remembered."""
    places = [str(_PLACE), *(str(_file(name)) for name in roots)]
    return str(remembered({"sources": [*roots, *places]}, functools.partial(_read_all, roots))["digest"])


def _read_all(roots: tuple[str, ...]) -> tuple[dict[str, str], set[Path]]:
    """The digest, and the files and folders that it depends on, this file among them."""
    total, files = hashlib.sha256(), {Path(__file__)}
    for name in sorted(modules(*roots)):
        file = _file(name)
        total.update(f"{name}\n{'' if file is None else _said(name, file).code}\n".encode())
        files |= set() if file is None else {file}
    return {"digest": total.hexdigest()}, files | {file.parent for file in files}


def _module(root: Any) -> str:
    if isinstance(root, str):
        return root
    root = getattr(root, "func", root)
    return str(root.__name__ if isinstance(root, ModuleType) else root.__module__)


def _room(name: str) -> str:
    """For an engine's module its package, all of which may count; for any other module itself."""
    parts = name.split(".")
    return ".".join(parts[:3]) if parts[:2] == [_PACKAGE, "engines"] else name


@functools.cache
def _file(name: str) -> Path | None:
    """A module's file; None if it has none. Modules of other packages are imported already, or cannot be found."""
    first, *inner = name.split(".")
    if first != _PACKAGE:
        file = getattr(sys.modules.get(name), "__file__", None)
        return Path(file) if file and file.endswith(".py") else None
    place = _PLACE.joinpath(*inner)
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _read(file: Path) -> str:
    with tokenize.open(file) as opened:  # in the encoding that it declares
        return opened.read()


class _Said(NamedTuple):
    """A file's code, and what it imports from this package, as (module, names)."""

    code: str
    imports: tuple[tuple[str, tuple[ast.alias, ...]], ...]


@functools.cache
def _said(name: str, file: Path) -> _Said:
    text = _read(file)
    statements = list(_statements(ast.parse(text).body))
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found: list[tuple[str, tuple[ast.alias, ...]]] = []
    for node in statements:
        if isinstance(node, ast.Import):
            found += [(alias.name, (ast.alias("*"),)) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            found.append((".".join([*above, *filter(None, [node.module])]), tuple(node.names)))
    own = tuple((module, names) for module, names in found if module.partition(".")[0] == _PACKAGE)
    return _Said(_code(text, statements), own)


def _imports(name: str) -> Iterator[str]:
    """The modules of this package that a module imports anywhere, except for type checkers only."""
    file = _file(name)
    if file is not None and name.partition(".")[0] == _PACKAGE:
        for module, aliases in _said(name, file).imports:
            yield from (_defining(module, alias.name) for alias in aliases)


def _defining(module: str, name: str) -> str:
    """The module that defines `name` of `module`: a submodule, or the one from which a package imports it."""
    inner, file = f"{module}.{name}", _file(module)
    if _file(inner) is not None:
        return inner
    if file is not None and file.name == "__init__.py":
        for other, aliases in _said(module, file).imports:
            for alias in aliases:
                if name == (alias.asname or alias.name):
                    return _defining(other, alias.name)
    return module


def _statements(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All statements in order, nested ones included, except what only type checkers read."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from _statements(node.orelse)
            continue
        for field in ("body", "handlers", "cases", "orelse", "finalbody"):
            if inner := getattr(node, field, None):
                yield from _statements(inner)
