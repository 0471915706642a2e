"""`accelerator cache`: what lies in the cache, whether it is sound, and how to make it smaller."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import CacheError
from . import formats
from .console import Output
from .group import Command, Listing
from .options import CacheDir, Debug, Json, Verbose

if TYPE_CHECKING:
    from ..cache import ContentCache, EntryInfo

__all__ = ["app"]

app = typer.Typer(
    cls=Listing, help="Show, check and tidy the cache of exports.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("path", cls=Command)
def path(
    ctx: typer.Context, cache_dir: CacheDir = None, json: Json = False, verbose: Verbose = False, debug: Debug = False
) -> None:
    """Print where exports are kept."""
    out: Output = ctx.obj
    root = _open(cache_dir).root
    out.document({"path": root})
    out.line(str(root))


@app.command("list", cls=Command)
def list_(
    ctx: typer.Context, cache_dir: CacheDir = None, json: Json = False, verbose: Verbose = False, debug: Debug = False
) -> None:
    """List the entries, least recently used first."""
    out: Output = ctx.obj
    cache = _open(cache_dir)
    entries, total = cache.entries(), cache.size()
    out.document({"path": cache.root, "bytes": total, "entries": [_described(entry) for entry in entries]})
    if entries:
        rows = [
            [
                e.key[:12],
                str(e.meta.get("engine") or "-"),
                e.name,
                str(e.meta.get("precision", "-")),
                formats.size(e.bytes),
                formats.iso_time(e.last_used),
            ]
            for e in entries
        ]
        out.table(("key", "engine", "part", "precision", "size>", "last used"), rows)
    out.line(f"{_entries(len(entries))}, {formats.size(total)} in {cache.root}")


@app.command("verify", cls=Command)
def verify(
    ctx: typer.Context, cache_dir: CacheDir = None, json: Json = False, verbose: Verbose = False, debug: Debug = False
) -> None:
    """Read every file and compare it with its manifest. Exit code 1 if an entry is damaged; nothing is changed."""
    out: Output = ctx.obj
    cache = _open(cache_dir)
    problems = cache.verify()
    count = len({*(entry.path for entry in cache.entries()), *(problem.path for problem in problems)})
    out.document(
        {
            "path": cache.root,
            "entries": count,
            "ok": not problems,
            "problems": [{"key": p.key, "path": p.path, "reason": p.reason, "layer": p.layer} for p in problems],
        }
    )
    for problem in problems:
        out.line(f"{problem.path}: {problem.reason}")
    if problems:
        out.line(f"{len(problems)} of {_entries(count)} damaged; they are built again when they are next needed")
        raise typer.Exit(1)
    out.line(f"{_entries(count)} checked, all sound")


@app.command("prune", cls=Command)
def prune(
    ctx: typer.Context,
    max_bytes: Annotated[str, typer.Option("--max-bytes", help="What may stay: 2G, 500M, 1.5GiB, 0 ...")],
    force: Annotated[bool, typer.Option("--force", help="Also what was used in the last five minutes.")] = False,
    cache_dir: CacheDir = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Remove entries, least recently used first, until at most --max-bytes are left."""
    out: Output = ctx.obj
    try:
        limit = formats.parse_size(max_bytes)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--max-bytes") from None
    cache = _open(cache_dir)
    removed = cache.prune(limit, force=force)
    left, freed = cache.size(), sum(entry.bytes for entry in removed)
    out.document(
        {
            "path": cache.root,
            "max_bytes": limit,
            "removed": [_described(entry) for entry in removed],
            "freed_bytes": freed,
            "bytes": left,
        }
    )
    out.line(f"removed {_entries(len(removed))} ({formats.size(freed)}); {formats.size(left)} left in {cache.root}")
    if left > limit:
        out.note(
            f"{formats.size(left)} is more than {formats.size(limit)}: the rest is in use (--force removes it too)"
        )


@app.command("clear", cls=Command)
def clear(
    ctx: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    cache_dir: CacheDir = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Remove everything from the cache."""
    out: Output = ctx.obj
    cache = _open(cache_dir)
    count, before = sum(entry.layer == "primary" for entry in cache.entries()), cache.size()
    if not yes:
        if out.json or not sys.stdin.isatty():
            raise typer.BadParameter("nobody can be asked here: say --yes", param_hint="--yes")
        typer.confirm(f"Remove {_entries(count)} ({formats.size(before)}) from {cache.root}?", abort=True, err=True)
    cache.clear()
    left = cache.size()
    if left:
        raise CacheError(f"{formats.size(left)} in {cache.root} could not be removed: look at its permissions")
    out.document({"path": cache.root, "removed": count, "freed_bytes": before})
    out.line(f"removed {_entries(count)} ({formats.size(before)}) from {cache.root}")


def _open(cache_dir: Path | None) -> ContentCache:
    from ..cache import ContentCache

    return ContentCache(cache_dir)


def _described(entry: EntryInfo) -> dict[str, Any]:
    return {
        "key": entry.key,
        "engine": entry.meta.get("engine") or None,
        "name": entry.name,
        "precision": entry.meta.get("precision"),
        "bytes": entry.bytes,
        "last_used": formats.iso_time(entry.last_used),
        "created_at": formats.iso_time(entry.created_at),
        "layer": entry.layer,
        "path": entry.path,
    }


def _entries(count: int) -> str:
    return f"{count} {'entry' if count == 1 else 'entries'}"
