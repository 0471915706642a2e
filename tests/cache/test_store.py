"""The cache on a healthy disk: keys, hits, entries, notes, digests, eviction, parents."""

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
from hypothesis import given
from hypothesis import strategies as st

from accelerator.cache import ContentCache, default_root, make_key
from accelerator.cache import disk as disk_module
from accelerator.cache import store as store_module
from accelerator.errors import CacheError, CorruptEntry, InvalidOption
from tests import ROOT

KEY = make_key(component="slow", precision="int8")
MODEL = b"model" * 200
WEIGHTS = bytes(range(256)) * 16


def build(directory: Path) -> dict[str, object]:
    (directory / "model.onnx").write_bytes(MODEL)
    (directory / "data").mkdir()
    (directory / "data" / "weights.bin").write_bytes(WEIGHTS)
    return {"onnx": "1.17", "report": {"max_error": 1e-5}}


def never(directory: Path) -> None:
    raise AssertionError("built although it is cached")


def tree(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def age(*paths: Path) -> None:
    """Moves the cache's idea of freshness past: ctime cannot be set, so wait for it where a test needs it."""
    newest = max(os.stat(path).st_ctime for path in paths)
    time.sleep(max(0.0, newest + 0.06 - time.time()))


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def cache(tmp_path):
    return ContentCache(tmp_path / "cache")


@pytest.fixture
def forget():
    """Makes this process look like another one: nothing in use, nothing verified."""

    def forget_all() -> None:
        store_module._in_use.clear()
        store_module.digest._memo.clear()

    forget_all()
    yield forget_all
    forget_all()


class TestKeys:
    def test_value_is_the_sha256_of_canonical_json(self):
        expected = hashlib.sha256(b'{"a":1,"b":[true,null,"\\u00e4"]}').hexdigest()
        assert make_key(b=(True, None, "ä"), a=1) == expected

    def test_order_does_not_matter(self):
        assert make_key(a=1, b={"x": 1, "y": [2]}) == make_key(b={"y": [2], "x": 1}, a=1)

    def test_every_field_and_type_matters(self):
        keys = [
            make_key(weights="w", graph="g"),
            make_key(weights="v", graph="g"),
            make_key(weights="w", graph="h"),
            make_key(weights="w"),
            make_key(weights="w", graph="g", opset=21),
            make_key(weights="w", graph="g", opset=21.0),
            make_key(weights="w", graph="g", opset=True),
            make_key(weights="w", graph="g", opset="21"),
            make_key(weights="w", graph="g", opset=None),
            make_key(weights="g", graph="w"),
            make_key(weights="wg", graph=""),
        ]
        assert len(set(keys)) == len(keys)

    @pytest.mark.parametrize(
        "value", [float("nan"), float("inf"), b"bytes", {1, 2}, Path("x"), {1: "x"}, object(), [[b""]], 1j]
    )
    def test_refuses_what_json_cannot_say(self, value):
        with pytest.raises(InvalidOption, match="cannot be hashed"):
            make_key(field=value)

    def test_refuses_endless_nesting_and_nothing(self):
        endless: list[object] = []
        endless.append(endless)
        with pytest.raises(InvalidOption, match="nested deeper"):
            make_key(field=endless)
        with pytest.raises(InvalidOption, match="at least one field"):
            make_key()

    @given(
        st.dictionaries(
            st.text(min_size=1).filter(str.isidentifier),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.text()
                | st.floats(allow_nan=False, allow_infinity=False),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
                max_leaves=8,
            ),
            min_size=1,
            max_size=4,
        )
    )
    def test_survives_a_round_trip_through_json(self, fields):
        assert make_key(**dict(reversed(fields.items()))) == make_key(**json.loads(json.dumps(fields)))


