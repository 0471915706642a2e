"""The cache on a healthy disk: misses, hits, verification, parents, threads."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from accelerator.cache import ContentCache, make_key
from accelerator.cache import store as store_module
from accelerator.errors import CacheError, CorruptEntry, InvalidOption
from tests import ROOT
from tests.cache.entries import KEY, MODEL, WEIGHTS, age, build, never, tree


def test_miss_then_hit(cache, forget):
    assert cache.get(KEY) is None
    built = cache.get_or_create(KEY, build, name="slow", fields={"precision": "int8"})
    assert (built.created, built.ephemeral, built.layer, built.name, built.key) == (
        True,
        False,
        "primary",
        "slow",
        KEY,
    )
    assert built.meta == {"onnx": "1.17", "report": {"max_error": 1e-5}}
    assert built.files == ("model.onnx", "data/weights.bin")
    forget()
    again = ContentCache(cache.root).get_or_create(KEY, never, name="slow")
    assert (again.created, again.path, again.manifest) == (False, built.path, built.manifest)
    assert again.file("model.onnx").read_bytes() == MODEL
    assert again.file("data/weights.bin").read_bytes() == WEIGHTS
    assert again.verified() is again


def test_manifest_says_what_there_is(cache):
    entry = cache.get_or_create(KEY, build, name="slow", fields={"precision": "int8"})
    manifest = json.loads((entry.path / "manifest.json").read_text())
    assert manifest == entry.manifest
    assert manifest["schema"] == 1
    assert manifest["key"] == KEY
    assert manifest["fields"] == {"precision": "int8"}
    assert manifest["files"] == [
        {"path": "model.onnx", "size": len(MODEL), "sha256": hashlib.sha256(MODEL).hexdigest()},
        {"path": "data/weights.bin", "size": len(WEIGHTS), "sha256": hashlib.sha256(WEIGHTS).hexdigest()},
    ]
    assert abs(manifest["created_at"] - time.time()) < 60


def test_leaves_only_the_entry(cache):
    cache.get_or_create(KEY, build, name="slow")
    assert [name for name in tree(cache.root) if name.startswith(("tmp/", "trash/", "quarantine"))] == []
    assert cache.verify() == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_other_users_may_read_what_the_umask_allows(cache):
    old = os.umask(0o022)
    try:
        entry = cache.get_or_create(KEY, build, name="slow")
    finally:
        os.umask(old)
    assert entry.path.stat().st_mode & 0o777 == 0o755
    assert (entry.path / "manifest.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(5, "disk")])
def test_what_build_raises_is_passed_on_and_leaves_nothing(cache, error):
    def failing(directory: Path) -> None:
        build(directory)
        raise error

    with pytest.raises(type(error)) as caught:
        cache.get_or_create(KEY, failing, name="slow")
    assert caught.value is error
    assert cache.get(KEY) is None
    assert cache.entries() == []
    assert [name for name in tree(cache.root) if name.startswith(("tmp/", "v1"))] == []
    assert cache.get_or_create(KEY, build, name="slow").created


@pytest.mark.parametrize("meta", [{"a": float("nan")}, {"a": b"x"}, ["no mapping"], {"a": Path("x")}])
def test_metadata_must_be_json(cache, meta):
    with pytest.raises(InvalidOption):
        cache.get_or_create(KEY, lambda directory: build(directory) and meta, name="slow")
    assert cache.get(KEY) is None


def test_metadata_may_be_missing_but_not_huge(cache):
    assert cache.get_or_create(KEY, lambda directory: build(directory) and None, name="slow").meta == {}
    with pytest.raises(CacheError, match="more than 1048576 bytes"):
        cache.get_or_create(make_key(b=1), lambda d: build(d) and {"a": "x" * (1 << 20)}, name="slow")


@pytest.mark.parametrize("kind", ["nothing", "symlink", "linked directory", "hard link", "manifest", "bad name"])
def test_refuses_what_cannot_be_an_entry(cache, tmp_path, kind):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"x")

    def odd(directory: Path) -> None:
        if kind != "nothing":
            build(directory)
        if kind == "symlink":
            (directory / "link").symlink_to(tmp_path / "outside" / "file")
        elif kind == "linked directory":
            (directory / "link").symlink_to(tmp_path / "outside")
        elif kind == "hard link":
            os.link(tmp_path / "outside" / "file", directory / "link")
        elif kind == "manifest":
            (directory / "manifest.json").write_text("{}")
        elif kind == "bad name":
            (directory / "a:b").write_text("x")

    with pytest.raises(CacheError, match=r"wrote no files|cannot be cached"):
        cache.get_or_create(KEY, odd, name="slow")
    assert cache.get(KEY) is None
    assert (tmp_path / "outside" / "file").read_bytes() == b"x"


@pytest.mark.parametrize("key", ["", "abc", "../" + "a" * 61, "A" * 64, "a" * 65, "a" * 63 + "\n", None, 5])
def test_refuses_other_keys(cache, key):
    for call in (
        lambda: cache.get(key),
        lambda: cache.get_or_create(key, never, name="x"),
        lambda: cache.read_note(key, "n"),
        lambda: cache.write_note(key, "n", {}),
    ):
        with pytest.raises(InvalidOption, match="make_key"):
            call()


def test_refuses_other_options(cache, tmp_path):
    with pytest.raises(InvalidOption, match="full"):
        cache.get(KEY, verify="none")
    with pytest.raises(InvalidOption, match="name"):
        cache.get_or_create(KEY, never, name="")
    with pytest.raises(InvalidOption, match="max_bytes"):
        ContentCache(tmp_path, max_bytes=-1)
    with pytest.raises(InvalidOption, match="lock_timeout"):
        ContentCache(tmp_path, lock_timeout=-1)


def test_unknown_file_is_named(cache):
    entry = cache.get_or_create(KEY, build, name="slow")
    for name in ("nope", "../x", "manifest.json", "data", ""):
        with pytest.raises(CacheError, match=r"model\.onnx"):
            entry.file(name)


def test_publishing_is_files_then_rename_then_parent(cache, monkeypatch):
    calls: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(descriptor: int) -> None:
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def record_rename(source: object, target: object) -> None:
        calls.append(("rename", Path(str(target)).name))
        rename(source, target)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to name descriptors")
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    cache.get_or_create(KEY, build, name="slow")
    published = calls.index(("rename", KEY))
    before = {name for kind, name in calls[:published] if kind == "fsync"}
    assert {"weights.bin", "model.onnx", "manifest.json", "data"} <= before
    assert calls[published + 1] == ("fsync", KEY[:2])


def count_hashing(monkeypatch) -> list[str]:
    read: list[str] = []
    real = store_module.digest.sha256_file

    def counting(path):
        read.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(store_module.digest, "sha256_file", counting)
    return read


def test_sha256_once_per_process_and_file_state(cache, monkeypatch, forget):
    monkeypatch.setattr(store_module.digest, "SETTLED_S", 0.05)
    entry = cache.get_or_create(KEY, build, name="slow")
    age(*(entry.file(name) for name in entry.files))
    forget()
    read = count_hashing(monkeypatch)
    assert cache.get(KEY) is not None
    assert sorted(read) == ["model.onnx", "weights.bin"]
    assert cache.get(KEY) is not None
    assert ContentCache(cache.root).get(KEY) is not None
    assert len(read) == 2
    os.utime(entry.file("model.onnx"))
    assert cache.get(KEY) is not None
    assert read[2:] == ["model.onnx"]


def test_fresh_files_are_not_trusted_by_their_times(cache, monkeypatch, forget):
    entry = cache.get_or_create(KEY, build, name="slow")
    assert cache.get(KEY) is not None
    path = entry.file("model.onnx")
    status = path.stat()
    path.write_bytes(MODEL[:-1] + b"X")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cache.get(KEY) is None


def test_fresh_digests_are_not_memoised(tmp_path, monkeypatch, forget):
    digest = store_module.digest
    (tmp_path / "f").write_bytes(b"x")
    value, status = digest.sha256_file(tmp_path / "f")
    assert digest.lookup(tmp_path / "f", status) is None
    monkeypatch.setattr(digest.time, "time", lambda: status.st_ctime + 2.1)
    assert digest.sha256_file(tmp_path / "f")[0] == value == hashlib.sha256(b"x").hexdigest()
    assert digest.lookup(tmp_path / "f", status) == value


def test_background_lets_the_caller_go_on(cache, monkeypatch, forget):
    cache.get_or_create(KEY, build, name="slow")
    forget()
    gate = threading.Event()
    real = store_module.digest.sha256_file
    monkeypatch.setattr(store_module.digest, "sha256_file", lambda path: gate.wait(30) and real(path))
    entry = cache.get(KEY, verify="background")
    assert entry is not None
    assert entry.file("model.onnx").read_bytes() == MODEL
    gate.set()
    assert entry.verified() is entry
    assert entry.verified() is entry


def test_background_finds_the_flipped_bit(cache, forget):
    entry = cache.get_or_create(KEY, build, name="slow")
    entry.file("model.onnx").write_bytes(MODEL[:-1] + b"X")
    forget()
    doubtful = cache.get_or_create(KEY, never, name="slow", verify="background")
    with pytest.raises(CorruptEntry, match=r"model\.onnx.*other contents"):
        doubtful.verified()
    assert not doubtful.path.exists()
    assert cache.get_or_create(KEY, build, name="slow", verify="background").verified().created


def test_background_checks_sizes_at_once(cache, forget):
    entry = cache.get_or_create(KEY, build, name="slow")
    entry.file("model.onnx").write_bytes(MODEL[:-1])
    assert cache.get(KEY, verify="background") is None


def test_large_files_are_hashed_side_by_side(cache, forget):
    names = [f"{i}.bin" for i in range(3)]

    def large(directory: Path) -> None:
        for i, name in enumerate(names):
            (directory / name).write_bytes(bytes([i]) * (3 << 20))

    entry = cache.get_or_create(KEY, large, name="large")
    forget()
    assert cache.get(KEY) is not None
    expected = [hashlib.sha256(bytes([i]) * (3 << 20)).hexdigest() for i in range(3)]
    assert [file["sha256"] for file in entry.manifest["files"]] == expected


@pytest.fixture
def parent(tmp_path):
    parent = ContentCache(tmp_path / "parent")
    parent.get_or_create(KEY, build, name="slow")
    parent.write_note(KEY, "tuning", {"threads": 4})
    return parent


def test_hit_without_a_trace(parent, tmp_path, forget):
    before = tree(parent.root)
    used = (parent.root / "used" / KEY).stat().st_mtime_ns
    cache = ContentCache(tmp_path / "cache", parents=[parent.root], max_bytes=0, clock=lambda: time.time() + 1e6)
    entry = cache.get_or_create(KEY, never, name="slow")
    assert (entry.layer, entry.created, entry.ephemeral) == ("parent", False, False)
    assert entry.file("model.onnx").read_bytes() == MODEL
    assert [(info.key, info.layer) for info in cache.entries()] == [(KEY, "parent")]
    assert cache.verify() == []
    assert cache.prune(0, force=True) == []
    cache.clear()
    assert cache.read_note(KEY, "tuning") == {"threads": 4}
    assert cache.write_note(KEY, "tuning", {"threads": 1})
    assert cache.read_note(KEY, "tuning") == {"threads": 1}
    assert tree(parent.root) == before
    assert (parent.root / "used" / KEY).stat().st_mtime_ns == used


def test_primary_comes_first(parent, tmp_path):
    primary = ContentCache(tmp_path / "cache")
    primary.get_or_create(KEY, build, name="slow")
    entry = ContentCache(tmp_path / "cache", parents=[parent.root]).get(KEY)
    assert entry is not None
    assert entry.layer == "primary"


def test_a_corrupt_parent_is_a_miss_and_stays_as_it_is(parent, tmp_path, forget, caplog):
    path = parent.root / "v1" / KEY[:2] / KEY / "model.onnx"
    path.write_bytes(MODEL[:-1] + b"X")
    before = tree(parent.root)
    cache = ContentCache(tmp_path / "cache", parents=[tmp_path / "absent", parent.root])
    with caplog.at_level(logging.WARNING):
        assert cache.get(KEY) is None
    assert "is not used" in caplog.text
    assert [problem.layer for problem in cache.verify()] == ["parent"]
    assert cache.get_or_create(KEY, build, name="slow").layer == "primary"
    assert tree(parent.root) == before


def test_one_build_for_many_threads(cache):
    builds = []
    entries = []

    def slow_build(directory: Path) -> dict[str, object]:
        builds.append(1)
        time.sleep(0.05)
        return build(directory)

    threads = [
        threading.Thread(target=lambda: entries.append(cache.get_or_create(KEY, slow_build, name="slow")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert sorted(entry.created for entry in entries) == [False] * 7 + [True]
    assert {entry.path for entry in entries} == {entries[0].path}


def test_a_hung_holder_blocks_nobody_for_ever(tmp_path):
    cache = ContentCache(tmp_path, lock_timeout=0.2)
    hung, release = threading.Event(), threading.Event()

    def hang(directory: Path) -> dict[str, object]:
        hung.set()
        release.wait(30)
        return build(directory)

    results = []
    holder = threading.Thread(target=lambda: results.append(cache.get_or_create(KEY, hang, name="slow")))
    holder.start()
    hung.wait(30)
    mine = cache.get_or_create(KEY, build, name="slow")
    other = ContentCache(tmp_path, lock_timeout=0.2).get_or_create(KEY, never, name="slow")
    release.set()
    holder.join()
    assert mine.created
    assert not other.created
    assert not results[0].created  # the loser of the race takes the winner's entry
    assert results[0].path == mine.path
    assert tree(tmp_path / "tmp") == []


def test_importing_is_light():
    code = (
        "import sys, accelerator.cache; "
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'numpy', 'filelock', 'platformdirs') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
