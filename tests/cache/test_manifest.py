"""Hostile and damaged manifests are misses, whatever they say."""

import hashlib
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accelerator.cache import ContentCache, make_key, strict_json
from tests.cache.entries import KEY, MODEL


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
