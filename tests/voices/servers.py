"""A real Redis server, and one that behaves as badly as a test says."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Misbehaving", "free_port", "real_server"]

Answer = Callable[[list[bytes]], bytes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def real_server(folder: Path, *options: str) -> Iterator[int]:
    """Debian's redis-server on a port of its own, with its files in `folder`. Skips the test where there is none."""
    redis = pytest.importorskip("redis", reason="needs redis-py: the extra redis")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs redis-server: apt-get install redis-server")
    for _ in range(3):  # another process may take the port first
        port = free_port()
        command = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", "", *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            client = redis.Redis(port=port)
            while process.poll() is None:
                try:
                    client.ping()
                except redis.AuthenticationError:
                    pass
                except redis.ConnectionError:
                    time.sleep(0.02)
                    continue
                client.close()
                yield port
                return
        finally:
            process.kill()
            process.wait()
    raise AssertionError("redis-server does not start")


class Misbehaving:
    """A server on the loopback interface that answers commands as it is told, or talks over the socket itself.

    answer: bytes for a command, b"" for nothing. talk: instead, is given the socket, and ends by returning.
    """

    def __init__(self, answer: Answer | None = None, talk: Callable[[socket.socket], Any] | None = None) -> None:
        self._answer, self._talk = answer, talk
        self.commands: list[list[bytes]] = []

    def __enter__(self) -> Misbehaving:
        self._closed, self._open = threading.Event(), list[socket.socket]()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        for each in (self._listening, *self._open):
            each.close()

    def waits(self, seconds: float) -> bool:
        """Sleep; False once the server is closed."""
        return not self._closed.wait(seconds)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._open.append(connection)
                threading.Thread(target=self._speak, args=(connection,), daemon=True).start()

    def _speak(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection:
            if self._talk is not None:
                self._talk(connection)
                return
            lines = connection.makefile("rb")
            while head := lines.readline():
                words = []
                for _ in range(int(head[1:])):
                    words.append(lines.read(int(lines.readline()[1:]) + 2)[:-2])
                self.commands.append(words)
                assert self._answer is not None
                connection.sendall(self._answer(words))
