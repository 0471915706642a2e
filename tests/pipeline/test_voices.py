"""Voices are encoded once: per thread, process and optimizer, whatever happens to the disk."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

from accelerator.cache import ContentCache, make_key
from accelerator.errors import BadOutput, InvalidOption
from accelerator.pipeline import voices
from accelerator.pipeline.voices import VoiceStats
from accelerator.voices import DiskVoices
from accelerator.voices.packed import packed

CODES = np.random.default_rng(0).integers(0, 4096, (10, 215))


class KnownVoices(voices.KnownVoices):
    """Of voices that are one array each, on disk."""

    def __init__(self, cache: ContentCache, encoder_key: str, **options: Any) -> None:
        super().__init__(DiskVoices(cache), encoder_key, **options)

    def get_or_encode(self, reference_digest: str, encode: Any, **options: Any) -> Any:  # type: ignore[override]
        return super().get_or_encode(reference_digest, lambda: {"codes": encode()}, **options)["codes"]

    def get(self, reference_digest: str) -> Any:
        voice = super().get(reference_digest)
        return None if voice is None else voice["codes"]


def name(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


class Encoder:
    """Counts its calls; the codes depend on the voice."""

    def __init__(self, codes: np.ndarray = CODES, seconds: float = 0.0) -> None:
        self.codes, self.seconds, self.calls = codes, seconds, 0

    def __call__(self) -> np.ndarray:
        self.calls += 1
        time.sleep(self.seconds)
        return self.codes


def never() -> np.ndarray:
    raise AssertionError("a known voice is not encoded")


def stored(cache: ContentCache) -> list[Path]:
    return [info.path / "voice.safetensors" for info in cache.entries()]


def test_a_voice_is_encoded_once_and_then_found_in_memory(tmp_path: Path) -> None:
    store, encode = KnownVoices(ContentCache(tmp_path), "encoder"), Encoder()
    for _ in range(3):
        codes = store.get_or_encode(name(0), encode)
        assert codes.dtype == np.int64
        assert np.array_equal(codes, CODES)
        codes[:] = 0  # the caller's own
    assert encode.calls == 1
    assert store.stats == VoiceStats(memory=2, misses=1, voices=1, bytes=CODES.nbytes)


def test_another_store_finds_it_on_disk(tmp_path: Path) -> None:
    KnownVoices(ContentCache(tmp_path), "encoder").get_or_encode(name(0), Encoder())
    store = KnownVoices(ContentCache(tmp_path), "encoder")
    assert np.array_equal(store.get_or_encode(name(0), never), CODES)
    assert np.array_equal(store.get_or_encode(name(0), never), CODES)
    assert store.stats == VoiceStats(memory=1, stored=1, voices=1, bytes=CODES.nbytes)


def test_another_process_does_not_encode(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from accelerator.cache import ContentCache\n"
        "from accelerator.pipeline.voices import KnownVoices\n"
        "from accelerator.voices import DiskVoices\n"
        "def encode():\n"
        "    print('encoded')\n"
        "    return {'codes': np.arange(20).reshape(2, 10)}\n"
        "voice = KnownVoices(DiskVoices(ContentCache(sys.argv[1])), 'encoder').get_or_encode(sys.argv[2], encode)\n"
        "print(voice['codes'].sum())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), name(0)]
    answers = [subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout for _ in range(2)]
    assert answers == ["encoded\n190\n", "190\n"]


def test_voices_and_encoders_are_told_apart(tmp_path: Path) -> None:
    cache, other = ContentCache(tmp_path), Encoder(CODES + 1)
    store = KnownVoices(cache, "encoder")
    store.get_or_encode(name(0), Encoder())
    assert np.array_equal(store.get_or_encode(name(1), other), CODES + 1)
    assert np.array_equal(KnownVoices(cache, "another").get_or_encode(name(0), other), CODES + 1)
    assert other.calls == 2
    with pytest.raises(InvalidOption, match="encoder_key is empty"):
        KnownVoices(cache, "")


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "manifest"])
def test_a_corrupt_voice_is_encoded_again_and_replaced(tmp_path: Path, harm: str) -> None:
    cache = ContentCache(tmp_path)
    KnownVoices(cache, "encoder").get_or_encode(name(0), Encoder())
    (path,) = stored(cache)
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[-5] ^= 1
        path.write_bytes(data)
    elif harm == "truncate":
        path.write_bytes(data[:-8])
    elif harm == "remove":
        path.unlink()
    else:
        path.with_name("manifest.json").write_text("{}")
    encode = Encoder()
    assert np.array_equal(KnownVoices(ContentCache(tmp_path), "encoder").get_or_encode(name(0), encode), CODES)
    assert encode.calls == 1
    assert np.array_equal(KnownVoices(ContentCache(tmp_path), "encoder").get_or_encode(name(0), never), CODES)


@pytest.mark.parametrize("content", ["pickle", "text", "empty", "names", "another's"])
def test_a_valid_entry_that_holds_no_voice_is_not_used(tmp_path: Path, content: str) -> None:
    """What another program may have put under the key, sealed as it should be; nothing is unpickled."""
    cache, key = ContentCache(tmp_path), make_key(kind="voice", format=4, encoder="encoder", reference=name(0))

    def build(directory: Path) -> None:
        file = directory / "voice.safetensors"
        if content == "text":
            file.write_text("no array")
        elif content == "pickle":
            file.write_bytes(pickle.dumps({"codes": CODES}))
        elif content == "another's":
            file.write_bytes(packed("another key", {"codes": CODES}, {}))
        else:
            file.write_bytes(packed(key, {"codes": np.zeros(0) if content == "empty" else np.array([True])}, {}))

    cache.get_or_create(key, build, name="voice")
    encode = Encoder()
    store = KnownVoices(cache, "encoder")
    assert np.array_equal(store.get_or_encode(name(0), encode), CODES)
    assert np.array_equal(store.get_or_encode(name(0), never), CODES)
    assert encode.calls == store.stats.failures == 1


def test_what_is_on_disk_says_what_it_is(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path)
    KnownVoices(cache, "encoder").get_or_encode(name(0), Encoder())
    (info,) = cache.entries()
    assert info.name == "voice"
    with safetensors.safe_open(info.path / "voice.safetensors", "numpy") as file:
        metadata = file.metadata()
        assert (metadata["encoder"], metadata["reference"]) == ("encoder", name(0))
        assert np.array_equal(file.get_tensor("codes"), CODES)
    assert cache.verify() == []


def test_eight_threads_encode_once(tmp_path: Path) -> None:
    store, encode, begin = KnownVoices(ContentCache(tmp_path), "encoder"), Encoder(seconds=0.2), threading.Barrier(8)

    def ask() -> np.ndarray:
        begin.wait()
        return store.get_or_encode(name(0), encode)

    with ThreadPoolExecutor(8) as pool:
        answers = [future.result() for future in [pool.submit(ask) for _ in range(8)]]
    assert all(np.array_equal(codes, CODES) for codes in answers)
    assert len({id(codes) for codes in answers}) == 8
    assert encode.calls == 1
    assert (store.stats.memory, store.stats.misses) == (7, 1)
    assert store._flights == {}


def test_different_voices_do_not_wait_for_each_other(tmp_path: Path) -> None:
    store, both = KnownVoices(ContentCache(tmp_path), "encoder"), threading.Barrier(2, timeout=20)

    def encode() -> np.ndarray:
        both.wait()  # returns only when the other one is being encoded too
        return CODES

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(store.get_or_encode, name(i), encode) for i in range(2)]:
            assert np.array_equal(future.result(), CODES)


def test_codes_that_are_not_to_be_kept_are_handed_out_once(tmp_path: Path) -> None:
    cache, other = ContentCache(tmp_path / "a"), Encoder(CODES + 1)
    (tmp_path / "file").write_text("not a directory")
    for place in (cache, ContentCache(tmp_path / "file" / "cache")):
        store, stand_in = KnownVoices(place, "encoder"), Encoder()
        for calls in (1, 2):
            assert np.array_equal(store.get_or_encode(name(0), stand_in, keep=lambda: False), CODES)
            assert (stand_in.calls, store.get(name(0)), store.stats.voices) == (calls, None, 0)
        assert place.entries() == []
        assert np.array_equal(store.get_or_encode(name(0), other, keep=lambda: True), CODES + 1)
        assert np.array_equal(store.get_or_encode(name(0), never), CODES + 1)


def test_a_voice_can_be_asked_for_without_an_encoder(tmp_path: Path) -> None:
    store = KnownVoices(ContentCache(tmp_path), "encoder")
    assert store.get(name(0)) is None
    assert store.stats == VoiceStats()
    store.get_or_encode(name(0), Encoder())
    other = KnownVoices(ContentCache(tmp_path), "encoder")
    for _ in range(2):
        codes = other.get(name(0))
        assert codes is not None
        assert np.array_equal(codes, CODES)
        codes[:] = 0  # the caller's own
    assert other.stats == VoiceStats(memory=1, stored=1, voices=1, bytes=CODES.nbytes)


def test_an_encoder_that_fails_leaves_no_trace_and_is_asked_again(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path)
    store, begin, failed = KnownVoices(cache, "encoder"), threading.Barrier(3), []

    def encode() -> np.ndarray:
        if not failed:
            failed.append(True)
            raise RuntimeError("out of memory")
        return CODES

    def ask() -> np.ndarray | str:
        begin.wait()
        try:
            return store.get_or_encode(name(0), encode)
        except RuntimeError as error:
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        answers = [future.result() for future in [pool.submit(ask) for _ in range(3)]]
    assert sum(isinstance(answer, str) for answer in answers) == 1
    assert "out of memory" in [answer for answer in answers if isinstance(answer, str)]
    assert all(np.array_equal(answer, CODES) for answer in answers if not isinstance(answer, str))
    assert store.stats.misses == 2
    assert len(cache.entries()) == 1


def test_a_voice_may_be_several_arrays(tmp_path: Path) -> None:
    made = {"globals": np.arange(32), "embedding": np.ones(256, np.float32)}
    first = voices.KnownVoices(DiskVoices(ContentCache(tmp_path)), "encoder").get_or_encode(name(0), lambda: made)
    again = voices.KnownVoices(DiskVoices(ContentCache(tmp_path)), "encoder").get(name(0))
    for found in (first, again):
        assert found is not None
        assert {key: (array.dtype, array.shape) for key, array in found.items()} == {
            "globals": (np.int64, (32,)),
            "embedding": (np.float32, (256,)),
        }
        assert all(np.array_equal(found[key], made[key]) for key in made)


@pytest.mark.parametrize("codes", [np.zeros((2, 0), int), np.array(None), np.array(["a"]), np.array([True])])
def test_an_answer_that_is_no_numbers_is_refused_and_not_stored(tmp_path: Path, codes: np.ndarray) -> None:
    cache = ContentCache(tmp_path)
    store = KnownVoices(cache, "encoder")
    with pytest.raises(BadOutput, match="instead of arrays of numbers"):
        store.get_or_encode(name(0), lambda: codes)
    assert cache.entries() == []
    assert store.stats.voices == 0


def test_memory_is_bounded_and_the_least_recently_used_voice_goes_first(tmp_path: Path) -> None:
    store = KnownVoices(ContentCache(tmp_path), "encoder", max_bytes=3 * CODES.nbytes)
    for number in (0, 1, 2):
        store.get_or_encode(name(number), Encoder())
    store.get_or_encode(name(0), never)
    store.get_or_encode(name(3), Encoder())  # instead of 1
    assert (store.stats.voices, store.stats.bytes) == (3, 3 * CODES.nbytes)
    before = store.stats
    for number in (2, 0, 3):
        store.get_or_encode(name(number), never)
    assert (store.stats.memory, store.stats.stored) == (before.memory + 3, before.stored)
    store.get_or_encode(name(1), never)
    assert store.stats.stored == before.stored + 1
    assert store.stats.bytes == 3 * CODES.nbytes


def test_a_voice_larger_than_the_budget_is_served_from_disk(tmp_path: Path) -> None:
    store, encode = KnownVoices(ContentCache(tmp_path), "encoder", max_bytes=10), Encoder()
    for _ in range(2):
        assert np.array_equal(store.get_or_encode(name(0), encode), CODES)
    assert (encode.calls, store.stats.stored, store.stats.bytes) == (1, 1, 0)


def test_a_read_only_parent_is_asked_first(tmp_path: Path) -> None:
    KnownVoices(ContentCache(tmp_path / "shared"), "encoder").get_or_encode(name(0), Encoder())
    before = sorted((tmp_path / "shared").rglob("*"))
    store = KnownVoices(ContentCache(tmp_path / "own", parents=[tmp_path / "shared"]), "encoder")
    assert np.array_equal(store.get_or_encode(name(0), never), CODES)
    assert sorted((tmp_path / "shared").rglob("*")) == before


def test_a_cache_that_cannot_be_written_only_costs_an_encoding_per_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "file").write_text("not a directory")
    store, encode = KnownVoices(ContentCache(tmp_path / "file" / "cache"), "encoder"), Encoder()
    for _ in range(3):
        assert np.array_equal(store.get_or_encode(name(0), encode), CODES)
    assert encode.calls == 1
    assert list((tmp_path / "tmp").iterdir()) == []  # no temporary entry for each voice


@pytest.mark.parametrize("where", ["write", "sync", "rename"])
def test_a_full_disk_costs_nothing_but_the_voice_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    target = {"write": "pathlib.Path.write_bytes", "sync": "os.fsync", "rename": "os.rename"}[where]
    cache = ContentCache(tmp_path / "cache")
    store, encode = KnownVoices(cache, "encoder"), Encoder()
    with monkeypatch.context() as patch:
        patch.setattr(target, full)
        assert np.array_equal(store.get_or_encode(name(0), encode), CODES)
        assert np.array_equal(store.get_or_encode(name(0), never), CODES)
    assert encode.calls == 1
    assert cache.entries() == []


def test_processes_encode_a_voice_once_between_them(tmp_path: Path) -> None:
    code = (
        "import sys, time, numpy as np\n"
        "from accelerator.cache import ContentCache\n"
        "from accelerator.pipeline.voices import KnownVoices\n"
        "from accelerator.voices import DiskVoices\n"
        "def encode():\n"
        "    time.sleep(0.5)\n"
        "    print('encoded')\n"
        "    return {'codes': np.arange(20).reshape(2, 10)}\n"
        "voice = KnownVoices(DiskVoices(ContentCache(sys.argv[1])), 'encoder').get_or_encode(sys.argv[2], encode)\n"
        "print(voice['codes'].sum())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), name(0)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = sorted(process.communicate(timeout=60)[0] for process in running)
    assert answers == ["190\n", "190\n", "encoded\n190\n"]
