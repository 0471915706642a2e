"""A manifest lists what an entry consists of; no file of an entry is trusted before it matches."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import CacheError, CorruptEntry
from . import digest, strict_json

__all__ = [
    "FILE_NAME",
    "FileRecord",
    "Generation",
    "Manifest",
    "check_digests",
    "check_files",
    "check_regular",
    "check_relative",
    "generation",
    "hash_files",
    "load",
    "walk",
]

SCHEMA = 1
FILE_NAME = "manifest.json"
MAX_FILES = 2048
MAX_PARTS = 8
HASH_THREADS = 4
THREADS_PAY_BYTES = 8 << 20

Generation: TypeAlias = tuple[int, int, "digest.Identity | None"]

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_REPARSE_POINT = 0x400  # FILE_ATTRIBUTE_REPARSE_POINT: a junction, which lstat shows as a directory


@dataclass(frozen=True)
class FileRecord:
    """One file of an entry: its relative path with forward slashes, its size in bytes, its sha256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json: `created_at` in seconds since the epoch, `fields` and `meta` plain JSON."""

    key: str
    name: str
    fields: Mapping[str, Any]
    files: tuple[FileRecord, ...]
    created_at: float
    meta: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON types, with `digest`: the sha256 over the canonical JSON of all the rest."""
        body = {
            "schema": SCHEMA,
            "key": self.key,
            "name": self.name,
            "fields": dict(self.fields),
            "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in self.files],
            "created_at": self.created_at,
            "meta": dict(self.meta),
        }
        return {**body, "digest": _digest(body)}

    def to_bytes(self) -> bytes:
        """The text of manifest.json. Raises CacheError if a reader would refuse it: too many files, too deep."""
        data = (json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n").encode("ascii")
        try:
            Manifest.parse(data, self.key)
        except CorruptEntry as error:
            raise CacheError(f"The build of {self.name} cannot be cached: {error}. Correct what it returns.") from error
        return data

    @classmethod
    def parse(cls, data: bytes, key: str) -> Manifest:
        """The manifest of the entry `key`; raises CorruptEntry, and nothing else, for any other bytes."""
        try:
            raw = strict_json.parse(data)
        except ValueError as error:
            raise CorruptEntry(f"the manifest is not the expected JSON: {error}") from error
        expected = {"schema", "key", "name", "fields", "files", "created_at", "meta", "digest"}
        _require(isinstance(raw, dict) and set(raw) == expected, "the manifest has other keys than expected")
        _require(raw["schema"] == SCHEMA and type(raw["schema"]) is int, f"its schema is not {SCHEMA}")
        _require(raw["key"] == key, "it belongs to another key")
        _require(isinstance(raw["name"], str) and raw["name"] != "", "it has no name")
        _require(
            isinstance(raw["fields"], dict) and isinstance(raw["meta"], dict), "its fields or meta are no mappings"
        )
        _require(type(raw["created_at"]) in (int, float) and 0 <= raw["created_at"] < 1e12, "its time is no time")
        body = {name: value for name, value in raw.items() if name != "digest"}
        _require(raw["digest"] == _digest(body), "the manifest does not match its own digest")
        return cls(
            key=key,
            name=raw["name"],
            fields=raw["fields"],
            files=_parse_files(raw["files"]),
            created_at=raw["created_at"],
            meta=raw["meta"],
        )


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(strict_json.canonical(body)).hexdigest()


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise CorruptEntry(reason)


def _parse_files(raw: Any) -> tuple[FileRecord, ...]:
    _require(isinstance(raw, list) and 0 < len(raw) <= MAX_FILES, f"it does not list 1 to {MAX_FILES} files")
    records = []
    seen: set[str] = set()
    for item in raw:
        _require(isinstance(item, dict) and set(item) == {"path", "size", "sha256"}, "a file record has other keys")
        path, size, sha256 = item["path"], item["size"], item["sha256"]
        _require(isinstance(path, str), "a file's path is not text")
        check_relative(path)
        _require(path.casefold() not in seen, f"{path!r} occurs twice")  # also on case-insensitive file systems
        seen.add(path.casefold())
        _require(type(size) is int and 0 <= size < 1 << 62, f"the size of {path!r} is no size")
        _require(digest.is_sha256(sha256), f"the sha256 of {path!r} is none")
        records.append(FileRecord(path, size, sha256))
    return tuple(records)


def check_relative(path: str) -> None:
    """Raises CorruptEntry unless `path` names a file below the entry on every system: relative, no `..`, no device."""
    parts = path.split("/")
    _require(len(path) <= 512 and len(parts) <= MAX_PARTS, "a file's path is too long")
    _require(_FORBIDDEN.search(path) is None, f"{path!r} has a character that is not portable")
    for part in parts:
        # '' is an absolute path or a doubled slash; Windows strips trailing dots and spaces.
        _require(part not in ("", ".", "..") and not part.endswith((".", " ")), f"{path!r} leaves or blurs its entry")
        _require(_WINDOWS_DEVICE.fullmatch(part) is None, f"{path!r} is a device on Windows")
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise CorruptEntry(f"{path!r} is not valid Unicode") from None
    _require(path.casefold() != FILE_NAME, "the manifest lists itself")


def load(entry: Path, key: str) -> Manifest:
    """Reads the manifest of the entry directory. Raises CorruptEntry, or OSError if it cannot be read."""
    check_directory(entry)
    path = entry / FILE_NAME
    check_regular(path, FILE_NAME)
    with open(digest.open_regular(path), "rb", buffering=0) as file:
        return Manifest.parse(file.read(strict_json.MAX_BYTES + 1) or b"", key)


def generation(entry: Path) -> Generation:
    """Identifies an entry among others that may take its place; unchanged by moving it. Raises OSError."""
    status = os.lstat(entry)
    manifest = None
    if stat.S_ISDIR(status.st_mode):
        with contextlib.suppress(OSError):  # the directory's own inode number may be used again at once
            manifest = digest.identity(os.lstat(entry / FILE_NAME))
    return status.st_dev, status.st_ino, manifest


def check_directory(path: Path) -> None:
    """Raises CorruptEntry unless `path` is a real directory, no link or junction to one; OSError if it is missing."""
    status = os.lstat(path)
    reparse = getattr(status, "st_file_attributes", 0) & _REPARSE_POINT
    _require(stat.S_ISDIR(status.st_mode) and not reparse, f"{path.name!r} is not a real directory")


def check_regular(path: Path, name: str) -> os.stat_result:
    """The state of a regular file; raises CorruptEntry for links and devices, OSError if it is missing.

    A file with a second name is refused as well: it can change from outside the entry between check and use, and
    hardened ONNX loaders refuse it, so it would be a hit that cannot be loaded.
    """
    status = os.lstat(path)
    _require(stat.S_ISREG(status.st_mode), f"{name!r} is not a regular file")
    _require(status.st_nlink <= 1, f"{name!r} has other hard links")
    return status


def check_files(entry: Path, manifest: Manifest) -> list[FileRecord]:
    """Checks kind and size of every file, and each sha256 already known to this process.

    Returns the records whose sha256 is still to be checked. Raises CorruptEntry, or OSError. Files that the manifest
    does not list (a file manager's `.DS_Store`) are ignored: nothing refers to them.
    """
    directories = {parent for file in manifest.files for parent in Path(file.path).parents if parent != Path()}
    for directory in sorted(directories):
        check_directory(entry / directory)
    unknown = []
    for file in manifest.files:
        status = check_regular(entry / file.path, file.path)
        _require(status.st_size == file.size, f"{file.path!r} has {status.st_size} bytes instead of {file.size}")
        known = digest.lookup(entry / file.path, status)
        if known is None:
            unknown.append(file)
        else:
            _require(known == file.sha256, f"{file.path!r} has other contents than its sha256 says")
    return unknown


def check_digests(entry: Path, files: Sequence[FileRecord]) -> None:
    """Reads the files and compares their sha256. Raises CorruptEntry, or OSError."""
    for file, (sha256, _) in zip(files, hash_files([entry / file.path for file in files]), strict=True):
        _require(sha256 == file.sha256, f"{file.path!r} has other contents than its sha256 says")


def hash_files(paths: Sequence[Path]) -> list[tuple[str, os.stat_result]]:
    """sha256 and state of each file, on several threads where that pays. Raises OSError."""
    if len(paths) < 2 or sum(os.lstat(path).st_size for path in paths) < THREADS_PAY_BYTES:
        return [digest.sha256_file(path) for path in paths]
    with ThreadPoolExecutor(min(HASH_THREADS, len(paths), os.cpu_count() or 1)) as pool:
        return list(pool.map(digest.sha256_file, paths))


def walk(directory: Path) -> Iterator[str]:
    """The relative paths of everything below `directory` that is no directory, in order, with forward slashes."""
    for root, names, files in os.walk(directory, followlinks=False):
        names.sort()
        links = [name for name in names if os.path.islink(os.path.join(root, name))]
        for name in sorted(files + links):
            yield Path(root, name).relative_to(directory).as_posix()