class TestRoot:
    def test_environment_first(self, monkeypatch, tmp_path):
        monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path / "here"))
        assert default_root() == tmp_path / "here"
        assert ContentCache().root == tmp_path / "here"
        assert not (tmp_path / "here").exists()

    def test_home_and_relative_paths(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        monkeypatch.setenv("ACCELERATOR_CACHE", os.path.join("~", "models"))
        assert default_root() == tmp_path / "models"
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ACCELERATOR_CACHE", "relative")
        assert default_root() == Path.cwd() / "relative"

    def test_a_relative_path_stays_where_it_was_first_read(self, monkeypatch, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ACCELERATOR_CACHE", "read-once")
        before = default_root()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert default_root() == ContentCache().root == before == tmp_path / "read-once"

    def test_checkout_second(self, monkeypatch):
        monkeypatch.setenv("ACCELERATOR_CACHE", "")
        assert default_root() == ROOT / "onnx_cache"

    @pytest.mark.parametrize("project", ['[project]\nname = "other"\n', None])
    def test_user_cache_last(self, monkeypatch, tmp_path, project):
        monkeypatch.delenv("ACCELERATOR_CACHE", raising=False)
        monkeypatch.setattr("accelerator.cache.keys.__file__", str(tmp_path / "site" / "cache" / "keys.py"))
        monkeypatch.setattr("platformdirs.user_cache_path", lambda name, appauthor: tmp_path / "user" / name)
        (tmp_path / "onnx_cache").mkdir()
        if project is not None:
            (tmp_path / "pyproject.toml").write_text(project)
        assert default_root() == tmp_path / "user" / "accelerator-tts"


class TestGetOrCreate:
    def test_miss_then_hit(self, cache, forget):
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

    def test_manifest_says_what_there_is(self, cache):
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

    def test_leaves_only_the_entry(self, cache):
        cache.get_or_create(KEY, build, name="slow")
        assert [name for name in tree(cache.root) if name.startswith(("tmp/", "trash/", "quarantine"))] == []
        assert cache.verify() == []

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
    def test_other_users_may_read_what_the_umask_allows(self, cache):
        old = os.umask(0o022)
        try:
            entry = cache.get_or_create(KEY, build, name="slow")
        finally:
            os.umask(old)
        assert entry.path.stat().st_mode & 0o777 == 0o755
        assert (entry.path / "manifest.json").stat().st_mode & 0o777 == 0o644

    @pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(5, "disk")])
    def test_what_build_raises_is_passed_on_and_leaves_nothing(self, cache, error):
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
    def test_metadata_must_be_json(self, cache, meta):
        with pytest.raises(InvalidOption):
            cache.get_or_create(KEY, lambda directory: build(directory) and meta, name="slow")
        assert cache.get(KEY) is None

    def test_metadata_may_be_missing_but_not_huge(self, cache):
        assert cache.get_or_create(KEY, lambda directory: build(directory) and None, name="slow").meta == {}
        with pytest.raises(CacheError, match="more than 1048576 bytes"):
            cache.get_or_create(make_key(b=1), lambda d: build(d) and {"a": "x" * (1 << 20)}, name="slow")

    @pytest.mark.parametrize("kind", ["nothing", "symlink", "linked directory", "hard link", "manifest", "bad name"])
    def test_refuses_what_cannot_be_an_entry(self, cache, tmp_path, kind):
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
    def test_refuses_other_keys(self, cache, key):
        for call in (
            lambda: cache.get(key),
            lambda: cache.get_or_create(key, never, name="x"),
            lambda: cache.read_note(key, "n"),
            lambda: cache.write_note(key, "n", {}),
        ):
            with pytest.raises(InvalidOption, match="make_key"):
                call()

    def test_refuses_other_options(self, cache, tmp_path):
        with pytest.raises(InvalidOption, match="full"):
            cache.get(KEY, verify="none")
        with pytest.raises(InvalidOption, match="name"):
            cache.get_or_create(KEY, never, name="")
        with pytest.raises(InvalidOption, match="max_bytes"):
            ContentCache(tmp_path, max_bytes=-1)
        with pytest.raises(InvalidOption, match="lock_timeout"):
            ContentCache(tmp_path, lock_timeout=-1)

    def test_unknown_file_is_named(self, cache):
        entry = cache.get_or_create(KEY, build, name="slow")
        for name in ("nope", "../x", "manifest.json", "data", ""):
            with pytest.raises(CacheError, match=r"model\.onnx"):
                entry.file(name)

    def test_publishing_is_files_then_rename_then_parent(self, cache, monkeypatch):
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


