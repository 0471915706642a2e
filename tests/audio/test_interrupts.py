"""Ctrl-C is held back while a library calls back into Python, and not lost."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from accelerator.audio.files import AudioWriter
from accelerator.audio.interrupts import uninterrupted


def test_it_comes_when_the_block_has_ended() -> None:
    done = []

    def work() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]


def test_nothing_comes_where_nobody_interrupted() -> None:
    before = signal.getsignal(signal.SIGINT)
    with uninterrupted():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_need_nothing() -> None:
    seen = []

    def work() -> None:
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize("name", ["speech.mp3", "speech.flac", "speech.ogg", "speech.opus"])
def test_an_interrupted_file_is_not_published(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)

    def interrupted() -> None:
        with AudioWriter(tmp_path / name, 48_000) as writer:
            put = writer._sink._put
            monkeypatch.setattr(writer._sink, "_put", lambda data: (os.kill(os.getpid(), signal.SIGINT), put(data)))
            for _ in range(20):
                writer.write(noise)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
