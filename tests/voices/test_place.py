"""Addresses of servers: what they say, and that no error repeats them."""

from __future__ import annotations

import traceback

import pytest

from accelerator.errors import InvalidOption
from accelerator.voices.place import is_server, parsed, whole_seconds


@pytest.mark.parametrize(
    ("url", "name", "options"),
    [
        ("redis://host", "redis://host:6379/0", {}),
        ("redis://:secret@host:7000/3?ttl=86400", "redis://host:7000/3", {"ttl": 86400}),
        ("rediss://user:secret@[::1]/2?timeout=0.1&wait=3", "rediss://[::1]:6379/2", {"timeout": 0.1, "wait": 3}),
        ("redis://host?ttl=none&db=4", "redis://host:6379/4", {"ttl": None}),
        ("unix:///run/redis.sock?db=1&password=secret", "unix:///run/redis.sock", {}),
        ("redis://secret@else@host", "redis://host:6379/0", {}),
    ],
)
def test_an_address_is_read(url: str, name: str, options: dict[str, float | None]) -> None:
    place = parsed(url)
    assert (place.name, dict(place.options)) == (name, options)
    assert "secret" not in repr(place)
    assert not any(own in place.url for own in ("ttl", "timeout", "wait"))


@pytest.mark.parametrize(
    "url",
    [
        "redis://:sec/ret@host",
        "redis://:12/secret@host:6379/0",
        "redis://:sec#ret@host",
        "redis://:sec?ret@host",
        "redis://user?secret@host",
        "redis://host?secret=1",
        "redis://host?ttl=secret",
        "redis://host?ttl=1&ttl=secret",
        "redis://host?ttl=nan",
        "redis://host?timeout=none",
        "redis://host/secret",
        "redis://host/0#secret",
        "redis://host:99999999",
        "redis://[secret/0",
        "redis://\u2100secret@host",
        "redis:///0",
        "redis:host",
        "unix:secret",
        "http://:secret@host",
        "memcached://secret@host",
    ],
)
def test_an_address_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    assert is_server(url)
    with pytest.raises(InvalidOption, match="the address of voices") as refused:
        parsed(url)
    said = "".join(traceback.format_exception(refused.value))
    assert "secret" not in str(refused.value).replace("user:password", "")
    assert refused.value.__context__ is None
    assert "ret@host" not in said


@pytest.mark.parametrize(("given", "whole"), [(86400, 86400), (0.2, 1), (1.5, 2), (59.000001, 60), ("7", 7)])
def test_a_time_to_live_is_whole_seconds_rounded_up(given: float, whole: int) -> None:
    assert whole_seconds("ttl", given) == whole


@pytest.mark.parametrize("given", [0, -1, float("nan"), float("inf"), 1e12, True, "soon", None, [1]])
def test_a_time_to_live_that_is_none_is_refused(given: object) -> None:
    with pytest.raises(InvalidOption, match="ttl must be a number of seconds"):
        whole_seconds("ttl", given)


def test_a_directory_is_no_server() -> None:
    assert not any(map(is_server, ("/var/cache/voices", "voices", "~/voices", "C:\\voices", "redis", "./redis:x")))
