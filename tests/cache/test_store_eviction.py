"""What goes when the cache is full, and what never does."""

import hashlib
import os
import subprocess
import sys
import textwrap
import time

from accelerator.cache import ContentCache, make_key
from accelerator.cache import disk as disk_module
from tests.cache.entries import BUILDER, KEY, MODEL, WEIGHTS, Clock, build, files_below, needs_posix, script


def fill(cache: ContentCache, clock: Clock, names: str, size: int = 1000) -> dict[str, str]:
    keys = {}
    for name in names:
        keys[name] = make_key(name=name)
        cache.get_or_create(
            keys[name], lambda d, name=name: (d / "f").write_bytes(name.encode() * size) and {}, name=name
        )
        clock.now += 1000
    return keys


def test_least_recently_used_goes_first(tmp_path, forget):
    clock = Clock()
    cache = ContentCache(tmp_path, clock=clock)
    keys = fill(cache, clock, "abc")
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


def test_used_by_this_process_or_just_now_stays(tmp_path, forget):
    clock = Clock()
    cache = ContentCache(tmp_path, clock=clock)
    fill(cache, clock, "ab")
    assert cache.prune(0) == []
    forget()
    clock.now -= 800  # b: 200 s ago
    assert [info.name for info in cache.prune(0)] == ["a"]
    assert [info.name for info in cache.prune(0, force=True)] == ["b"]


def test_bound_holds_after_each_publication(tmp_path, forget):
    clock = Clock()
    cache = ContentCache(tmp_path, clock=clock, max_bytes=4000)
    for name in "abcdef":
        fill(cache, clock, name)
        forget()
        assert cache.size() <= 4000
    assert [info.name for info in cache.entries()] == ["e", "f"]


def test_touching_is_throttled(tmp_path):
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


def test_notes_go_with_their_entry_and_corrupt_ones_count(tmp_path, forget):
    clock = Clock()
    cache = ContentCache(tmp_path, clock=clock)
    keys = fill(cache, clock, "ab")
    cache.write_note(keys["a"], "n", {"x": 1})
    (cache.root / "v1" / keys["a"][:2] / keys["a"] / "manifest.json").write_bytes(b"")
    forget()
    assert [info.name for info in cache.entries()] == ["b"]
    assert [info.key for info in cache.prune(1500)] == [keys["a"]]
    assert cache.read_note(keys["a"], "n") is None


def test_quarantine_is_freed_first(tmp_path, forget):
    clock = Clock()
    cache = ContentCache(tmp_path, clock=clock)
    keys = fill(cache, clock, "ab")
    (cache.root / "v1" / keys["a"][:2] / keys["a"] / "f").write_bytes(b"?" * 1000)
    assert cache.get(keys["a"]) is None
    forget()
    assert cache.size() > 2000
    assert cache.prune(2000) == []
    assert [info.name for info in cache.entries()] == ["b"]
    assert cache.size() < 2000


def test_quarantine_is_bounded(cache):
    for _ in range(5):
        entry = cache.get_or_create(KEY, build, name="slow")
        entry.file("model.onnx").write_bytes(b"?" * len(MODEL))
    assert cache.get(KEY) is None
    cache.prune(1 << 30)
    assert len(list((cache.root / "quarantine").iterdir())) == 2


def test_clear(cache, tmp_path):
    cache.get_or_create(KEY, build, name="slow")
    cache.write_note(KEY, "n", {"x": 1})
    (cache.root / "README.md").write_text("kept")
    cache.clear()
    assert cache.entries() == []
    assert cache.get(KEY) is None
    assert cache.read_note(KEY, "n") is None
    assert [path.name for path in cache.root.rglob("*") if path.is_file() and path.suffix != ".lock"] == ["README.md"]
    assert cache.get_or_create(KEY, build, name="slow").created


def test_looking_at_no_cache_makes_none(tmp_path):
    cache = ContentCache(tmp_path / "absent")
    assert (cache.get(KEY), cache.entries(), cache.verify(), cache.size()) == (None, [], [], 0)
    assert cache.prune(0) == []
    assert cache.read_note(KEY, "n") is None
    assert not (tmp_path / "absent").exists()


def test_of_dead_processes_and_old_ones_only(cache, monkeypatch):
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
