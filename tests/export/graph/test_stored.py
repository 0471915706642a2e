"""A graph's weights by name, each in memory as long as somebody holds it."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from accelerator.export.graph.stored import stored

LARGE = np.arange(512, dtype=np.float32).reshape(2, 256)
SMALL = np.array([1, 2], np.int64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    graph = helper.make_graph([], "m", [], [], [numpy_helper.from_array(a, n) for a, n in ((LARGE, "l"), (SMALL, "s"))])
    onnx.save(
        helper.make_model(graph),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=1024,
    )
    return tmp_path / "m.onnx"


def test_weights_are_those_of_the_file(path: Path) -> None:
    found = stored(path)
    assert (sorted(found), len(found), "l" in found, "x" in found) == (["l", "s"], 2, True, False)
    np.testing.assert_array_equal(found["l"], LARGE)
    np.testing.assert_array_equal(found["s"], SMALL)
    assert isinstance(found["l"], np.memmap)
    assert not isinstance(found["s"], np.memmap)
    with pytest.raises(KeyError):
        found["x"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_what_nobody_holds_is_not_mapped(path: Path) -> None:
    found = stored(path)
    held = found["l"]
    assert "m.data" in Path("/proc/self/maps").read_text()
    del held
    gc.collect()
    assert "m.data" not in Path("/proc/self/maps").read_text()


def test_what_is_no_graph_is_said(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"m\.onnx is no graph"):
        stored(tmp_path / "m.onnx")
    with pytest.raises(FileNotFoundError):
        stored(tmp_path / "other.onnx")
