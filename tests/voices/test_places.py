"""Where voices are kept, as users say it; and stores of their own, which may do as they please."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import accelerator
from accelerator.cache import ContentCache
from accelerator.errors import InvalidOption
from accelerator.pipeline.voices import KnownVoices
from accelerator.voices import DiskVoices, VoiceStore
from accelerator.voices.places import opened as opened_store
from tests.skeletons import Tokens, opened

VOICE = {"codes": np.arange(20).reshape(2, 10)}
REFERENCE = (np.sin(np.arange(16_000, dtype=np.float32) / 20), 16_000)


class Own:
    """What a user might write, in seven lines."""

    def __init__(self) -> None:
        self.values = dict[str, bytes]()

    def get(self, key: str) -> bytes | None:
        return self.values.get(key)

    def put(self, key: str, value: bytes) -> None:
        self.values[key] = value

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bytes | None]:
        yield self.values.get(key)


def test_a_store_of_the_users_own(tmp_path: Path) -> None:
    store: VoiceStore = Own()
    assert accelerator.VoiceStore is VoiceStore
    for misses in (1, 0):
        with opened(Tokens, tmp_path, voices=store) as optimizer:
            optimizer.synthesize("Some words.", REFERENCE, "words")
            status = optimizer.status()["voices"]
            assert (status["misses"], status["stored"], status["failures"]) == (misses, 1 - misses, 0)


class Failing(Own):
    """Raises wherever it is told to."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.message = where, "redis://:s3cret@host is gone"

    def fail(self, where: str) -> None:
        if where == self.where:
            raise RuntimeError(self.message)

    def get(self, key: str) -> bytes | None:
        self.fail("get")
        return super().get(key)

    def put(self, key: str, value: bytes) -> None:
        self.fail("put")
        super().put(key, value)

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bytes | None]:
        self.fail("claim")
        yield super().get(key)
        self.fail("end of a claim")


@pytest.mark.parametrize("where", ["get", "put", "claim", "end of a claim"])
def test_a_store_that_fails_costs_an_encoding_and_is_said_once(where: str, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    voices = KnownVoices(Failing(where), "encoder", max_bytes=0)
    for _ in range(3):
        voices.get("a")
        assert np.array_equal(voices.get_or_encode("a", lambda: VOICE)["codes"], VOICE["codes"])
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "RuntimeError within it" in warned[0]
    assert "s3cret" not in caplog.text
    assert voices.stats.failures >= 1


def test_what_an_encoder_raises_within_a_claim_is_passed_on() -> None:
    def fails() -> Any:
        raise MemoryError("too long")

    store = Own()
    with pytest.raises(MemoryError, match="too long"):
        KnownVoices(store, "encoder").get_or_encode("a", fails)
    assert store.values == {}


@pytest.mark.parametrize("answer", ["text", 7, [], bytearray(b"x")])
def test_a_store_that_gives_no_bytes(answer: Any) -> None:
    store = Own()
    voices = KnownVoices(store, "encoder")
    store.get = lambda key: answer  # type: ignore[method-assign]
    assert voices.get("a") is None
    assert np.array_equal(voices.get_or_encode("a", lambda: VOICE)["codes"], VOICE["codes"])


def test_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert [str(opened_store(place)) for place in ("here", str(tmp_path / "there"), "~/own")] == [
        str(tmp_path / "here"),
        str(tmp_path / "there"),
        str(tmp_path / "home" / "own"),
    ]
    with opened(Tokens, tmp_path / "cache", voices="here") as optimizer:
        optimizer.synthesize("Some words.", REFERENCE, "words")
    assert list((tmp_path / "here").rglob("voice.safetensors"))


def test_by_itself_they_are_beside_the_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATOR_VOICES", raising=False)
    with opened(Tokens, tmp_path) as optimizer:
        assert str(optimizer._runtime.voices) == str(tmp_path)
    monkeypatch.setenv("ACCELERATOR_VOICES", str(tmp_path / "other"))
    with opened(Tokens, tmp_path) as optimizer:
        assert str(optimizer._runtime.voices) == str(tmp_path / "other")
    with opened(Tokens, tmp_path, voices=DiskVoices(ContentCache(tmp_path / "third"))) as optimizer:
        assert str(optimizer._runtime.voices) == str(tmp_path / "third")


@pytest.mark.parametrize("place", ["", " ", 7, object(), ["redis://host"]])
def test_what_is_no_place_is_refused(tmp_path: Path, place: Any) -> None:
    with pytest.raises(InvalidOption, match="voices"):
        opened(Tokens, tmp_path, voices=place)


def test_two_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="voices and voices_dir"):
        opened(Tokens, tmp_path, voices="here", voices_dir=tmp_path)


def test_without_redis_py_a_server_is_refused_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidOption, match=r"voices need redis-py.*pip install.*redis"):
        opened_store("redis://host")
