"""32 rows by 32 columns of a convolution by AMX, in the processor's eight tiles: see `chain`."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..vectors import I8, Code, function

__all__ = ["CONFIGURE", "MULTIPLY", "RESTORE"]

_TILE, _SIDE = 1024, 16  # bytes and rows of one
_ACROSS = 128  # bytes of a row of sums


def _tile(c: Code, what: str, *given: Any) -> None:
    """given: numbers of tiles, and addresses or distances."""
    pointers = [ir.Constant(I8, v) if isinstance(v, int) else v for v in given]
    c.call(f"llvm.x86.{what}", ir.VoidType(), *pointers)


def _place(c: Code, address: Any) -> Any:
    return c.b.inttoptr(address, I8.as_pointer())


def _configure(c: Code, configuration: Any, before: Any) -> None:
    """Others, as oneDNN, remember how they have configured the tiles of a thread: it is put back afterwards."""
    _tile(c, "sttilecfg", _place(c, before))
    _tile(c, "ldtilecfg", _place(c, configuration))


def _restore(c: Code, before: Any) -> None:
    _tile(c, "ldtilecfg", _place(c, before))


def _multiply(c: Code, exact: Any, x: Any, step: Any, table: Any, count: Any, weights: Any, out: Any) -> None:
    """32 rows of x, `step` bytes apart, by 32 columns: the sum over `count` places of x and of weights, in `table`.

    exact: makes no difference here, since there are more places then.
    """
    for tile in range(4):
        _tile(c, "tilezero", tile)

    def product(i: Any, _: list[Any]) -> list[Any]:
        entry = c.plus(table, i, 16)
        rows, columns = (
            c.plus(base, c.at(c.plus(entry, k), c.number(0).type, 8)) for base, k in ((x, 0), (weights, 8))
        )
        _tile(c, "tileloadd64", 4, _place(c, rows), step)
        _tile(c, "tileloadd64", 6, _place(c, columns), c.number(64))
        _tile(c, "tileloadd64", 7, _place(c, c.plus(columns, _TILE)), c.number(64))
        _tile(c, "tileloadd64", 5, _place(c, c.plus(rows, step, _SIDE)), step)
        for tile in range(4):
            _tile(c, "tdpbf16ps", tile, 4 + tile // 2, 6 + tile % 2)
        return []

    c.loop(count, [], product)
    for tile in range(4):
        start = c.plus(out, _SIDE * _ACROSS * (tile // 2) + 64 * (tile % 2))
        _tile(c, "tilestored64", tile, _place(c, start), c.number(_ACROSS))


CONFIGURE, RESTORE, MULTIPLY = (
    function(count, generate) for count, generate in ((2, _configure), (1, _restore), (7, _multiply))
)
