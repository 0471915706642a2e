"""What an entry's key is made of, and where the cache is."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerator.cache import ContentCache, default_root, make_key
from accelerator.errors import InvalidOption
from tests import ROOT


def test_value_is_the_sha256_of_canonical_json():
    expected = hashlib.sha256(b'{"a":1,"b":[true,null,"\\u00e4"]}').hexdigest()
    assert make_key(b=(True, None, "ä"), a=1) == expected


def test_order_does_not_matter():
    assert make_key(a=1, b={"x": 1, "y": [2]}) == make_key(b={"y": [2], "x": 1}, a=1)


def test_every_field_and_type_matters():
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
def test_refuses_what_json_cannot_say(value):
    with pytest.raises(InvalidOption, match="cannot be hashed"):
        make_key(field=value)


def test_refuses_endless_nesting_and_nothing():
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
            st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=8,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_survives_a_round_trip_through_json(fields):
    assert make_key(**dict(reversed(fields.items()))) == make_key(**json.loads(json.dumps(fields)))


def test_environment_first(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path / "here"))
    assert default_root() == tmp_path / "here"
    assert ContentCache().root == tmp_path / "here"
    assert not (tmp_path / "here").exists()


def test_home_and_relative_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("ACCELERATOR_CACHE", os.path.join("~", "models"))
    assert default_root() == tmp_path / "models"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATOR_CACHE", "relative")
    assert default_root() == Path.cwd() / "relative"


def test_a_relative_path_stays_where_it_was_first_read(monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATOR_CACHE", "read-once")
    before = default_root()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert default_root() == ContentCache().root == before == tmp_path / "read-once"


def test_checkout_second(monkeypatch):
    monkeypatch.setenv("ACCELERATOR_CACHE", "")
    assert default_root() == ROOT / "onnx_cache"


@pytest.mark.parametrize("project", ['[project]\nname = "other"\n', None])
def test_user_cache_last(monkeypatch, tmp_path, project):
    monkeypatch.delenv("ACCELERATOR_CACHE", raising=False)
    monkeypatch.setattr("accelerator.cache.keys.__file__", str(tmp_path / "site" / "cache" / "keys.py"))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, appauthor: tmp_path / "user" / name)
    (tmp_path / "onnx_cache").mkdir()
    if project is not None:
        (tmp_path / "pyproject.toml").write_text(project)
    assert default_root() == tmp_path / "user" / "accelerator-tts"


@pytest.mark.parametrize("places", [{"root": "/caf\udce9"}, {"root": "/cafe", "parents": ["/caf\udce9"]}])
def test_a_place_that_onnx_runtime_cannot_be_told_of(places):
    with pytest.raises(InvalidOption, match=r"the cache cannot be in .* Choose another place by cache_dir"):
        ContentCache(**places)
    assert ContentCache("/caf\u00e9").root == Path("/caf\u00e9").absolute()
