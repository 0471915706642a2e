"""The slow graph with an int8 key-value cache against the same graph with a float32 one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator.engines.reference import ReferenceAdapter
from accelerator.export.graph.dual_ar import KVRanges, build_slow
from accelerator.export.graph.quantize import BY_ROW, Recipe
from accelerator.export.graph.specs import KV_MARGIN
from accelerator.inference.transformer import Transformer
from accelerator.runtime.onnx import Session


@pytest.fixture(scope="module")
def adapter(tiny: Any) -> ReferenceAdapter:
    return ReferenceAdapter(tiny)


@pytest.fixture(scope="module")
def ranges(adapter: ReferenceAdapter) -> KVRanges:
    trace = adapter._trace()
    assert trace.key_range is not None
    assert trace.value_range is not None
    return KVRanges(trace.key_range, trace.value_range)


@pytest.fixture(scope="module")
def graphs(adapter: ReferenceAdapter, ranges: KVRanges, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Cache bits -> directory; weights are float32 in both, so that only the cache differs."""
    directories = {}
    for bits in (32, 8):
        directories[bits] = tmp_path_factory.mktemp(f"kv{bits}")
        build_slow(directories[bits], adapter._spec, adapter.backbone()[1], Recipe(kv_bits=bits), ranges)
    return directories


def transformer(graphs: dict[int, Path], adapter: ReferenceAdapter, bits: int, capacity: int = 64) -> Transformer:
    spec = adapter._spec
    outputs = {"logits": len(spec.rows), "hidden": spec.fast.dim}
    return Transformer(Session(graphs[bits] / "slow.onnx"), spec.slow, outputs, 1, capacity)


def run(model: Transformer, x: np.ndarray, chunks: list[int]) -> list[np.ndarray]:
    """Logits after each piece of x [T, D]."""
    answers, at = [], 0
    for length in chunks:
        model.input(length)[0] = x[at : at + length]
        answers.append(model.step(length)["logits"][0].copy())
        at += length
    return answers


