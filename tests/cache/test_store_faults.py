"""The cache on a bad day: killed writers, damaged and hostile entries, full, read-only and forbidden disks."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accelerator.cache import ContentCache, make_key, strict_json
from accelerator.cache import store as store_module
from accelerator.errors import CacheError, CorruptEntry
from tests import ROOT

KEY = make_key(component="slow", precision="int8")
MODEL = b"model" * 200
WEIGHTS = bytes(range(256)) * 16

needs_posix = pytest.mark.skipif(os.name == "nt", reason="forks, signals or mounts")


def build(directory: Path) -> dict[str, object]:
    (directory / "model.onnx").write_bytes(MODEL)
    (directory / "data").mkdir()
    (directory / "data" / "weights.bin").write_bytes(WEIGHTS)
    return {"onnx": "1.17"}


def never(directory: Path) -> None:
    raise AssertionError("built although it is cached")


def script(code: str, *arguments: object, **options: Any) -> str:
    """Runs `code` in a process of its own and returns what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.fixture
def cache(tmp_path):
    return ContentCache(tmp_path / "cache")


@pytest.fixture
def entry(cache):
    return cache.get_or_create(KEY, build, name="slow")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    store_module._in_use.clear()
    store_module.digest._memo.clear()
    yield
    for path in list(store_module.remove_at_exit.__globals__["_ephemeral"]):
        shutil.rmtree(path, ignore_errors=True)


# Writers that die


BUILDER = """
    import os, random, signal, sys, time
    from pathlib import Path
    from accelerator.cache import ContentCache, make_key

    root, mode = sys.argv[1], sys.argv[2]
    parts = {f"part{i}.bin": bytes([i]) * 20_000 for i in range(6)}

    def build(directory):
        for name, data in parts.items():
            with open(directory / name, "wb") as file:
                for start in range(0, len(data), 5000):
                    file.write(data[start:start + 5000])
                    file.flush()
        return {"parts": len(parts)}

    def check(key):
        # Whatever was interrupted, a fresh look sees nothing or everything.
        cache = ContentCache(root)
        assert cache.verify() == [], cache.verify()
        found = cache.get(key)
        if found is not None:
            assert {n: found.file(n).read_bytes() for n in found.files} == parts
        after = cache.get_or_create(key, build, name="slow")
        assert {n: after.file(n).read_bytes() for n in after.files} == parts
        assert after.created == (found is None)
        assert list((Path(root) / "quarantine").glob("*")) == []
        return found is not None

    def killed(number, die):
        key = make_key(number=number)
        child = os.fork()
        if child == 0:
            die()
            ContentCache(root).get_or_create(key, build, name="slow")
            os._exit(0)
        return key, child

    import filelock
    survived = 0
"""


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


# Entries that were damaged


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


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


# Entries that were made to do harm