class TestVerification:
    def count_hashing(self, monkeypatch) -> list[str]:
        read: list[str] = []
        real = store_module.digest.sha256_file

        def counting(path):
            read.append(Path(path).name)
            return real(path)

        monkeypatch.setattr(store_module.digest, "sha256_file", counting)
        return read

    def test_sha256_once_per_process_and_file_state(self, cache, monkeypatch, forget):
        monkeypatch.setattr(store_module.digest, "SETTLED_S", 0.05)
        entry = cache.get_or_create(KEY, build, name="slow")
        age(*(entry.file(name) for name in entry.files))
        forget()
        read = self.count_hashing(monkeypatch)
        assert cache.get(KEY) is not None
        assert sorted(read) == ["model.onnx", "weights.bin"]
        assert cache.get(KEY) is not None
        assert ContentCache(cache.root).get(KEY) is not None
        assert len(read) == 2
        os.utime(entry.file("model.onnx"))
        assert cache.get(KEY) is not None
        assert read[2:] == ["model.onnx"]

    def test_fresh_files_are_not_trusted_by_their_times(self, cache, monkeypatch, forget):
        entry = cache.get_or_create(KEY, build, name="slow")
        assert cache.get(KEY) is not None
        path = entry.file("model.onnx")
        status = path.stat()
        path.write_bytes(MODEL[:-1] + b"X")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert cache.get(KEY) is None

    def test_fresh_digests_are_not_memoised(self, tmp_path, monkeypatch, forget):
        digest = store_module.digest
        (tmp_path / "f").write_bytes(b"x")
        value, status = digest.sha256_file(tmp_path / "f")
        assert digest.lookup(tmp_path / "f", status) is None
        monkeypatch.setattr(digest.time, "time", lambda: status.st_ctime + 2.1)
        assert digest.sha256_file(tmp_path / "f")[0] == value == hashlib.sha256(b"x").hexdigest()
        assert digest.lookup(tmp_path / "f", status) == value

    def test_background_lets_the_caller_go_on(self, cache, monkeypatch, forget):
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

    def test_background_finds_the_flipped_bit(self, cache, forget):
        entry = cache.get_or_create(KEY, build, name="slow")
        entry.file("model.onnx").write_bytes(MODEL[:-1] + b"X")
        forget()
        doubtful = cache.get_or_create(KEY, never, name="slow", verify="background")
        with pytest.raises(CorruptEntry, match=r"model\.onnx.*other contents"):
            doubtful.verified()
        assert not doubtful.path.exists()
        assert cache.get_or_create(KEY, build, name="slow", verify="background").verified().created

    def test_background_checks_sizes_at_once(self, cache, forget):
        entry = cache.get_or_create(KEY, build, name="slow")
        entry.file("model.onnx").write_bytes(MODEL[:-1])
        assert cache.get(KEY, verify="background") is None

    def test_large_files_are_hashed_side_by_side(self, cache, forget):
        names = [f"{i}.bin" for i in range(3)]

        def large(directory: Path) -> None:
            for i, name in enumerate(names):
                (directory / name).write_bytes(bytes([i]) * (3 << 20))

        entry = cache.get_or_create(KEY, large, name="large")
        forget()
        assert cache.get(KEY) is not None
        expected = [hashlib.sha256(bytes([i]) * (3 << 20)).hexdigest() for i in range(3)]
        assert [file["sha256"] for file in entry.manifest["files"]] == expected


