"""The cache on a bad day: killed writers, writers at once, and damaged entries."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from accelerator.cache import ContentCache
from accelerator.cache import store as store_module
from accelerator.errors import CacheError, CorruptEntry
from tests.cache.entries import BUILDER, KEY, MODEL, WEIGHTS, build, flip, needs_posix, script


@needs_posix
def test_kill_at_random_moments_fifty_times(tmp_path):
    printed = script(
        BUILDER
        + """
    random.seed(7)
    whole = 1.0
    for number in range(3):
        started = time.perf_counter()
        _, child = killed(f"measure {number}", lambda: None)
        os.waitpid(child, 0)
        whole = min(whole, time.perf_counter() - started)
    interrupted = 0
    for number in range(50):
        key, child = killed(number, lambda: None)
        time.sleep(random.uniform(0, whole))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        interrupted += os.WIFSIGNALED(status)
        survived += check(key)
    assert interrupted >= 5, interrupted
    assert ContentCache(root).verify() == []
    assert len(ContentCache(root).entries()) == 53
    print("tmp", list((Path(root) / "tmp").iterdir()))
    """,
        tmp_path,
        "random",
    )
    assert printed == "tmp []\n"


@needs_posix
def test_kill_at_every_step(tmp_path):
    printed = script(
        BUILDER
        + """
    import accelerator.cache.store

    def kill_at(step):
        left = [step]
        def wrap(call):
            def counted(*arguments, **options):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return call(*arguments, **options)
            return counted
        for name in ("fsync", "rename", "mkdir", "open", "utime"):
            setattr(os, name, wrap(getattr(os, name)))

    outcomes = []
    for step in range(200):
        key, child = killed(f"step {step}", lambda: kill_at(step))
        _, status = os.waitpid(child, 0)
        outcomes.append((os.WIFSIGNALED(status), check(key)))
        if not outcomes[-1][0]:
            break
    assert not outcomes[-1][0]
    assert outcomes[-1][1]
    assert [visible for _, visible in outcomes] == sorted(visible for _, visible in outcomes)
    print(sum(killed for killed, _ in outcomes) > 15, sum(visible for _, visible in outcomes) > 1)
    """,
        tmp_path,
        "steps",
    )
    assert printed == "True True\n"


@needs_posix
@pytest.mark.parametrize("locked", [True, False])
def test_sixteen_processes_build_one_key(tmp_path, locked):
    printed = script(
        BUILDER
        + """
    import contextlib
    if mode == "unlocked":
        ContentCache.single_flight = lambda self, key, **_: contextlib.nullcontext()
    key = make_key(number="one")
    barrier, go = os.pipe()
    children = []
    for _ in range(16):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(barrier, 1)  # returns when the parent lets go: all start together
            entry = ContentCache(root).get_or_create(key, build, name="slow")
            good = {n: entry.file(n).read_bytes() for n in entry.files} == parts and not entry.ephemeral
            os.write(write, bytes([good, entry.created]))
            os._exit(0)
        os.close(write)
        children.append((child, read))
    os.close(go)
    answers = []
    for child, read in children:
        answers.append(tuple(os.read(read, 2)))
        assert os.waitpid(child, 0)[1] == 0
    cache = ContentCache(root)
    assert cache.verify() == []
    print([good for good, _ in answers] == [1] * 16, sum(created for _, created in answers), len(cache.entries()),
          list((Path(root) / "tmp").iterdir()), list((Path(root) / "quarantine").glob("*")))
    """,
        tmp_path,
        "locked" if locked else "unlocked",
    )
    assert printed == "True 1 1 [] []\n"


def test_locks_that_fail_are_ignored(cache, monkeypatch):
    class Broken:
        def __init__(self, *_: object) -> None:
            raise NotImplementedError("no locks on this file system")

    monkeypatch.setattr("filelock.FileLock", Broken)
    assert cache.get_or_create(KEY, build, name="slow").created


def test_a_corrupt_entry_in_the_way_is_replaced(cache, entry, monkeypatch):
    """What appears between looking and publishing is examined, not trusted."""

    def build_beside_a_wreck(directory: Path) -> dict[str, object]:
        entry.path.mkdir(parents=True)
        (entry.path / "half").write_bytes(b"half")
        return build(directory)

    shutil.rmtree(entry.path)
    again = cache.get_or_create(KEY, build_beside_a_wreck, name="slow")
    assert again.created
    assert not (again.path / "half").exists()
    assert cache.verify() == []


def test_a_replaced_entry_is_not_mistaken_for_the_corrupt_one(cache, entry, monkeypatch):
    """Between judging an entry and setting it aside another process may have replaced it; that one is given back."""
    entry.file("model.onnx").write_bytes(b"?" * len(MODEL))
    move_away = ContentCache._move_away

    def replaced_meanwhile(self, path, to, seen):
        good = path.with_name("good")
        shutil.rmtree(path)
        good.mkdir()
        build(good)
        good.rename(path)
        return move_away(self, path, to, seen)

    monkeypatch.setattr(ContentCache, "_move_away", replaced_meanwhile)
    assert cache.get(KEY) is None
    assert (entry.path / "model.onnx").read_bytes() == MODEL
    assert list((cache.root / "quarantine").iterdir()) == []


DAMAGE: dict[str, Callable[[Path], object]] = {
    "one bit": lambda entry: flip(entry / "model.onnx"),
    "one bit in a folder": lambda entry: flip(entry / "data" / "weights.bin", 0),
    "truncated": lambda entry: os.truncate(entry / "model.onnx", 10),
    "emptied": lambda entry: (entry / "model.onnx").write_bytes(b""),
    "longer": lambda entry: (entry / "model.onnx").write_bytes(MODEL + b"x"),
    "deleted": lambda entry: (entry / "model.onnx").unlink(),
    "folder deleted": lambda entry: shutil.rmtree(entry / "data"),
    "manifest deleted": lambda entry: (entry / "manifest.json").unlink(),
    "manifest emptied": lambda entry: (entry / "manifest.json").write_bytes(b""),
    "swapped": lambda entry: (entry / "model.onnx").write_bytes(WEIGHTS[: len(MODEL)]),
    "a directory for a file": lambda entry: ((entry / "model.onnx").unlink(), (entry / "model.onnx").mkdir()),
    "a file for the entry": lambda entry: (shutil.rmtree(entry), entry.write_bytes(b"x")),
    "a link to the entry": lambda entry: (entry.rename(entry.parent / "x"), entry.symlink_to(entry.parent / "x")),
    "a dangling link": lambda entry: (shutil.rmtree(entry), entry.symlink_to(entry.parent / "nowhere")),
    "symlink": lambda entry: ((entry / "model.onnx").rename(entry / "x"), (entry / "model.onnx").symlink_to("x")),
    "linked folder": lambda entry: ((entry / "data").rename(entry / "x"), (entry / "data").symlink_to("x")),
    "linked manifest": lambda entry: (
        (entry / "manifest.json").rename(entry / "x"),
        (entry / "manifest.json").symlink_to("x"),
    ),
    "hard link": lambda entry: os.link(entry / "model.onnx", entry.parent / "second name"),
    "hard linked manifest": lambda entry: os.link(entry / "manifest.json", entry.parent / "second name"),
}
if hasattr(os, "mkfifo"):
    DAMAGE["fifo"] = lambda entry: ((entry / "model.onnx").unlink(), os.mkfifo(entry / "model.onnx"))
    DAMAGE["fifo manifest"] = lambda entry: ((entry / "manifest.json").unlink(), os.mkfifo(entry / "manifest.json"))


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("verify", ["full", "background"])
def test_damage_is_a_miss_set_aside_and_rebuilt(cache, entry, damage, verify, caplog):
    DAMAGE[damage](entry.path)
    assert [problem.key for problem in cache.verify()] == [KEY]
    with caplog.at_level(logging.WARNING):
        found = cache.get(KEY, verify=verify)
        if found is not None:
            assert verify == "background"
            with pytest.raises(CorruptEntry):
                found.verified()
    assert "is corrupt and was moved to" in caplog.text
    assert not os.path.lexists(entry.path)
    assert len(list((cache.root / "quarantine").iterdir())) == 1
    again = cache.get_or_create(KEY, build, name="slow")
    assert again.created
    assert again.file("model.onnx").read_bytes() == MODEL
    assert cache.verify() == []


def test_every_byte_of_the_manifest_counts(cache, entry):
    path = entry.path / "manifest.json"
    original = path.read_bytes()
    parsed = json.loads(original)
    for at in range(len(original)):
        changed = bytearray(original)
        changed[at] ^= 4
        path.write_bytes(changed)
        problems = cache.verify()
        if not problems:  # white space changed into white space, or the case of an escape
            assert json.loads(changed) == parsed
    path.write_bytes(original)
    assert cache.verify() == []


def test_other_files_in_an_entry_are_ignored_and_not_served(cache, entry):
    (entry.path / ".DS_Store").write_bytes(b"finder")
    found = cache.get(KEY)
    assert found is not None
    with pytest.raises(CacheError):
        found.file(".DS_Store")


def test_an_unreadable_entry_is_a_miss_and_stays(cache, entry, monkeypatch):
    """Too many open files, or no permission, says nothing about the entry."""

    def refuse(path: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(store_module.digest, "open_regular", refuse)
        assert cache.get(KEY) is None
    assert cache.get(KEY) is not None


def test_pruned_while_it_is_read_is_a_plain_miss(cache, entry, monkeypatch, caplog):
    real = store_module.manifests.load

    def removed_meanwhile(path: Path, key: str) -> object:
        shutil.rmtree(path)
        return real(path, key)

    monkeypatch.setattr(store_module.manifests, "load", removed_meanwhile)
    with caplog.at_level(logging.WARNING):
        assert cache.get(KEY) is None
    assert caplog.text == ""
