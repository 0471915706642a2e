"""Notes beside entries."""

import os
import threading

import pytest

from accelerator.cache import ContentCache, make_key
from accelerator.errors import InvalidOption
from tests.cache.entries import KEY, build, tree


def test_round_trip_and_replacement(cache):
    assert cache.read_note(KEY, "tuning") is None
    assert cache.write_note(KEY, "tuning", {"threads": 4, "spin": False})
    assert cache.read_note(KEY, "tuning") == {"threads": 4, "spin": False}
    assert cache.write_note(KEY, "tuning", {"threads": 2})
    assert ContentCache(cache.root).read_note(KEY, "tuning") == {"threads": 2}
    assert cache.read_note(KEY, "other") is None
    assert cache.read_note(make_key(x=1), "tuning") is None


def test_the_first_of_several_stays(cache):
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


def test_the_first_of_several_stays_without_links(cache, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert cache.write_note(KEY, "first", {"number": 1}, replace=False)
    assert not cache.write_note(KEY, "first", {"number": 2}, replace=False)
    assert cache.read_note(KEY, "first") == {"number": 1}


def test_listed_by_name_whatever_their_key(cache, tmp_path):
    parent = ContentCache(tmp_path / "parent")
    parent.write_note(KEY, "tuning-a", {"from": "parent"})
    parent.write_note(make_key(x=1), "tuning-a", {"from": "parent, alone"})
    layered = ContentCache(cache.root, parents=[parent.root])
    layered.write_note(KEY, "tuning-a", {"from": "here"})
    layered.write_note(KEY, "rejected", {"from": "elsewhere"})
    found = sorted(note["from"] for note in layered.notes("tuning-*"))
    assert found == ["here", "parent, alone"]


def test_notes_do_not_touch_the_entry(cache):
    entry = cache.get_or_create(KEY, build, name="slow")
    before = tree(entry.path)
    assert cache.write_note(KEY, "cpu-1.2", {"a": 1})
    assert tree(entry.path) == before
    assert cache.verify() == []


@pytest.mark.parametrize("note", ["", "../x", "a/b", ".hidden", "a\0b", "x" * 101, "C:x"])
def test_refuses_other_names(cache, note):
    with pytest.raises(InvalidOption, match="name for a note"):
        cache.write_note(KEY, note, {})
    with pytest.raises(InvalidOption, match="name for a note"):
        cache.read_note(KEY, note)


@pytest.mark.parametrize("data", [{"a": b"x"}, {"a": float("inf")}, [1], {"a": "x" * (1 << 20)}])
def test_refuses_other_data(cache, data):
    with pytest.raises(InvalidOption):
        cache.write_note(KEY, "n", data)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b'{"a":NaN}', b'{"a":1,"a":2}', b"[" * 100_000])
def test_a_damaged_note_is_none(cache, text):
    cache.write_note(KEY, "n", {"a": 1})
    (cache.root / "notes" / KEY / "n.json").write_bytes(text)
    assert cache.read_note(KEY, "n") is None
