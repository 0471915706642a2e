from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator.errors import SessionError
from accelerator.export.graph.graph import Graph
from accelerator.inference.kv_cache import KVCache
from accelerator.runtime.onnx import Session, available_providers, can_bound_spinning, runtime_version
from accelerator.runtime.options import RunOptions


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """y = 2x + 1 over [n]."""
    with Graph(tmp_path, "doubling") as graph:
        x = graph.input("x", np.float32, ["n"])
        twice = graph.op("Mul", x, graph.constant(2.0, np.float32))
        graph.output(graph.op("Add", twice, graph.constant(1.0, np.float32)), "y", np.float32, ["n"])
    return tmp_path / "doubling.onnx"


@pytest.mark.parametrize(
    "options",
    [
        RunOptions(),
        RunOptions(threads=2, spin_us=50),
        RunOptions(threads=0, arena=False, optimize=False),
    ],
)
def test_run_computes(doubling: Path, options: RunOptions) -> None:
    session = Session(doubling, options)
    assert session.outputs == ["y"]
    assert session.inputs["x"] == (np.float32, ["n"])
    (y,) = session.run({"x": np.arange(4, dtype=np.float32)})
    np.testing.assert_array_equal(y, [1, 3, 5, 7])


def test_a_session_leaves_the_callers_arithmetic_alone(doubling: Path) -> None:
    """ONNX Runtime would flush denormals to zero in the thread which made the first session: the user's."""
    Session(doubling)
    tiny = np.array([1e-40], np.float32)
    assert (tiny * np.float32(0.5) > 0).all()


def test_options_survive_json() -> None:
    options = RunOptions(threads=3, spin_us=20, arena=False)
    assert RunOptions.from_dict(options.to_dict()) == options
    assert options.to_dict()["providers"] == ["CPUExecutionProvider"]
    with pytest.raises(TypeError):
        RunOptions.from_dict({**options.to_dict(), "turbo": True})


def test_what_the_runtime_says_of_itself() -> None:
    assert "CPUExecutionProvider" in available_providers()
    assert runtime_version().count(".") == 2
    assert can_bound_spinning() in (True, False)


def test_errors_are_ours(doubling: Path, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"missing\.onnx"):
        Session(tmp_path / "missing.onnx")
    (tmp_path / "garbage.onnx").write_bytes(b"not a graph")
    with pytest.raises(SessionError, match=r"garbage\.onnx"):
        Session(tmp_path / "garbage.onnx")
    session = Session(doubling)
    with pytest.raises(SessionError, match=r"doubling\.onnx"):
        session.run({"x": np.zeros((2, 2), np.float32)})
    with pytest.raises(SessionError):
        session.run({})
    with pytest.raises(SessionError):
        session.bind({"wrong": np.zeros(3, np.float32)}, {})


def test_a_binding_works_in_place(doubling: Path) -> None:
    x, y = np.zeros(3, np.float32), np.zeros(3, np.float32)
    binding = Session(doubling).bind({"x": x}, {"y": y})
    for value in (1.0, 5.0):
        x.fill(value)
        binding.run()
        np.testing.assert_array_equal(y, np.full(3, 2 * value + 1))


def test_a_binding_keeps_its_arrays_alive(doubling: Path) -> None:
    out = np.zeros(100_000, np.float32)
    binding = Session(doubling).bind({"x": np.full(100_000, 3, np.float32)}, {"y": out})
    _ = [np.full(100_000, 9, np.float32) for _ in range(5)]  # would take the freed memory
    binding.run()
    assert (out == 7).all()


def test_one_session_many_threads(doubling: Path) -> None:
    session, wrong = Session(doubling), []

    def work(seed: int) -> None:
        x = np.full(50, seed, np.float32)
        y = np.zeros(50, np.float32)
        binding = session.bind({"x": x}, {"y": y})
        for _ in range(50):
            y.fill(0)
            binding.run()
            if not (y == 2 * seed + 1).all() or not (session.run({"x": x})[0] == 2 * seed + 1).all():
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_cache_grows_and_keeps_what_it_holds() -> None:
    cache = KVCache(layers=2, batch=1, kv_heads=3, head_dim=4, capacity=5)
    assert (cache.capacity, cache.nbytes) == (5, 2 * 2 * 3 * 5 * 4 * 4)
    rng = np.random.default_rng(0)
    before: dict[str, Any] = {}
    for name, array in cache.arrays.items():
        array[:] = before[name] = rng.standard_normal(array.shape)
    cache.grow(9)
    assert cache.capacity == 9
    assert set(cache.inputs()) == {"past_key.0", "past_value.0", "past_key.1", "past_value.1"}
    assert set(cache.outputs()) == {"present_key.0", "present_value.0", "present_key.1", "present_value.1"}
    for name, array in cache.arrays.items():
        assert array.shape == (1, 3, 9, 4)
        np.testing.assert_array_equal(array[:, :, :5], before[name].astype(np.float32))
        assert not array[:, :, 5:].any()
        for bound in (cache.inputs()[f"past_{name}"], cache.outputs()[f"present_{name}"]):
            assert bound.ctypes.data == array.ctypes.data
            assert bound.shape == array.shape


def test_rows_of_a_cache_are_sequences_of_their_own() -> None:
    cache = KVCache(layers=1, batch=2, kv_heads=3, head_dim=4, capacity=5, dtype=np.int8)
    rng = np.random.default_rng(0)
    for array in cache.arrays.values():
        array[:] = rng.integers(-127, 128, array.shape)
    before = {name: array.copy() for name, array in cache.arrays.items()}
    cache.grow(7, rows=4)
    assert (cache.rows, cache.capacity) == (4, 7)
    cache.move(1, 3, 2)
    blocks = cache.read(0, 4)
    cache.write(2, blocks)
    for block, (name, array) in zip(blocks, cache.arrays.items(), strict=True):
        np.testing.assert_array_equal(array[:2, :, :5], before[name])
        np.testing.assert_array_equal(array[3, :, :2], before[name][1, :, :2])
        np.testing.assert_array_equal(array[2, :, :4], before[name][0, :, :4])
        assert not array[3, :, 2:].any()
        assert not array[2, :, 4:].any()
        assert not np.shares_memory(block, array)
    some = cache.inputs(1, 3)["past_key.0"]
    assert some.shape == (2, 3, 7, 4)
    assert some.flags.c_contiguous
    assert np.shares_memory(some, cache.arrays["key.0"][1:3])
