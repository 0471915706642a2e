"""Digests of files, remembered across processes until the file changes."""

import hashlib
import os

import pytest

from accelerator.cache import ContentCache
from accelerator.cache import store as store_module
from tests.cache.entries import age, never


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"0" * 3_000_000)
    return path


def test_value(cache, weights):
    assert cache.file_digest(weights) == hashlib.sha256(b"0" * 3_000_000).hexdigest()
    assert cache.file_digest(str(weights)) == cache.file_digest(weights)


def test_remembered_across_processes_until_the_file_changes(cache, weights, monkeypatch, forget):
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


def test_a_fresh_file_is_not_remembered(cache, weights, forget):
    cache.file_digest(weights)
    assert not (cache.root / "digests").exists()


@pytest.mark.parametrize("text", [b"", b"{}", b'{"sha256":"short"}', b"[1]", b"\x00"])
def test_a_damaged_memory_is_ignored(cache, weights, monkeypatch, forget, text):
    monkeypatch.setattr(store_module.digest, "SETTLED_S", 0.05)
    age(weights)
    value = cache.file_digest(weights)
    (memo,) = (cache.root / "digests").iterdir()
    memo.write_bytes(text)
    forget()
    assert cache.file_digest(weights) == value


def test_follows_symlinks_and_reports_missing_files(cache, weights, tmp_path):
    (tmp_path / "link").symlink_to(weights)
    assert cache.file_digest(tmp_path / "link") == cache.file_digest(weights)
    with pytest.raises(FileNotFoundError):
        cache.file_digest(tmp_path / "missing")
    with pytest.raises(OSError):
        cache.file_digest(tmp_path)