def sign(body: dict[str, Any]) -> bytes:
    """A manifest with a valid digest, as someone would write it who knows the format."""
    body = {name: value for name, value in body.items() if name != "digest"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    return json.dumps({**body, "digest": hashlib.sha256(text).hexdigest()}).encode()


HOSTILE_PATHS = [
    "../secret",
    "data/../../secret",
    "/etc/passwd",
    "//server/share",
    "C:/secret",
    "C:secret",
    "data\\weights.bin",
    "\\\\server\\share",
    "",
    ".",
    "..",
    "./model.onnx",
    "data//weights.bin",
    "data/",
    "a\0b",
    "a\nb",
    "NUL",
    "data/con.txt",
    "COM1",
    "file.",
    "file ",
    "manifest.json",
    "MANIFEST.JSON",
    "file:stream",
    "\ud800",
    "a" * 600,
    "/".join("a" * 9),
    "missing",
    5,
    None,
    ["model.onnx"],
]


@pytest.mark.parametrize("path", HOSTILE_PATHS, ids=repr)
def test_hostile_paths(cache, entry, path):
    secret = cache.root.parent / "secret"
    secret.write_bytes(MODEL)
    body = json.loads((entry.path / "manifest.json").read_text())
    body["files"][0]["path"] = path
    (entry.path / "manifest.json").write_bytes(sign(body))
    assert cache.get(KEY) is None
    assert secret.read_bytes() == MODEL


def edited(**changes: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda body: sign({**body, **changes})


def file_edited(**changes: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda body: sign({**body, "files": [{**body["files"][0], **changes}]})


def raw(data: bytes) -> Callable[[dict[str, Any]], bytes]:
    return lambda body: data


def spliced(old: bytes, new: bytes) -> Callable[[dict[str, Any]], bytes]:
    return lambda body: sign(body).replace(old, new, 1)


HOSTILE: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "other key": edited(key=make_key(other=1)),
    "key is no text": edited(key=5),
    "other schema": edited(schema=2),
    "schema true": edited(schema=True),
    "no files": edited(files=[]),
    "files is a mapping": edited(files={}),
    "files of strings": edited(files=["model.onnx"]),
    "too many files": edited(files=[{"path": f"f{i}", "size": 0, "sha256": "0" * 64} for i in range(2049)]),
    "name is a number": edited(name=1),
    "no name": edited(name=""),
    "fields is a list": edited(fields=[]),
    "meta is null": edited(meta=None),
    "time is text": edited(created_at="now"),
    "time is true": edited(created_at=True),
    "time is negative": edited(created_at=-1),
    "time is huge": edited(created_at=10**400),
    "unknown key": edited(extra=1),
    "missing key": lambda body: sign({name: value for name, value in body.items() if name != "meta"}),
    "size is text": file_edited(size="1000"),
    "size is true": file_edited(size=True),
    "size is a float": file_edited(size=1000.0),
    "size is negative": file_edited(size=-1),
    "size is huge": file_edited(size=10**30),
    "sha256 is short": file_edited(sha256="0" * 63),
    "sha256 is upper case": file_edited(sha256="A" * 64),
    "sha256 is null": file_edited(sha256=None),
    "unknown file key": file_edited(link="x"),
    "a file twice": lambda body: sign({**body, "files": body["files"] + body["files"]}),
    "a file twice but for case": lambda body: sign(
        {**body, "files": [*body["files"], {**body["files"][0], "path": "MODEL.onnx"}]}
    ),
    "digest wrong": lambda body: json.dumps({**body, "name": "other"}).encode(),
    "digest is a list": lambda body: json.dumps({**body, "digest": []}).encode(),
    "duplicate key": spliced(b'"schema"', b'"schema": 1, "schema"'),
    "NaN": spliced(b'"meta": {', b'"meta": {"x": NaN, '),
    "infinite": spliced(b'"meta": {', b'"meta": {"x": 1e999, '),
    "many digits": spliced(b'"meta": {', b'"meta": {"x": ' + b"9" * 5000 + b", "),
    "deep": edited(meta={"x": json.loads("[" * 40 + "]" * 40)}),
    "very deep": raw(b"[" * 500_000),
    "very deep objects": raw(b'{"a":' * 200_000),
    "huge": edited(meta={"x": "y" * (2 << 20)}),
    "huge white space": lambda body: sign(body) + b" " * (2 << 20),
    "not JSON": raw(b"\x80\x04\x95pickle"),
    "not UTF-8": raw(b'{"a": "\xff"}'),
    "UTF-16": lambda body: sign(body).decode().encode("utf-16"),
    "byte order mark": lambda body: b"\xef\xbb\xbf" + sign(body),
    "NULs": raw(b"\0" * 1000),
    "a list": raw(b"[]"),
    "a number": raw(b"1"),
    "two documents": lambda body: sign(body) * 2,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_manifests(cache, entry, what):
    body = json.loads((entry.path / "manifest.json").read_text())
    (entry.path / "manifest.json").write_bytes(sign(body))
    assert cache.get(KEY) is not None  # the forger's tools work
    (entry.path / "manifest.json").write_bytes(HOSTILE[what](body))
    assert cache.entries() == []
    assert len(cache.verify()) == 1
    assert cache.get(KEY) is None


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def seen_after_writing(cache: ContentCache, data: bytes) -> object:
    path = cache.root / "v1" / KEY[:2] / KEY
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_bytes(data)
    cache.verify()
    cache.entries()
    return cache.get(KEY)


fuzz = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@fuzz
@given(data=st.binary() | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_fuzzed_manifests_are_misses(cache, data):
    assert seen_after_writing(cache, data) is None


@fuzz
@given(data=st.data())
def test_fuzzed_fields_are_misses(cache, data):
    """Each field replaced by anything, under a digest that fits: never an exception."""
    record: dict[str, Any] = {"path": "f", "size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    body: dict[str, Any] = {"schema": 1, "key": KEY, "name": "n", "fields": {}, "files": [record], "created_at": 1.0}
    body["meta"] = {}
    target = data.draw(st.sampled_from([body, record]))
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(ANY_JSON)
    assert seen_after_writing(cache, sign(body)) is None  # the file "f" does not exist


@fuzz
@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\01truefalsn e', max_size=60).map(str.encode))
def test_strict_parsing_raises_value_errors_only(data):
    try:
        value = strict_json.parse(data)
    except ValueError:
        return
    assert json.loads(data) == value


def test_a_raised_recursion_limit_does_not_help_deep_json():
    old = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)
    try:
        with pytest.raises(ValueError, match="deeper"):
            strict_json.parse(b"[" * 1_000_000)
    finally:
        sys.setrecursionlimit(old)


# Disks that do not take it


@contextlib.contextmanager
def mounted(path: Path, *options: str) -> Iterator[None]:
    path.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(path)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def large(directory: Path) -> None:
    with open(directory / "weights.bin", "wb") as file:
        for _ in range(16):
            file.write(b"\1" * (1 << 20))


needs_mount = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("mount") is None or os.geteuid() != 0, reason="needs root to mount a tmpfs"
)


@needs_mount
def test_ten_megabytes(tmp_path):
    with mounted(tmp_path / "small", "-o", "size=10m"):
        cache = ContentCache(tmp_path / "small" / "cache")
        with pytest.raises(CacheError, match="ACCELERATOR_CACHE") as caught:
            cache.get_or_create(KEY, large, name="large")
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENOSPC
        assert files_below(tmp_path / "small" / "cache" / "tmp") == []
        assert cache.get(KEY) is None
        assert cache.get_or_create(KEY, build, name="slow").created  # the room is free again


@needs_mount
def test_a_disk_full_to_the_last_byte(tmp_path, caplog):
    with mounted(tmp_path / "small", "-o", "size=1m"):
        cache = ContentCache(tmp_path / "small" / "cache")
        entry = cache.get_or_create(KEY, build, name="slow")
        weights = tmp_path / "weights"
        weights.write_bytes(b"w")
        with contextlib.suppress(OSError), open(tmp_path / "small" / "fill", "wb", buffering=0) as file:
            while True:
                file.write(b"\1" * 4096)
        assert cache.get(KEY).path == entry.path
        assert not cache.write_note(KEY, "n", {"a": "x" * 10_000})
        assert cache.read_note(KEY, "n") is None
        assert cache.file_digest(weights) == hashlib.sha256(b"w").hexdigest()
        with pytest.raises(CacheError, match="full"):
            cache.get_or_create(make_key(b=1), build, name="fast")
        assert files_below(cache.root / "tmp") == []


@needs_mount
def test_no_inodes_left(tmp_path):
    with mounted(tmp_path / "small", "-o", "nr_inodes=12"):
        cache = ContentCache(tmp_path / "small" / "cache")
        with contextlib.suppress(OSError):
            for i in range(100):
                (tmp_path / "small" / str(i)).touch()
        entry = cache.get_or_create(KEY, build, name="slow")
        assert entry.layer == "ephemeral"
        assert entry.file("model.onnx").read_bytes() == MODEL


def exhausted_by(error: str) -> Callable[[Path], None]:
    def failing(directory: Path) -> None:
        build(directory)
        full = OSError(errno.ENOSPC, "No space left on device")
        if error == "plain":
            raise full
        if error == "quota":
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        if error == "cause":
            raise RuntimeError("export failed") from full
        if error == "context":
            try:
                raise full
            except OSError:
                raise RuntimeError("export failed")  # noqa: B904
        raise RuntimeError("[enforce fail] write: No space left on device")

    return failing


@pytest.mark.parametrize("error", ["plain", "quota", "cause", "context", "text"])
def test_a_full_disk_is_recognised(cache, error):
    with pytest.raises(CacheError, match=r"full: more than 5096 bytes.*ACCELERATOR_CACHE"):
        cache.get_or_create(KEY, exhausted_by(error), name="slow")
    assert files_below(cache.root / "tmp") == []


def test_an_older_full_disk_is_not_blamed(cache):
    """Called while a full disk is being handled elsewhere, an unrelated failure stays what it is."""

    def failing(directory: Path) -> None:
        raise RuntimeError("unrelated")

    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:
        with pytest.raises(RuntimeError, match="unrelated"):
            cache.get_or_create(KEY, failing, name="slow")


@pytest.mark.parametrize(("code", "message"), [(errno.ENOSPC, "full"), (errno.EIO, "check its disk")])
def test_a_disk_that_fails_at_fsync(cache, monkeypatch, code, message):
    def failing(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(CacheError, match=message):
            cache.get_or_create(KEY, build, name="slow")
        assert not cache.write_note(KEY, "n", {})
    assert files_below(cache.root / "tmp") == []
    assert cache.get(KEY) is None


def test_a_file_system_without_fsync_is_good_enough(cache, monkeypatch):
    def unsupported(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unsupported)
    assert cache.get_or_create(KEY, build, name="slow").layer == "primary"


def test_what_cannot_be_renamed_serves_this_process(cache, monkeypatch, caplog):
    def failing(source: object, target: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "rename", failing)
    with caplog.at_level(logging.WARNING):
        entry = cache.get_or_create(KEY, build, name="slow")
        assert (entry.created, entry.ephemeral) == (True, True)
        assert cache.get_or_create(KEY, never, name="slow").path == entry.path
    assert len(caplog.records) == 1


def check_ephemeral(cache: ContentCache, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        entry = cache.get_or_create(KEY, build, name="slow")
        assert (entry.created, entry.ephemeral, entry.layer) == (True, True, "ephemeral")
        assert entry.file("model.onnx").read_bytes() == MODEL
        assert cache.root not in entry.path.parents
        again = cache.get_or_create(KEY, never, name="slow")
        assert (again.created, again.ephemeral, again.path) == (False, True, entry.path)
        other = cache.get_or_create(make_key(other=1), build, name="fast")
        assert other.path != entry.path
    assert [record.message for record in caplog.records if "ACCELERATOR_CACHE" in record.message] == [
        record.message for record in caplog.records
    ]
    assert len(caplog.records) == 1
    assert not cache.writable
    assert not cache.write_note(KEY, "n", {})
    shutil.rmtree(entry.path)  # as a tidy system would
    assert cache.get(KEY) is None
    assert cache.get_or_create(KEY, build, name="slow").created


def test_the_path_is_a_file(tmp_path, caplog):
    (tmp_path / "cache").write_bytes(b"a file")
    cache = ContentCache(tmp_path / "cache")
    assert (cache.get(KEY), cache.entries(), cache.verify(), cache.size()) == (None, [], [], 0)
    cache.clear()
    assert cache.prune(0) == []
    check_ephemeral(cache, caplog)
    assert (tmp_path / "cache").read_bytes() == b"a file"


def test_the_path_lies_in_a_file(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"a file")
    check_ephemeral(ContentCache(tmp_path / "file" / "cache"), caplog)


@needs_mount
def test_a_read_only_file_system(tmp_path, caplog):
    with mounted(tmp_path / "ro"):
        kept = make_key(kept=1)
        ContentCache(tmp_path / "ro").get_or_create(kept, build, name="kept")
        damaged = make_key(damaged=1)
        flip(ContentCache(tmp_path / "ro").get_or_create(damaged, build, name="damaged").file("model.onnx"))
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "ro")], check=True)
        before = len(files_below(tmp_path / "ro"))
        cache = ContentCache(tmp_path / "ro")
        assert cache.get(kept).file("model.onnx").read_bytes() == MODEL
        check_ephemeral(cache, caplog)
        assert cache.get(damaged) is None
        assert cache.get_or_create(damaged, build, name="damaged").ephemeral
        assert cache.prune(0, force=True) == []
        parented = ContentCache(tmp_path / "primary", parents=[tmp_path / "ro"])
        assert parented.get(kept).layer == "parent"
        assert len(files_below(tmp_path / "ro")) == before


@needs_posix
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o555])
def test_no_permission(mode, tmp_path):
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    root = base / "cache"
    ContentCache(root).get_or_create(KEY, build, name="slow")
    root.chmod(mode)
    try:
        printed = script(
            """
            import logging, os, sys, tempfile
            logging.basicConfig(stream=sys.stdout, format="%(levelname)s")
            from accelerator.cache import ContentCache, make_key
            import filelock
            key, root = make_key(component="slow", precision="int8"), sys.argv[1]
            def build(directory):
                (directory / "f").write_bytes(b"built")
            ContentCache(tempfile.mkdtemp(dir=sys.argv[2])).get_or_create(key, build, name="slow")
            if os.geteuid() == 0:
                os.seteuid(65534)  # everything is imported by now, from where nobody may read
            cache = ContentCache(root)
            found = cache.get(key)
            entry = cache.get_or_create(make_key(x=1), build, name="slow")
            print(found is not None, entry.layer, entry.file("f").read_bytes(), cache.writable)
            print(cache.write_note(key, "n", {}), cache.prune(0, force=True), entry.path)
            cache.clear()
            """,
            root,
            tmp_path,
        ).splitlines()
    finally:
        root.chmod(0o755)
    readable = mode == 0o555
    assert printed[0] == "WARNING"
    assert printed[1] == f"{readable} ephemeral b'built' False"
    assert printed[2].startswith("False [] ")
    assert not os.path.exists(printed[2].removeprefix("False [] "))  # removed at exit
    assert ContentCache(root).get(KEY) is not None
    shutil.rmtree(base)


