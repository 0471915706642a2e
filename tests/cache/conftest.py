"""A cache that is empty, in a process that remembers nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from accelerator.cache import ContentCache, Entry
from accelerator.cache import store as store_module
from tests.cache.entries import KEY, build


@pytest.fixture
def cache(tmp_path: Path) -> ContentCache:
    return ContentCache(tmp_path / "cache")


@pytest.fixture
def entry(cache: ContentCache) -> Entry:
    return cache.get_or_create(KEY, build, name="slow")


@pytest.fixture
def forget() -> Callable[[], None]:
    """Makes this process look like another one: nothing in use, nothing verified."""

    def forget_all() -> None:
        store_module._in_use.clear()
        store_module.digest._memo.clear()

    return forget_all


@pytest.fixture(autouse=True)
def _nothing_from_other_tests(forget: Callable[[], None]) -> Iterator[None]:
    forget()
    yield
    forget()
    for path in list(store_module.remove_at_exit.__globals__["_ephemeral"]):
        shutil.rmtree(path, ignore_errors=True)
