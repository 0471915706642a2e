"""Locks in a child are free unless it holds them itself; whatever threads wait for is made anew there."""

from __future__ import annotations

import ast
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import accelerator
from accelerator.hardware.forks import Lock
from tests.children import held, in_child

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
PACKAGE = Path(accelerator.__file__).parent


def test_a_lock_that_another_thread_holds_is_free_in_a_child() -> None:
    lock = Lock()

    def hold(work: Callable[[], Any]) -> None:
        with lock:
            work()

    def take() -> str:
        with lock:
            return "taken"

    with held(hold):
        assert in_child(take, 10) == "taken"


def test_a_lock_that_the_forking_thread_holds_stays_held_in_the_child() -> None:
    lock = Lock()

    def excluded() -> tuple[bool, bool]:
        entered = threading.Event()

        def enter() -> None:
            with lock:
                entered.set()

        thread = threading.Thread(target=enter, daemon=True)
        thread.start()
        before = entered.wait(0.2)
        lock.__exit__(None, None, None)
        return before, entered.wait(10)

    with lock:
        assert in_child(excluded, 20) == (False, True)
    with lock:
        pass


KINDS = {"Lock", "RLock", "Condition", "Event", "Semaphore", "BoundedSemaphore", "Barrier"}
KEPT_THOUGH = {  # where threads are waited for by what `_forked` does not make -> why a child does not wait for ever
    "hardware.forks Lock.__init__": "it is what makes itself anew",
    "hardware.lease CoreLease._begin": "in a table that `_forked` empties",
    "cache.store ContentCache.single_flight": "in a table that `_forked` empties",
    "pipeline.voices KnownVoices._exclusively": "in a table that `_forked` empties",
    "cache.store ContentCache._check_later": "a child does not wait for it, and checks itself",
    "optimizer UniversalOptimizer._executor": "forgotten by `_forked`",
    "kernels.parallel _pool": "one for each process, by its number",
    "optimizer UniversalOptimizer._stream": "a flag of one stream, which raises in a child; nobody waits for it",
    "engines.fish_speech.routed _Request": "a flag of one request, which its parent speaks; nobody waits for it",
    "engines.spark_tts.pytorch tokens": "flags of one reply, which its parent speaks; nobody waits for them",
    "benchmark.reading Reader.__init__": "of a benchmark, which does not fork",
    "cli.progress Bars.__init__": "of the command, which does not fork",
    "reference.training.loop _termination": "of a program that does not fork",
}


def waits(path: Path) -> Iterator[str]:
    """Where a module makes what threads wait for, beside what is made anew in a child and pools that end in a block."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    annotations = [getattr(node, name, None) for node in ast.walk(tree) for name in ("annotation", "returns")]
    passed = {id(node) for each in annotations if each is not None for node in ast.walk(each)}
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)

    def visit(node: ast.AST, place: str) -> Iterator[str]:
        if isinstance(node, ast.ClassDef):
            passed.update(id(each) for method in renewing(node) for each in ast.walk(method))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            place = f"{place}.{node.name}" if place else node.name
        if isinstance(node, ast.withitem):
            passed.add(id(node.context_expr))
        if id(node) in passed:
            return
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        pool = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ThreadPoolExecutor")
        if pool or name in {f"threading.{kind}" for kind in KINDS}:
            yield f"{module} {place}"
        for child in ast.iter_child_nodes(node):
            yield from visit(child, place)

    return visit(tree, "")


def renewing(kind: ast.ClassDef) -> list[ast.FunctionDef]:
    """`_forked`, and the methods that it calls, of a class that has itself renewed in children."""
    if "renewed_in_children(self)" not in ast.unparse(kind):
        return []
    methods = {each.name: each for each in kind.body if isinstance(each, ast.FunctionDef)}
    return [
        each
        for name, each in methods.items()
        if name == "_forked" or f"self.{name}(" in ast.unparse(methods["_forked"])
    ]


def test_whatever_threads_wait_for_is_made_anew_in_a_child() -> None:
    found = {place for path in sorted(PACKAGE.rglob("*.py")) for place in waits(path)}
    assert found == set(KEPT_THOUGH)


def test_nobody_hides_from_that() -> None:
    """By another name for what makes locks."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("threading", "_thread", "multiprocessing"), path
            elif isinstance(node, ast.Import):
                assert all(each.asname is None for each in node.names if each.name == "threading"), path
