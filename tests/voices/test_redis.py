"""Voices on a real Redis server: found by every process, encoded once, and never a request that fails for it."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from accelerator.cache import make_key
from accelerator.errors import InvalidOption
from accelerator.pipeline.voices import KnownVoices
from accelerator.voices import RedisVoices
from accelerator.voices.packed import packed
from tests.children import in_child
from tests.skeletons import Tokens, opened
from tests.voices.servers import real_server

VOICE = {"codes": np.arange(2150).reshape(10, 215)}
DIGEST = "d" * 64
KEY = make_key(kind="voice", format=4, encoder="encoder", reference=DIGEST)
PATIENT = 20.0  # a machine that is busy with other tests is no server that is slow


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with real_server(tmp_path_factory.mktemp("redis")) as port:
        yield port


@pytest.fixture
def server(port: int) -> Iterator[Any]:
    """The server's own client, for what a test looks at; empty."""
    import redis

    with redis.Redis(port=port) as client:
        client.flushall()
        yield client
        client.config_set("maxmemory", "0")
        client.replicaof("NO", "ONE")
        client.config_set("requirepass", "")


def shared(port: int, *, query: str = "", secret: str = "", **options: Any) -> RedisVoices:
    return RedisVoices.from_url(f"redis://{secret}127.0.0.1:{port}{query}", **{"timeout": PATIENT, **options})


def never() -> Any:
    raise AssertionError("a known voice is not encoded")


def known(store: Any) -> KnownVoices:
    """As in another process: with nothing in memory."""
    return KnownVoices(store, "encoder")


def test_a_voice_is_found_by_others(server: Any, port: int) -> None:
    first = known(shared(port))
    assert first.get(DIGEST) is None
    made = first.get_or_encode(DIGEST, lambda: VOICE)
    assert np.array_equal(made["codes"], VOICE["codes"])
    for store in (shared(port), shared(port)):
        other = known(store)
        found = other.get(DIGEST)
        assert found is not None
        assert found["codes"].dtype == np.int64
        assert np.array_equal(found["codes"], VOICE["codes"])
        found["codes"][:] = 0  # the caller's own
        assert np.array_equal(other.get_or_encode(DIGEST, never)["codes"], VOICE["codes"])
        assert (other.stats.stored, other.stats.memory, other.stats.failures) == (1, 1, 0)
    assert known(shared(port)).get("e" * 64) is None
    assert KnownVoices(shared(port), "other weights").get(DIGEST) is None


def test_what_is_stored_is_a_safetensors_file_with_a_time_to_live_and_no_claim(server: Any, port: int) -> None:
    known(shared(port, query="?ttl=99.2")).get_or_encode(DIGEST, lambda: VOICE)
    for _ in range(500):  # the claim is given back when the voice is stored
        if server.keys("*") == [f"accelerator:voice:{KEY}".encode()]:
            break
        time.sleep(0.01)
    assert server.keys("*") == [f"accelerator:voice:{KEY}".encode()]
    assert 98 <= server.ttl(f"accelerator:voice:{KEY}") <= 100
    arrays = safetensors.numpy.load(server.get(f"accelerator:voice:{KEY}"))
    assert np.array_equal(arrays["codes"], VOICE["codes"])


@pytest.mark.parametrize(
    ("ttl", "milliseconds"), [(0.2, (1, 1000)), ("none", (-1, -1)), (86400, (86_000_000, 86_400_000))]
)
def test_times_to_live(server: Any, port: int, ttl: Any, milliseconds: tuple[int, int]) -> None:
    shared(port, query=f"?ttl={ttl}").put(KEY, b"value")
    assert milliseconds[0] <= server.pttl(f"accelerator:voice:{KEY}") <= milliseconds[1]


def test_a_client_of_the_users_own_may_decode(server: Any, port: int) -> None:
    import redis

    shared(port).put(KEY, packed(KEY, VOICE, {}))
    with redis.Redis(port=port, decode_responses=True) as client:
        store = RedisVoices(client, timeout=PATIENT)
        assert repr(store) == f"<RedisVoices redis://localhost:{port}/0>"
        assert np.array_equal(known(store).get_or_encode(DIGEST, never)["codes"], VOICE["codes"])
        other = known(store)
        other.get_or_encode("e" * 64, lambda: VOICE)
        assert np.array_equal(known(store).get_or_encode("e" * 64, never)["codes"], VOICE["codes"])
        assert other.stats.failures == 0


def test_sixteen_processes_encode_a_voice_once_between_them(server: Any, port: int, tmp_path: Path) -> None:
    store, log, begin = shared(port, wait=3 * PATIENT), tmp_path / "log", tmp_path / "begin"

    def encode() -> Any:
        with open(log, "a") as file:
            file.write("encoded\n")
        time.sleep(0.5)
        return VOICE

    def ask() -> int:
        while not begin.exists():
            time.sleep(0.01)
        return int(known(store).get_or_encode(DIGEST, encode)["codes"].sum())

    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(in_child, ask, 6 * PATIENT) for _ in range(16)]
        begin.touch()
        assert [answer.result() for answer in answers] == [VOICE["codes"].sum()] * 16
    assert log.read_text() == "encoded\n"