class TestNotes:
    def test_round_trip_and_replacement(self, cache):
        assert cache.read_note(KEY, "tuning") is None
        assert cache.write_note(KEY, "tuning", {"threads": 4, "spin": False})
        assert cache.read_note(KEY, "tuning") == {"threads": 4, "spin": False}
        assert cache.write_note(KEY, "tuning", {"threads": 2})
        assert ContentCache(cache.root).read_note(KEY, "tuning") == {"threads": 2}
        assert cache.read_note(KEY, "other") is None
        assert cache.read_note(make_key(x=1), "tuning") is None

    def test_the_first_of_several_stays(self, cache):
        barrier, written = threading.Barrier(8), []

        def write(number):
            barrier.wait(10)
            if ContentCache(cache.root).write_note(KEY, "first", {"number": number}, replace=False):
                written.append(number)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert [cache.read_note(KEY, "first")] == [{"number": number} for number in written]
        assert not cache.write_note(KEY, "first", {"number": 99}, replace=False)
        assert cache.write_note(KEY, "first", {"number": 99})
        assert cache.read_note(KEY, "first") == {"number": 99}
        assert list((cache.root / "tmp").iterdir()) == []

    def test_the_first_of_several_stays_without_links(self, cache, monkeypatch):
        def refuse(*_):
            raise PermissionError("no links here")

        monkeypatch.setattr(os, "link", refuse)
        assert cache.write_note(KEY, "first", {"number": 1}, replace=False)
        assert not cache.write_note(KEY, "first", {"number": 2}, replace=False)
        assert cache.read_note(KEY, "first") == {"number": 1}

    def test_listed_by_name_whatever_their_key(self, cache, tmp_path):
        parent = ContentCache(tmp_path / "parent")
        parent.write_note(KEY, "tuning-a", {"from": "parent"})
        parent.write_note(make_key(x=1), "tuning-a", {"from": "parent, alone"})
        layered = ContentCache(cache.root, parents=[parent.root])
        layered.write_note(KEY, "tuning-a", {"from": "here"})
        layered.write_note(KEY, "rejected", {"from": "elsewhere"})
        found = sorted(note["from"] for note in layered.notes("tuning-*"))
        assert found == ["here", "parent, alone"]

    def test_notes_do_not_touch_the_entry(self, cache):
        entry = cache.get_or_create(KEY, build, name="slow")
        before = tree(entry.path)
        assert cache.write_note(KEY, "cpu-1.2", {"a": 1})
        assert tree(entry.path) == before
        assert cache.verify() == []

    @pytest.mark.parametrize("note", ["", "../x", "a/b", ".hidden", "a\0b", "x" * 101, "C:x"])
    def test_refuses_other_names(self, cache, note):
        with pytest.raises(InvalidOption, match="name for a note"):
            cache.write_note(KEY, note, {})
        with pytest.raises(InvalidOption, match="name for a note"):
            cache.read_note(KEY, note)

    @pytest.mark.parametrize("data", [{"a": b"x"}, {"a": float("inf")}, [1], {"a": "x" * (1 << 20)}])
    def test_refuses_other_data(self, cache, data):
        with pytest.raises(InvalidOption):
            cache.write_note(KEY, "n", data)

    @pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b'{"a":NaN}', b'{"a":1,"a":2}', b"[" * 100_000])
    def test_a_damaged_note_is_none(self, cache, text):
        cache.write_note(KEY, "n", {"a": 1})
        (cache.root / "notes" / KEY / "n.json").write_bytes(text)
        assert cache.read_note(KEY, "n") is None