def inputs(adapter: ReferenceAdapter, length: int, seed: int) -> np.ndarray:
    """Embedded text and frames [length, D], others than those in the trace that gave the ranges."""
    import torch

    rng, lm = np.random.default_rng(seed), adapter.engine.config.language_model
    columns = np.zeros((1, 1 + lm.codebooks, length), np.int64)
    columns[0, 0] = rng.integers(32, 127, length)
    columns[0, 1:, length // 2 :] = rng.integers(0, 32, (lm.codebooks, length - length // 2))
    columns[0, 0, length // 2 :] = columns[0, 1, length // 2 :] + lm.semantic_begin
    with torch.inference_mode():
        return np.asarray(adapter.engine.language_model.embed(torch.from_numpy(columns))[0].numpy())


def relative_error(expected: list[np.ndarray], actual: list[np.ndarray]) -> float:
    a, b = np.stack(expected), np.stack(actual)
    return float(np.linalg.norm(a - b) / np.linalg.norm(a - a.mean(axis=1, keepdims=True)))


def test_scales_hold_what_was_seen_and_what_rotation_can_make_of_it() -> None:
    keys = np.zeros((1, 2, 4), np.float32)
    keys[0, 0] = [3, 4, 0, 1]
    values = np.ones((1, 2, 4), np.float32) * 2
    key_scale, value_scale = KVRanges(keys, values).scales(0)
    assert key_scale.shape == value_scale.shape == (2, 1, 4)
    np.testing.assert_allclose(key_scale[0, 0] * 127, np.array([5, 5, 1, 1]) * KV_MARGIN, rtol=1e-6)
    np.testing.assert_allclose(value_scale * 127, 2 * KV_MARGIN, rtol=1e-6)
    assert (key_scale[1] > 0).all(), "a head that was silent in the trace may speak later"


@pytest.mark.parametrize(
    "chunks", [[20, *[1] * 12], [1] * 24, [8, 5, 3, 1, 1, 7]], ids=["prefill", "steps", "appended"]
)
def test_an_int8_cache_answers_as_a_float_one(
    graphs: dict[int, Path], adapter: ReferenceAdapter, chunks: list[int]
) -> None:
    x = inputs(adapter, sum(chunks), seed=1)
    exact = run(transformer(graphs, adapter, 32), x, chunks)
    quantized = run(transformer(graphs, adapter, 8), x, chunks)
    assert 0 < relative_error(exact, quantized) < 0.03
    np.testing.assert_array_equal(exact[0] if chunks[0] > 1 else quantized[0], quantized[0])


def test_a_prefill_fills_its_slots_and_leaves_the_others(graphs: dict[int, Path], adapter: ReferenceAdapter) -> None:
    model = transformer(graphs, adapter, 8)
    for array in model.cache.arrays.values():
        assert array.dtype == np.int8
        array[:] = 99
    model.input(10)[0] = inputs(adapter, 10, seed=2)
    model.step(10)
    for array in model.cache.arrays.values():
        assert (array[:, :, 10:] == 99).all()
        assert len(np.unique(array[:, :, :10])) > 20


def test_an_appended_prompt_fills_its_own_slots(graphs: dict[int, Path], adapter: ReferenceAdapter) -> None:
    model = transformer(graphs, adapter, 8)
    x = inputs(adapter, 15, seed=2)
    run(model, x, [10])
    before = {name: array.copy() for name, array in model.cache.arrays.items()}
    model.input(5)[0] = x[10:]
    model.step(5)
    for name, array in model.cache.arrays.items():
        changed = np.flatnonzero((array != before[name]).any(axis=(0, 1, 3)))
        assert changed.tolist() == [10, 11, 12, 13, 14]


def test_a_step_writes_one_slot_in_place(graphs: dict[int, Path], adapter: ReferenceAdapter) -> None:
    model = transformer(graphs, adapter, 8)
    x = inputs(adapter, 11, seed=3)
    run(model, x, [10])
    buffers = {name: (array, array.copy()) for name, array in model.cache.arrays.items()}
    model.input(1)[0] = x[10:]
    model.step(1)
    for name, (array, before) in buffers.items():
        assert model.cache.arrays[name] is array
        changed = np.flatnonzero((array != before).any(axis=(0, 1, 3)))
        assert changed.tolist() == [10]


def test_growing_an_int8_cache_changes_nothing(graphs: dict[int, Path], adapter: ReferenceAdapter) -> None:
    x = inputs(adapter, 40, seed=4)
    chunks = [20, *[1] * 20]
    small = transformer(graphs, adapter, 8, capacity=22)
    np.testing.assert_array_equal(run(small, x, chunks), run(transformer(graphs, adapter, 8), x, chunks))
    assert small.cache.capacity > 22


def test_a_graph_without_ranges_keeps_a_float_cache(adapter: ReferenceAdapter, tmp_path: Path) -> None:
    build_slow(tmp_path, adapter._spec, adapter.backbone()[1], Recipe(kv_bits=8), None)
    assert Session(tmp_path / "slow.onnx").inputs["past_key.0"][0] is np.float32


@pytest.mark.usefixtures("exact_sums")
@pytest.mark.parametrize("chunks", [[20, 1, 1, 1], [12, 6, 1, 1, 5, 1]], ids=["prompt", "appended"])
def test_prompts_and_steps_by_different_graphs_on_one_cache(
    adapter: ReferenceAdapter, ranges: KVRanges, tmp_path: Path, chunks: list[int]
) -> None:
    """What the prompt's graph leaves in the cache is what the other would have left, so steps go on from it."""
    spec, outputs = adapter._spec, {"logits": len(adapter._spec.rows), "hidden": adapter._spec.fast.dim}
    for name in ("slow", "prefill"):
        recipe = Recipe(kv_bits=8) if name == "slow" else BY_ROW
        build_slow(tmp_path, spec, adapter.backbone()[1], recipe, ranges, name=name)
    sessions = {name: Session(tmp_path / f"{name}.onnx") for name in ("slow", "prefill")}
    steps, prompts = (Transformer(sessions[name], spec.slow, outputs, 1, 64) for name in ("slow", "prefill"))
    prompts.cache = steps.cache
    x = inputs(adapter, sum(chunks), seed=4)
    exact = run(Transformer(sessions["slow"], spec.slow, outputs, 1, 64), x, chunks)
    answers, at = [], 0
    for length in chunks:
        model = prompts if length > 1 else steps
        model.lengths[:] = at
        model.input(length)[0] = x[at : at + length]
        answers.append(model.step(length)["logits"][0].copy())
        at += length
    assert 0 < relative_error(exact, answers) < 0.05
