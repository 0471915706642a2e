"""Servers that do not answer as they should: every request goes on, and each failure is said once.

That such a test ends at all shows that nothing waits for the server: none of these answers ever comes to an end.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from accelerator.errors import InvalidOption
from accelerator.pipeline.voices import KnownVoices
from accelerator.voices import RedisVoices
from accelerator.voices.redis import _AT_ONCE
from tests.voices.servers import Misbehaving, free_port

pytest.importorskip("redis", reason="needs redis-py: the extra redis")

VOICE = {"codes": np.arange(20).reshape(2, 10)}
NIL = b"$-1\r\n"


def speaks(store: Any, caplog: Any) -> list[str]:
    """What is said while three voices are encoded, each asked for as a request does."""
    voices = KnownVoices(store, "encoder")
    for digest in ("a", "b", "c"):
        assert voices.get(digest) is None
        assert np.array_equal(voices.get_or_encode(digest, lambda: VOICE)["codes"], VOICE["codes"])
    assert voices.stats.misses == 3
    return [record.message.partition(" now: ")[2].partition(".")[0] for record in caplog.records]


def silent(server: Misbehaving, connection: socket.socket) -> None:
    while server.waits(0.05):
        pass


def drip(server: Misbehaving, connection: socket.socket) -> None:
    """Each byte comes well within any time-out of a socket."""
    connection.sendall(b"$9999\r\n")
    while server.waits(0.005):
        connection.sendall(b"x")


def flood(server: Misbehaving, connection: socket.socket) -> None:
    connection.sendall(b"$536870912\r\n")
    while server.waits(0.0):
        connection.sendall(bytes(1 << 16))


@pytest.mark.parametrize("talk", [silent, drip, flood])
def test_an_answer_that_never_ends(talk: Callable[[Misbehaving, socket.socket], None], caplog: Any) -> None:
    with Misbehaving(talk=lambda connection: talk(server, connection)) as server:
        store = RedisVoices.from_url(f"redis://127.0.0.1:{server.port}")
        assert speaks(store, caplog) == ["it does not answer within 50 ms"]
        for thread in threading.enumerate():  # what waits for a drip is ended, too
            if thread.name == "accelerator-voices":
                thread.join(20)
                assert not thread.is_alive()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$-7\r\n",
        b"$99999999999999999999\r\nx\r\n",
        b"*1\r\n" * 5000,
        b"\0" * 64 + b"\r\n",
        b"+\xff\xfe\r\n",
        b"*1000000\r\n",
    ],
)
def test_an_answer_that_is_none(answer: bytes, caplog: Any) -> None:
    with Misbehaving(lambda words: answer) as server:
        store = RedisVoices.from_url(f"redis://127.0.0.1:{server.port}?timeout=0.5")
        speaks(store, caplog)
        messages = [record.message for record in caplog.records]
        assert 1 <= len(messages) == len(set(messages))


@pytest.mark.parametrize("ends", ["refuses", "hangs up"])
def test_a_server_that_is_not_there(ends: str, caplog: Any) -> None:
    with Misbehaving(talk=lambda connection: None) as server:
        port = server.port if ends == "hangs up" else free_port()
        store = RedisVoices.from_url(f"redis://127.0.0.1:{port}?timeout=20")
        assert speaks(store, caplog) == ["it cannot be reached"]
        assert store.problem() == "it cannot be reached"


def test_a_name_that_is_looked_up_for_ever(monkeypatch: Any, caplog: Any) -> None:
    ends = threading.Event()

    def getaddrinfo(*_: Any, **__: Any) -> Any:
        ends.wait(60)
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert speaks(RedisVoices.from_url("redis://voices.invalid"), caplog) == ["it does not answer within 50 ms"]
    ends.set()


def test_what_a_server_says_is_not_repeated(caplog: Any, capfd: Any) -> None:
    """A real one quotes the arguments of a command that it does not know."""
    caplog.set_level(logging.DEBUG)
    quotes = b"-ERR unknown command 'AUTH', with args beginning with: 's3cret'\r\n"
    with Misbehaving(lambda words: quotes) as server:
        store = RedisVoices.from_url(f"redis://:s3cret@127.0.0.1:{server.port}?timeout=20")
        speaks(store, caplog)
        said = f"{store} {store!r} {store.problem()} {caplog.text} {''.join(capfd.readouterr())}"
    assert server.commands[0] == [b"AUTH", b"s3cret"]
    assert "s3cret" not in said
    assert "refuses what is needed" in said


def test_a_server_that_says_for_ever_that_another_one_encodes(caplog: Any) -> None:
    with Misbehaving(lambda words: NIL) as server:
        store = RedisVoices.from_url(f"redis://127.0.0.1:{server.port}?timeout=20&wait=0.1")
        assert speaks(store, caplog) == ["for 0"]
        asked = [words[0] for words in server.commands if words[0] != b"CLIENT"]
        assert asked[:3] == [b"GET", b"SET", b"GET"]


def test_a_server_that_keeps_nothing_is_asked_for_each_voice_and_harms_nothing(caplog: Any) -> None:
    with Misbehaving(lambda words: {b"SET": b"+OK\r\n", b"EVAL": b":1\r\n"}.get(words[0], NIL)) as server:
        assert speaks(RedisVoices.from_url(f"redis://127.0.0.1:{server.port}?timeout=20"), caplog) == []


def test_while_it_rests_it_is_not_asked(monkeypatch: Any) -> None:
    with Misbehaving(lambda words: b"*bad\r\n") as server:
        store = RedisVoices.from_url(f"redis://127.0.0.1:{server.port}?timeout=20")
        now = [100.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        for rests in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
            asked = len(server.commands)
            assert (store.get("a"), len(server.commands)) == (None, asked + 1)
            now[0] += rests - 0.01
            assert (store.get("a"), len(server.commands)) == (None, asked + 1)
            now[0] += 0.02


def test_all_that_a_request_asks_takes_no_longer_than_the_time_out(monkeypatch: Any) -> None:
    """A server that answers everything just in time is given less and less."""
    given, now = list[float](), [0.0]

    class Calls:
        def call(self, function: Any, seconds: float) -> Any:
            given.append(round(seconds, 3))
            now[0] += min(seconds, 0.02)
            if seconds < 0.02:
                raise TimeoutError("it takes too long")
            return function()

    class Client:
        def execute_command(self, *words: Any, **options: Any) -> Any:
            return None if words[0] == "GET" else True

    store = RedisVoices(Client())
    monkeypatch.setattr(store, "_calls", Calls())
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in range(2):
        voices, start = KnownVoices(store, "encoder"), now[0]
        assert voices.get("a") is None
        voices.get_or_encode("a", lambda: VOICE)
        assert now[0] - start <= 0.05 + 1e-9
    assert given == [0.045, 0.025, 0.005] * 2


def test_no_more_calls_wait_at_once_than_there_are_places(caplog: Any) -> None:
    with Misbehaving(talk=lambda connection: silent(server, connection)) as server:
        import redis

        # The user's own client, whose connections are not ours to end.
        client = redis.Redis(port=server.port, socket_timeout=None, retry=None)
        store = RedisVoices(client, timeout=0.01)
        for _ in range(_AT_ONCE + 3):
            store._rests_until = 0.0
            assert store.get("a") is None
        waiting = [thread for thread in threading.enumerate() if thread.name == "accelerator-voices"]
        assert len(waiting) <= _AT_ONCE
    for thread in waiting:
        thread.join(20)


@pytest.mark.parametrize("client", [None, "redis://host", object()])
def test_what_is_no_client_is_refused(client: Any) -> None:
    with pytest.raises(InvalidOption, match=r"kept by a redis\.Redis"):
        RedisVoices(client)


def test_a_client_for_asyncio_is_refused() -> None:
    import redis.asyncio

    with pytest.raises(InvalidOption, match=r"kept by a redis\.Redis"):
        RedisVoices(redis.asyncio.Redis())


@pytest.mark.parametrize(
    "options", [{"ttl": 0}, {"ttl": float("nan")}, {"timeout": 0}, {"timeout": True}, {"wait": -1}, {"wait": "long"}]
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=f"{next(iter(options))} must be"):
        RedisVoices.from_url("redis://host", **options)