class TestFileDigest:
    @pytest.fixture
    def weights(self, tmp_path):
        path = tmp_path / "weights.bin"
        path.write_bytes(b"0" * 3_000_000)
        return path

    def test_value(self, cache, weights):
        assert cache.file_digest(weights) == hashlib.sha256(b"0" * 3_000_000).hexdigest()
        assert cache.file_digest(str(weights)) == cache.file_digest(weights)

    def test_remembered_across_processes_until_the_file_changes(self, cache, weights, monkeypatch, forget):
        monkeypatch.setattr(store_module.digest, "SETTLED_S", 0.05)
        age(weights)
        before = cache.file_digest(weights)
        forget()
        with monkeypatch.context() as patch:
            patch.setattr(store_module.digest, "sha256_file", never)
            assert ContentCache(cache.root).file_digest(weights) == before
            assert cache.file_digest(weights) == before
        status = weights.stat()
        weights.write_bytes(b"1" * 3_000_000)
        os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
        age(weights)
        after = hashlib.sha256(b"1" * 3_000_000).hexdigest()
        assert cache.file_digest(weights) == after
        forget()
        assert cache.file_digest(weights) == after

    def test_a_fresh_file_is_not_remembered(self, cache, weights, forget):
        cache.file_digest(weights)
        assert not (cache.root / "digests").exists()

    @pytest.mark.parametrize("text", [b"", b"{}", b'{"sha256":"short"}', b"[1]", b"\x00"])
    def test_a_damaged_memory_is_ignored(self, cache, weights, monkeypatch, forget, text):
        monkeypatch.setattr(store_module.digest, "SETTLED_S", 0.05)
        age(weights)
        value = cache.file_digest(weights)
        (memo,) = (cache.root / "digests").iterdir()
        memo.write_bytes(text)
        forget()
        assert cache.file_digest(weights) == value

    def test_follows_symlinks_and_reports_missing_files(self, cache, weights, tmp_path):
        (tmp_path / "link").symlink_to(weights)
        assert cache.file_digest(tmp_path / "link") == cache.file_digest(weights)
        with pytest.raises(FileNotFoundError):
            cache.file_digest(tmp_path / "missing")
        with pytest.raises(OSError):
            cache.file_digest(tmp_path)


class TestEviction:
    def fill(self, cache: ContentCache, clock: Clock, names: str, size: int = 1000) -> dict[str, str]:
        keys = {}
        for name in names:
            keys[name] = make_key(name=name)
            cache.get_or_create(
                keys[name], lambda d, name=name: (d / "f").write_bytes(name.encode() * size) and {}, name=name
            )
            clock.now += 1000
        return keys

    def test_least_recently_used_goes_first(self, tmp_path, forget):
        clock = Clock()
        cache = ContentCache(tmp_path, clock=clock)
        keys = self.fill(cache, clock, "abc")
        assert cache.get(keys["a"]) is not None
        clock.now += 1000
        forget()
        assert [info.name for info in cache.entries()] == ["b", "c", "a"]
        assert cache.entries()[2].last_used == clock.now - 1000
        one = cache.entries()[0].bytes
        assert cache.size() == 3 * one
        assert [info.name for info in cache.prune(3 * one)] == []
        assert [info.name for info in cache.prune(2 * one)] == ["b"]
        assert [info.name for info in cache.prune(one - 1)] == ["c", "a"]
        assert cache.size() == 0
        assert cache.get(keys["a"]) is None

    def test_used_by_this_process_or_just_now_stays(self, tmp_path, forget):
        clock = Clock()
        cache = ContentCache(tmp_path, clock=clock)
        self.fill(cache, clock, "ab")
        assert cache.prune(0) == []
        forget()
        clock.now -= 800  # b: 200 s ago
        assert [info.name for info in cache.prune(0)] == ["a"]
        assert [info.name for info in cache.prune(0, force=True)] == ["b"]

    def test_bound_holds_after_each_publication(self, tmp_path, forget):
        clock = Clock()
        cache = ContentCache(tmp_path, clock=clock, max_bytes=4000)
        for name in "abcdef":
            self.fill(cache, clock, name)
            forget()
            assert cache.size() <= 4000
        assert [info.name for info in cache.entries()] == ["e", "f"]

    def test_touching_is_throttled(self, tmp_path):
        clock = Clock()
        cache = ContentCache(tmp_path, clock=clock)
        cache.get_or_create(KEY, build, name="slow")
        start = clock.now
        clock.now += 59
        cache.get(KEY)
        assert cache.entries()[0].last_used == start
        clock.now += 2
        cache.get(KEY)
        assert cache.entries()[0].last_used == clock.now

    def test_notes_go_with_their_entry_and_corrupt_ones_count(self, tmp_path, forget):
        clock = Clock()
        cache = ContentCache(tmp_path, clock=clock)
        keys = self.fill(cache, clock, "ab")
        cache.write_note(keys["a"], "n", {"x": 1})
        (cache.root / "v1" / keys["a"][:2] / keys["a"] / "manifest.json").write_bytes(b"")
        forget()
        assert [info.name for info in cache.entries()] == ["b"]
        assert [info.key for info in cache.prune(1500)] == [keys["a"]]
        assert cache.read_note(keys["a"], "n") is None

    def test_quarantine_is_freed_first(self, tmp_path, forget):
        clock = Clock()
        cache = ContentCache(tmp_path, clock=clock)
        keys = self.fill(cache, clock, "ab")
        (cache.root / "v1" / keys["a"][:2] / keys["a"] / "f").write_bytes(b"?" * 1000)
        assert cache.get(keys["a"]) is None
        forget()
        assert cache.size() > 2000
        assert cache.prune(2000) == []
        assert [info.name for info in cache.entries()] == ["b"]
        assert cache.size() < 2000

    def test_quarantine_is_bounded(self, cache):
        for _ in range(5):
            entry = cache.get_or_create(KEY, build, name="slow")
            entry.file("model.onnx").write_bytes(b"?" * len(MODEL))
        assert cache.get(KEY) is None
        cache.prune(1 << 30)
        assert len(list((cache.root / "quarantine").iterdir())) == 2

    def test_clear(self, cache, tmp_path):
        cache.get_or_create(KEY, build, name="slow")
        cache.write_note(KEY, "n", {"x": 1})
        (cache.root / "README.md").write_text("kept")
        cache.clear()
        assert cache.entries() == []
        assert cache.get(KEY) is None
        assert cache.read_note(KEY, "n") is None
        assert [path.name for path in cache.root.rglob("*") if path.is_file() and path.suffix != ".lock"] == [
            "README.md"
        ]
        assert cache.get_or_create(KEY, build, name="slow").created

    def test_looking_at_no_cache_makes_none(self, tmp_path):
        cache = ContentCache(tmp_path / "absent")
        assert (cache.get(KEY), cache.entries(), cache.verify(), cache.size()) == (None, [], [], 0)
        assert cache.prune(0) == []
        assert cache.read_note(KEY, "n") is None
        assert not (tmp_path / "absent").exists()