def test_nowhere_to_write_at_all(tmp_path, monkeypatch):
    (tmp_path / "cache").write_bytes(b"a file")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing" / "x"))
    (tmp_path / "missing").write_bytes(b"")
    with pytest.raises(CacheError, match="Set ACCELERATOR_CACHE, or TMPDIR"):
        ContentCache(tmp_path / "cache").get_or_create(KEY, build, name="slow")


def test_ephemeral_entries_leave_with_their_process_and_stale_ones_are_swept(tmp_path):
    (tmp_path / "cache").write_bytes(b"a file")
    (tmp_path / "tmp").mkdir()
    code = """
        import os, signal, sys
        from accelerator.cache import ContentCache, make_key
        cache = ContentCache(sys.argv[1])
        entry = cache.get_or_create(make_key(x=1), lambda d: (d / "f").write_bytes(b"x") and {}, name="slow")
        assert entry.path.parent == __import__("pathlib").Path(os.environ["TMPDIR"])
        print(len(list(entry.path.parent.iterdir())), flush=True)
        if sys.argv[2] == "die":
            os._exit(0)
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TMPDIR", "TEMP", "TMP"):
            patch.setenv(name, str(tmp_path / "tmp"))
        assert script(code, tmp_path / "cache", "die") == "1\n"
        assert len(list((tmp_path / "tmp").iterdir())) == 1
        assert script(code, tmp_path / "cache", "live") == ("2\n" if os.name == "nt" else "1\n")
        assert len(list((tmp_path / "tmp").iterdir())) == (1 if os.name == "nt" else 0)


# Readers and removal


@needs_posix
def test_prune_while_another_process_maps_the_files(cache, entry):
    reader = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
                import hashlib, mmap, sys
                with open(sys.argv[1], "rb") as file:
                    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                print("mapped", flush=True)
                sys.stdin.readline()
                print(hashlib.sha256(data).hexdigest(), flush=True)
            """),
            str(entry.file("data/weights.bin")),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline() == "mapped\n"
        assert [info.key for info in cache.prune(0, force=True)] == [KEY]
        assert not entry.path.exists()
        assert files_below(cache.root / "trash") == []
        rebuilt = cache.get_or_create(KEY, lambda directory: build(directory) and {"second": True}, name="slow")
        assert rebuilt.meta == {"second": True}
        reader.stdin.write("go\n")
        reader.stdin.flush()
        assert reader.stdout.readline().strip() == hashlib.sha256(WEIGHTS).hexdigest()
    assert reader.returncode == 0


@needs_posix
def test_readers_and_a_pruner_at_once(tmp_path):
    """Four processes fetch and read while another one removes by force: each read sees the whole, or builds again."""
    printed = script(
        BUILDER
        + """
    key = make_key(number="one")
    end = time.monotonic() + 1.0
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            cache = ContentCache(root)
            while time.monotonic() < end:
                try:
                    entry = cache.get_or_create(key, build, name="slow")
                    assert {n: entry.file(n).read_bytes() for n in entry.files} == parts
                except FileNotFoundError:
                    continue  # removed by force after it was handed out
            os._exit(0)
        children.append(child)
    cache = ContentCache(root)
    removed = 0
    while time.monotonic() < end:
        removed += len(cache.prune(0, force=True))
    print([os.waitpid(child, 0)[1] for child in children], removed > 3, cache.verify())
    """,
        tmp_path,
        "race",
    )
    assert printed == "[0, 0, 0, 0] True []\n"
