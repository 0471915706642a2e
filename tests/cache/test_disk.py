"""Full, read-only and forbidden disks: the cache goes on without them."""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from accelerator.cache import ContentCache, make_key
from accelerator.errors import CacheError
from tests.cache.entries import KEY, MODEL, build, files_below, flip, needs_posix, never, script


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