class TestSweeping:
    def test_of_dead_processes_and_old_ones_only(self, cache, monkeypatch):
        dead = subprocess.Popen([sys.executable, "-S", "-c", ""])
        dead.wait()
        tmp = cache.root / "tmp"
        machine = disk_module._machine()
        token = "0" * 16
        names = {
            "dead": f"{machine}-{dead.pid}-{token}",
            "alive": f"{machine}-{os.getpid()}-{token}",
            "elsewhere, new": f"{'a' * 12}-{dead.pid}-{token}",
            "elsewhere, old": f"{'b' * 12}-{dead.pid}-{token}",
            "not ours": "something",
        }
        for name in names.values():
            (tmp / name).mkdir(parents=True)
            (tmp / name / "file").write_bytes(b"x")
        old = time.time() - 2 * 86400
        for what in ("elsewhere, old", "not ours"):
            for path in (tmp / names[what] / "file", tmp / names[what]):
                os.utime(path, (old, old))
        cache.get_or_create(KEY, build, name="slow")
        left = {what for what, name in names.items() if (tmp / name).exists()}
        assert left == {"alive", "elsewhere, new", "not ours"}


class TestParents:
    @pytest.fixture
    def parent(self, tmp_path):
        parent = ContentCache(tmp_path / "parent")
        parent.get_or_create(KEY, build, name="slow")
        parent.write_note(KEY, "tuning", {"threads": 4})
        return parent

    def test_hit_without_a_trace(self, parent, tmp_path, forget):
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

    def test_primary_comes_first(self, parent, tmp_path):
        primary = ContentCache(tmp_path / "cache")
        primary.get_or_create(KEY, build, name="slow")
        entry = ContentCache(tmp_path / "cache", parents=[parent.root]).get(KEY)
        assert entry is not None
        assert entry.layer == "primary"

    def test_a_corrupt_parent_is_a_miss_and_stays_as_it_is(self, parent, tmp_path, forget, caplog):
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


class TestThreads:
    def test_one_build_for_many_threads(self, cache):
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

    def test_a_hung_holder_blocks_nobody_for_ever(self, tmp_path):
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