def test_threads_of_several_optimizers_encode_a_voice_once(server: Any, port: int) -> None:
    calls = []

    def encode() -> Any:
        calls.append(1)
        time.sleep(0.2)
        return VOICE

    stores = [known(shared(port)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        voices = list(pool.map(lambda store: store.get_or_encode(DIGEST, encode), stores))
    assert len(calls) == 1
    assert all(np.array_equal(voice["codes"], VOICE["codes"]) for voice in voices)


def test_who_waits_for_a_process_that_was_killed_encodes_at_last(server: Any, port: int, caplog: Any) -> None:
    server.set(f"accelerator:voice:{KEY}:claim", "of another process", px=60_000)
    voices = known(shared(port, wait=0.2))
    assert np.array_equal(voices.get_or_encode(DIGEST, lambda: VOICE)["codes"], VOICE["codes"])
    assert [record.message for record in caplog.records if "another process" in record.message]
    assert server.get(f"accelerator:voice:{KEY}:claim") == b"of another process", "it is not ours to end"


def test_a_claim_ends_by_itself(server: Any, port: int) -> None:
    with shared(port).claim(KEY) as value:
        assert value is None
        assert 0 < server.pttl(f"accelerator:voice:{KEY}:claim") <= 30_000


def test_an_encoder_that_fails_lets_the_next_one_try_at_once(server: Any, port: int) -> None:
    def fails() -> Any:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        known(shared(port)).get_or_encode(DIGEST, fails)
    other = known(shared(port, wait=PATIENT))
    assert np.array_equal(other.get_or_encode(DIGEST, lambda: VOICE)["codes"], VOICE["codes"])
    stand_in = known(shared(port))
    stand_in.get_or_encode("e" * 64, lambda: VOICE, keep=lambda: False)
    assert stand_in.get("e" * 64) is None


@pytest.mark.parametrize("harm", ["half", "a bit", "another's", "text", "a list", "empty"])
def test_a_value_that_is_damaged_is_encoded_anew_and_replaced(server: Any, port: int, harm: str, caplog: Any) -> None:
    name, good = f"accelerator:voice:{KEY}", packed(KEY, VOICE, {})
    values = {"half": good[:4000], "a bit": good[:-1] + bytes([good[-1] ^ 1]), "text": b"\xff\x00", "empty": b""}
    values["another's"] = packed("b" * 64, VOICE, {})
    if harm == "a list":
        server.rpush(name, "one", "two")
    else:
        server.set(name, values[harm])
    voices = known(shared(port))
    assert voices.get(DIGEST) is None
    for _ in range(2):
        assert np.array_equal(voices.get_or_encode(DIGEST, lambda: VOICE)["codes"], VOICE["codes"])
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1, said
    assert np.array_equal(known(shared(port)).get_or_encode(DIGEST, never)["codes"], VOICE["codes"])


def test_a_server_that_is_full_is_read_and_said_once(server: Any, port: int, caplog: Any) -> None:
    shared(port).put(KEY, packed(KEY, VOICE, {}))
    server.config_set("maxmemory", "1")
    store = shared(port)
    assert np.array_equal(known(store).get_or_encode(DIGEST, never)["codes"], VOICE["codes"])
    for digest in ("e" * 64, "f" * 64):
        voices = known(store)
        assert np.array_equal(voices.get_or_encode(digest, lambda: VOICE)["codes"], VOICE["codes"])
        assert known(store).get(digest) is None
    assert [record.message for record in caplog.records] == [
        f"Voices cannot be shared by redis://127.0.0.1:{port}/0 now: it is full (maxmemory). They are encoded here; "
        "said once."
    ]


def test_a_replica_that_is_read_only_is_read_and_said_once(server: Any, port: int, caplog: Any) -> None:
    shared(port).put(KEY, packed(KEY, VOICE, {}))
    server.replicaof("127.0.0.1", "1")
    store = shared(port)
    assert np.array_equal(known(store).get_or_encode(DIGEST, never)["codes"], VOICE["codes"])
    for digest in ("e" * 64, "f" * 64):
        assert np.array_equal(known(store).get_or_encode(digest, lambda: VOICE)["codes"], VOICE["codes"])
    assert [record.message.partition(" now: ")[2] for record in caplog.records] == [
        "it is read-only. They are encoded here; said once."
    ]


@pytest.mark.parametrize("secret", ["right", "wrong", ""])
def test_passwords_are_used_and_never_repeated(
    server: Any, port: int, secret: str, caplog: Any, capfd: Any, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    server.config_set("requirepass", "s3cret-right")
    asked = f"user:s3cret-{secret}@" if secret == "wrong" else f":s3cret-{secret}@" if secret else ""
    url = f"redis://{asked}127.0.0.1:{port}/1?ttl=60&timeout={PATIENT}"
    reference = np.sin(np.arange(16_000, dtype=np.float32) / 20)
    with opened(Tokens, tmp_path, voices=url) as optimizer:
        speech = optimizer.synthesize("Some words.", (reference, 16_000), "words")
        status, settings = optimizer.status(), repr(optimizer._runtime.settings)
        said = [str(each) for each in (status, speech.metrics, settings, vars(optimizer._runtime.settings))]
    assert status["voices"]["store"] == f"redis://127.0.0.1:{port}/1"
    assert (optimizer._runtime.voices.problem() is None) == (secret == "right")  # type: ignore[attr-defined]
    stream = capfd.readouterr()
    for text in (*said, caplog.text, stream.out, stream.err):
        assert "s3cret" not in text
    reasons = {record.message for record in caplog.records if "for another name or password" in record.message}
    assert len(reasons) == (0 if secret == "right" else 1)


def test_two_optimizers_encode_a_recording_once(server: Any, port: int, tmp_path: Path) -> None:
    reference, url = np.sin(np.arange(16_000, dtype=np.float32) / 20), f"redis://127.0.0.1:{port}?timeout={PATIENT}"
    spoken = []
    for name in ("one", "other"):
        with opened(Tokens, tmp_path / name, voices=url) as optimizer:
            assert optimizer.status()["voices"] is None
            speech = optimizer.synthesize("Some words.", (reference, 16_000), "words", seed=1)
            spoken.append((speech.audio.tobytes(), optimizer.status()["voices"]))
    (first, encoded), (second, found) = spoken
    assert first == second
    assert (encoded["misses"], encoded["stored"]) == (1, 0)
    assert (found["misses"], found["stored"]) == (0, 1)


def test_the_environment_names_a_server(server: Any, port: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ACCELERATOR_VOICES", f"redis://127.0.0.1:{port}/2")
    with opened(Tokens, tmp_path) as optimizer:
        assert str(optimizer._runtime.voices) == f"redis://127.0.0.1:{port}/2"
    with opened(Tokens, tmp_path, voices_dir=tmp_path / "here") as optimizer:
        assert str(optimizer._runtime.voices) == str(tmp_path / "here")
    monkeypatch.setenv("ACCELERATOR_VOICES", "redis://:s3/cret@host")
    with pytest.raises(InvalidOption, match="ACCELERATOR_VOICES: the address of voices cannot be read") as refused:
        opened(Tokens, tmp_path)
    assert "s3" not in str(refused.value)


def test_a_forked_child_finds_the_voice(server: Any, port: int) -> None:
    voices = known(shared(port))
    voices.get_or_encode("e" * 64, lambda: VOICE)
    shared(port).put(KEY, packed(KEY, VOICE, {}))
    assert in_child(lambda: int(voices.get_or_encode(DIGEST, never)["codes"].sum())) == VOICE["codes"].sum()
    assert np.array_equal(voices.get_or_encode(DIGEST, never)["codes"], VOICE["codes"])


def test_a_server_that_dies_and_comes_back(tmp_path: Path, caplog: Any, monkeypatch: Any) -> None:
    with real_server(tmp_path) as port:
        store = shared(port)
        known(store).get_or_encode(DIGEST, lambda: VOICE)
    for digest in (DIGEST, "e" * 64):
        assert np.array_equal(known(store).get_or_encode(digest, lambda: VOICE)["codes"], VOICE["codes"])
    assert [record.message.partition(" now: ")[2] for record in caplog.records] == [
        "it cannot be reached. They are encoded here; said once."
    ]
    assert store.problem() == "it cannot be reached"
    monkeypatch.setattr("tests.voices.servers.free_port", lambda: port)
    with real_server(tmp_path):
        store._rests_until = 0.0  # as if a while had passed
        known(store).get_or_encode(DIGEST, lambda: VOICE)
        assert np.array_equal(known(store).get_or_encode(DIGEST, never)["codes"], VOICE["codes"])


def test_a_server_that_hangs_is_not_waited_for(tmp_path: Path, caplog: Any) -> None:
    with real_server(tmp_path) as port:
        process = int(shared(port)._client.info("server")["process_id"])
        store = RedisVoices.from_url(f"redis://127.0.0.1:{port}")
        os.kill(process, signal.SIGSTOP)
        try:
            for digest in (DIGEST, "e" * 64):
                assert np.array_equal(known(store).get_or_encode(digest, lambda: VOICE)["codes"], VOICE["codes"])
        finally:
            os.kill(process, signal.SIGCONT)
    assert [record.message.partition(" now: ")[2] for record in caplog.records] == [
        "it does not answer within 50 ms. They are encoded here; said once."
    ]
