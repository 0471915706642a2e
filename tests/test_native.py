"""Compiled kernels against plain arithmetic in NumPy, alone and beside others, and when an engine has them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import kernels
from accelerator.cache import ContentCache, default_root
from accelerator.codec import layers
from accelerator.engines.reference import ReferenceAdapter
from accelerator.errors import BadOutput, InvalidOption, SessionError
from accelerator.export.component import Export, export_component
from accelerator.export.graph.dual_ar import (
    DualARSpec,
    KVRanges,
    TransformerSpec,
    build_fast,
    build_slow,
    rope_tables,
)
from accelerator.export.graph.quantize import BY_ROW, RECIPES, Recipe, dequantize_blocks
from accelerator.export.graph.stored import stored
from accelerator.inference import transformer as decode
from accelerator.inference.batcher import DualARDecoder
from accelerator.inference.compiled import NativeBinding, NativeSession
from accelerator.inference.frame_loop import CodeLoop
from accelerator.inference.sampling import Sampler, SamplingRule
from accelerator.inference.transformer import Transformer
from accelerator.kernels import compiler, descriptors, features
from accelerator.kernels.llm.team import Team
from accelerator.parts import language_model
from accelerator.parts.language_model import LANGUAGE_MODEL, language_model_components, load_language_model
from accelerator.runtime.options import RunOptions
from accelerator.speech import SamplingParams

pytestmark = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")

STACK = TransformerSpec(
    dim=96, layers=2, heads=4, kv_heads=2, head_dim=32, ffn=144, eps=1e-5, rope_base=1e4, positions=300
)
SPEC = DualARSpec(
    slow=STACK, fast=replace(STACK, positions=4), codebooks=4, codebook_size=32, semantic_begin=40, semantic_end=76,
    end_id=3, fast_codes=29, fast_input="pre_norm", scale_codebook_embeddings=False,
)  # fmt: skip
INT4_FLOAT_CACHE = replace(RECIPES["int4"], kv_bits=32)


def varied(spec: DualARSpec = SPEC, **changes: Any) -> DualARSpec:
    """The spec with both stacks changed."""
    slow = replace(spec.slow, **changes)
    return replace(spec, slow=slow, fast=replace(slow, positions=spec.fast.positions))


class Weights:
    """Random weights by the graphs' names."""

    def __init__(self, spec: DualARSpec) -> None:
        self._spec, self._made = spec, dict[str, np.ndarray]()

    def __call__(self, name: str) -> np.ndarray:
        if name not in self._made:
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            shape = self._shape(name)
            values = rng.standard_normal(shape) / np.sqrt(shape[-1]) if len(shape) == 2 else 1 + rng.random(shape)
            self._made[name] = (values if not name.endswith("bias") else values - 1.5).astype(np.float32)
        return self._made[name]

    def _shape(self, name: str) -> tuple[int, ...]:
        stack = getattr(self._spec, name.split(".")[0].removesuffix("_in"))
        dim, ffn, size = stack.dim, stack.ffn, stack.head_dim
        qkv = (stack.heads + 2 * stack.kv_heads) * size
        heads = {"slow.head": len(self._spec.rows), "fast.head": self._spec.fast_codes}
        if name in heads:
            return heads[name], dim
        if name.startswith("fast_in"):
            return (self._spec.fast.dim,) if name.endswith("bias") else (self._spec.fast.dim, self._spec.slow.dim)
        part = name.split(".", 2)[-1]
        shapes = {"qkv": (qkv, dim), "out": (dim, stack.heads * size), "gate": (ffn, dim), "up": (ffn, dim)}
        shapes |= {"down": (dim, ffn), "qkv.bias": (qkv,), "out.bias": (dim,), "q_norm": (size,), "k_norm": (size,)}
        return shapes.get(part, (dim,))


def ranges(spec: DualARSpec) -> KVRanges:
    shape = spec.slow.layers, spec.slow.kv_heads, spec.slow.head_dim
    rng = np.random.default_rng(5)
    return KVRanges(*(2 + rng.random(shape).astype(np.float32) for _ in range(2)))


def build(directory: Path, spec: DualARSpec, recipe: Recipe) -> Path:
    directory.mkdir(exist_ok=True)
    build_slow(directory, spec, Weights(spec), recipe, ranges(spec) if recipe.kv_bits == 8 else None)
    build_fast(directory, spec, Weights(spec), recipe)
    return directory


def transformer(directory: Path, spec: DualARSpec, rows: int, *, graph: str = "slow", threads: int = 2) -> Transformer:
    session = NativeSession(directory / f"{graph}.onnx", spec, Team(threads))
    outputs = {"slow": {"logits": len(spec.rows), "hidden": spec.fast.dim}, "fast": {"logits": spec.fast_codes}}
    return Transformer(session, getattr(spec, graph), outputs[graph], rows, 16)


def run(model: Transformer, x: np.ndarray, begin: int = 0) -> dict[str, np.ndarray]:
    """x [B, S, D] through rows begin, begin + 1, ...; copies of their outputs."""
    end = begin + len(x)
    model.input(x.shape[1], begin, end)[:] = x
    return {name: array[begin:end].copy() for name, array in model.step(x.shape[1], begin, end).items()}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Plain:
    """What the kernels say they compute, for one sequence: float64, but for the levels that they round to."""

    def __init__(self, directory: Path, spec: DualARSpec, graph: str = "slow") -> None:
        self.spec, self.stack, self.name = spec, getattr(spec, graph), graph
        self.w = stored(directory / f"{graph}.onnx")

    def matrix(self, name: str) -> tuple[np.ndarray, int]:
        bits = 4 if f"{name}.q4" in self.w else 8
        levels = self.w[f"{name}.q{bits}"]
        block, scales = levels.shape[2] * 8 // bits, self.w[f"{name}.scales"].reshape(levels.shape[:2])
        points = self.w.get(f"{name}.zero_points")
        points = None if points is None else points.reshape(len(levels), -1)
        largest = np.abs(scales).max(axis=1, keepdims=True)
        scales = (scales / largest).astype(np.float16).astype(np.float64) * largest
        return dequantize_blocks(levels, scales, points, bits, levels.shape[1] * block), block

    def product(self, x: np.ndarray, name: str) -> np.ndarray:
        weight, block = self.matrix(name)
        padded = np.zeros((len(x), weight.shape[1]))
        padded[:, : x.shape[1]] = x
        parts = padded.reshape(len(x), -1, block)
        largest = np.abs(parts).max(axis=2, keepdims=True)
        levels = np.floor(parts * np.divide(127, largest, out=np.zeros_like(largest), where=largest > 0) + 0.5)
        y = (levels * largest / 127).reshape(len(x), -1) @ weight.T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def norm(self, x: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
        return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + self.stack.eps) * weight

    def rotate(self, x: np.ndarray) -> np.ndarray:
        cos, sin = (table[: len(x), None] for table in rope_tables(self.stack))
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape)

    def __call__(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """[S, D] -> the answers at the last position."""
        stack, length = self.stack, len(x)
        heads, kv, size = stack.heads, stack.kv_heads, stack.head_dim
        for i in range(stack.layers):
            name = f"{self.name}.{i}"
            qkv = self.product(self.norm(x, self.w[f"{name}.attention_norm"]), f"{name}.qkv")
            q, k, v = np.split(qkv.reshape(length, -1, size), [heads, heads + kv], axis=1)
            if stack.qk_norm:
                both = self.norm(np.concatenate([q, k], axis=1), self.w[f"{name}.qk_norm"].reshape(-1, size))
                q, k = both[:, :heads], both[:, heads:]
            q, k = self.rotate(q), self.rotate(k)
            if f"{name}.key_scale" in self.w:
                k, v = (
                    np.clip(np.floor(z / s + 0.5), -128, 127) * s
                    for z, s in ((k, self.w[f"{name}.key_scale"][:, 0]), (v, self.w[f"{name}.value_scale"][:, 0]))
                )
            k, v = (np.repeat(z, heads // kv, axis=1) for z in (k, v))
            scores = np.einsum("shd,thd->hst", q, k) / np.sqrt(size)
            scores += np.where(np.tril(np.ones((length, length))), 0, -np.inf)
            shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
            attended = np.einsum("hst,thd->shd", shares / shares.sum(axis=-1, keepdims=True), v)
            x = x + self.product(attended.reshape(length, -1), f"{name}.out")
            gate, up = np.split(self.product(self.norm(x, self.w[f"{name}.ffn_norm"]), f"{name}.gate_up"), 2, axis=1)
            x = x + self.product(gate / (1 + np.exp(-gate)) * up, f"{name}.down")
        x = x[-1:]
        normed = self.norm(x, self.w[f"{self.name}.norm"])
        answers = {"logits": self.product(normed, f"{self.name}.head")[0]}
        if self.name == "slow":
            hidden = x if self.spec.fast_input == "pre_norm" else normed
            answers["hidden"] = (self.product(hidden, "fast_in") if self.spec.fast_projection else hidden)[0]
        return answers


def distance(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest difference of any answer, as a share of its largest value."""
    assert got.keys() == expected.keys()
    return max(np.abs(got[name][0] - value).max() / np.abs(value).max() for name, value in expected.items())


@pytest.mark.parametrize(
    ("recipe", "spec"),
    [
        pytest.param(RECIPES["int4"], SPEC, id="int4"),
        pytest.param(RECIPES["int8"], SPEC, id="int8"),
        pytest.param(INT4_FLOAT_CACHE, SPEC, id="float cache"),
        pytest.param(Recipe(bits=4, block=32, head_bits=8, head_block=32, kv_bits=8), SPEC, id="blocks of 32"),
        pytest.param(Recipe(bits=8, block=256, head_bits=8, head_block=256), SPEC, id="blocks of 256"),
        pytest.param(RECIPES["int4"], varied(heads=6), id="three queries a key"),
        pytest.param(INT4_FLOAT_CACHE, varied(heads=3, kv_heads=3, head_dim=80), id="one, and 80 dimensions"),
        pytest.param(RECIPES["int4"], varied(heads=8, head_dim=128), id="four, and 128 dimensions"),
        pytest.param(RECIPES["int4"], varied(heads=1, kv_heads=1, head_dim=16), id="one head for two threads"),
        pytest.param(RECIPES["int8"], varied(qk_norm=True, rope_bf16=True), id="norms of heads"),
        pytest.param(RECIPES["int4"], varied(qkv_bias=True, out_bias=True), id="biases"),
        pytest.param(RECIPES["int4"], replace(SPEC, fast_input="post_norm"), id="post-norm"),
        pytest.param(
            RECIPES["int8"],
            replace(SPEC, fast_projection=True, fast=replace(SPEC.fast, dim=80)),
            id="projection",
        ),
    ],
)
def test_they_compute_what_the_formulas_say(recipe: Recipe, spec: DualARSpec, tmp_path: Path) -> None:
    build(tmp_path, spec, recipe)
    plain, plain_fast = Plain(tmp_path, spec), Plain(tmp_path, spec, "fast")
    far, far_fast = [], []
    for seed in range(5):
        x = noise(21, spec.slow.dim, seed=seed)
        model = transformer(tmp_path, spec, 1)
        run(model, x[None, :18])
        for n in (18, 19):
            run(model, x[None, n : n + 1])
        far.append(distance(run(model, x[None, 20:]), plain(x)))
        fast, codes = transformer(tmp_path, spec, 1, graph="fast"), noise(4, spec.fast.dim, seed=seed)
        run(fast, codes[None, :2])
        run(fast, codes[None, 2:3])
        far_fast.append(distance(run(fast, codes[None, 3:]), plain_fast(codes)))
    # In one of some tens of thousands of values float32 and float64 fall on two sides of a level.
    assert np.median(far) < 1e-4
    assert np.median(far_fast) < 1e-4
    assert max(*far, *far_fast) < 0.1


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("graphs"), SPEC, RECIPES["int4"])


def test_a_rows_answer_is_the_same_whatever_is_beside_it(built: Path) -> None:
    prompts = [noise(1, 3 + n, STACK.dim, seed=n) for n in range(13)]
    x = noise(13, 1, STACK.dim, seed=99)
    together = transformer(built, SPEC, 13)
    for n, prompt in enumerate(prompts):
        run(together, prompt, n)
    answers = run(together, x)
    for n, prompt in enumerate(prompts):
        alone = transformer(built, SPEC, 1, threads=1 + n % 3)
        run(alone, prompt)
        for name, value in run(alone, x[n : n + 1]).items():
            np.testing.assert_array_equal(value[0], answers[name][n])


def test_a_prompt_is_what_its_pieces_are(built: Path) -> None:
    x = noise(1, 150, STACK.dim)  # more than are run together
    whole, pieces = transformer(built, SPEC, 1), transformer(built, SPEC, 1, threads=1)
    answer = run(whole, x)
    for begin, end in ((0, 51), (51, 60), (60, 142), (142, 150)):
        last = run(pieces, x[:, begin:end])
    for name, value in answer.items():
        np.testing.assert_array_equal(value, last[name])
    for name, array in whole.cache.arrays.items():
        np.testing.assert_array_equal(array[:, :, :150], pieces.cache.arrays[name][:, :, :150])


@pytest.mark.parametrize("recipe", [RECIPES["int4"], INT4_FLOAT_CACHE], ids=["int8 cache", "float cache"])
@pytest.mark.parametrize("spec", [SPEC, varied(heads=6, head_dim=48), varied(heads=2, head_dim=16)])
def test_a_prompt_is_nearly_what_its_steps_are(spec: DualARSpec, recipe: Recipe, tmp_path: Path) -> None:
    """Eight positions are attended to at a time, so that sums have another order."""
    build(tmp_path, spec, recipe)
    far = []
    for seed in range(5):
        x = noise(1, 37, spec.slow.dim, seed=seed)
        whole, steps = transformer(tmp_path, spec, 1), transformer(tmp_path, spec, 1)
        answer = run(whole, x)
        for n in range(37):
            last = run(steps, x[:, n : n + 1])
        far.append(distance(answer, {name: value[0] for name, value in last.items()}))
    assert np.median(far) < 1e-4
    assert max(far) < 0.1


def test_long_prompts_of_several_rows_are_those_of_each(built: Path) -> None:
    x = noise(2, 70, STACK.dim)
    both = run(transformer(built, SPEC, 2), x)
    for n in range(2):
        for name, value in run(transformer(built, SPEC, 1), x[n : n + 1]).items():
            np.testing.assert_array_equal(value[0], both[name][n])


def test_what_is_no_number_is_seen(built: Path) -> None:
    model = transformer(built, SPEC, 2)
    x = noise(2, 1, STACK.dim)
    x[0, 0, 7] = np.nan
    answers = run(model, x)
    assert not np.isfinite(answers["logits"][0]).any()
    assert np.isfinite(answers["logits"][1]).all()


@pytest.mark.parametrize(
    ("spec", "recipe"),
    [
        (varied(head_dim=24), RECIPES["int4"]),
        (varied(ffn=100), RECIPES["int4"]),
        (SPEC, RECIPES["fp32"]),
        (SPEC, BY_ROW),
        (SPEC, Recipe(bits=4, block=16, head_bits=8)),
    ],
)
def test_what_they_are_not_made_for_is_refused(spec: DualARSpec, recipe: Recipe, tmp_path: Path) -> None:
    build(tmp_path, spec, recipe)
    with pytest.raises(SessionError, match=r"slow\.onnx cannot be run by compiled kernels"):
        NativeSession(tmp_path / "slow.onnx", spec, Team(1))


def test_damaged_files_are_refused(built: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.onnx").write_bytes((built / "slow.onnx").read_bytes())
    with pytest.raises(SessionError):
        NativeSession(tmp_path / "slow.onnx", SPEC, Team(1))  # no data beside it
    (tmp_path / "slow.onnx").write_bytes(b"no graph")
    with pytest.raises(SessionError):
        NativeSession(tmp_path / "slow.onnx", SPEC, Team(1))


def test_threads_take_turns_and_sleep_between(built: Path) -> None:
    session = NativeSession(built / "slow.onnx", SPEC, Team(3))
    outputs = {"logits": len(SPEC.rows), "hidden": SPEC.fast.dim}
    x, found = noise(4, 1, 3, STACK.dim), [list[np.ndarray]() for _ in range(4)]

    def speak(n: int) -> None:
        for pause in (0, 0, 0.002, 0.05):
            model = Transformer(session, STACK, outputs, 1, 16)
            time.sleep(pause)  # long enough for the helpers to fall asleep
            found[n].append(run(model, x[n])["logits"])

    threads = [threading.Thread(target=speak, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(4):
        alone = run(Transformer(session, STACK, outputs, 1, 16), x[n])["logits"]
        assert len(found[n]) == 4
        for answer in found[n]:
            np.testing.assert_array_equal(answer, alone)


def test_helpers_end_with_their_team(built: Path) -> None:
    before = set(threading.enumerate())
    model = transformer(built, SPEC, 1, threads=3)
    run(model, noise(1, 1, STACK.dim))
    helpers = set(threading.enumerate()) - before
    assert len(helpers) == 2
    del model
    gc.collect()
    for helper in helpers:
        helper.join(10)
        assert not helper.is_alive()


def team_of(model: Transformer) -> tuple[Team, np.ndarray]:
    """A model's team and its counters, once it has run."""
    team = model._session.team  # type: ignore[union-attr]
    assert team._control is not None
    return team, team._control


def hold(control: np.ndarray, threads: int) -> None:
    """Have so many threads share all steps from now on."""
    control[descriptors.NOW], control[descriptors.AGAIN] = threads, np.iinfo(np.int64).max


def test_answers_do_not_depend_on_how_many_threads_share_a_step(built: Path) -> None:
    """From one step to the next, and so under a seed, too."""
    alone, shared = transformer(built, SPEC, 3, threads=1), transformer(built, SPEC, 3, threads=5)
    x = noise(60, 3, 1, STACK.dim)
    for model in (alone, shared):
        for row in range(3):
            run(model, noise(1, 20 + 60 * row, STACK.dim, seed=row), row)
    _, control = team_of(shared)
    for n in range(60):
        threads, before = (5, 2, 1, 3, 4, 1, 5)[n % 7], int(control[descriptors.TICKET])
        hold(control, threads)
        answers = run(shared, x[n])
        assert control[descriptors.TICKET] == (
            before if threads == 1 else (before // descriptors.MANY + 1) * descriptors.MANY + threads
        )
        for name, value in run(alone, x[n]).items():
            np.testing.assert_array_equal(value, answers[name])
    for name, array in alone.cache.arrays.items():
        np.testing.assert_array_equal(array, shared.cache.arrays[name])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_threads_that_have_no_core_sleep_and_fewer_share_a_step(built: Path) -> None:
    """Two threads on one core took a slice of the scheduler's for each barrier: a hundred times as long."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # of this thread, and those that it starts
    try:
        x, one, two = noise(1, 1, STACK.dim), *(transformer(built, SPEC, 1, threads=n) for n in (1, 2))
        shares, seconds = set(), {one: 0.0, two: 0.0}
        for _ in range(200):
            for model in (one, two):
                start = time.perf_counter()
                run(model, x)
                seconds[model] += time.perf_counter() - start
            shares.add(team_of(two)[0].sharing)
    finally:
        os.sched_setaffinity(0, cores)
    assert 1 in shares
    assert seconds[two] < 10 * seconds[one]


def test_more_threads_are_tried_after_a_while(built: Path) -> None:
    model, x = transformer(built, SPEC, 1, threads=4), noise(1, 1, STACK.dim)
    run(model, x)
    _, control = team_of(model)
    hold(control, 1)
    ticket = control[descriptors.TICKET]
    run(model, x)
    assert control[descriptors.TICKET] == ticket  # nobody else was asked
    control[descriptors.PENALTY] = 0
    for expected in (2, 4, 4):
        control[descriptors.NOW], control[descriptors.AGAIN] = max(1, expected // 2), 0
        run(model, x)
        assert control[descriptors.TICKET] % descriptors.MANY == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_during_a_step_has_a_team_of_its_own(built: Path) -> None:
    model, x = transformer(built, SPEC, 1), noise(1, 1, STACK.dim)
    run(model, x)
    team, _ = team_of(model)
    context = multiprocessing.get_context("fork")
    with team._lock:  # as another thread's step has
        child = context.Process(target=_step, args=(model, x))
        child.start()
        child.join(60)
    if child.exitcode is None:
        child.kill()
        child.join()
    assert child.exitcode == 0


def _step(model: Transformer, x: np.ndarray) -> None:
    answer = run(model, x)
    os._exit(0 if np.isfinite(answer["logits"]).all() and team_of(model)[0].sharing else 1)


# In an engine


@pytest.fixture(scope="module")
def adapter(tiny: Any) -> ReferenceAdapter:
    return ReferenceAdapter(tiny)


def exported(adapter: ReferenceAdapter, root: Path, precision: str = "int8") -> dict[str, Export]:
    components = language_model_components(*adapter.backbone(), lambda: "0" * 64, adapter._trace, prefill=False)
    return {
        component.name: export_component(component, wanted, ContentCache(root), proof="warn")
        for component, wanted in zip(components, ("fp32", precision), strict=True)
    }


@pytest.fixture(scope="module")
def found(adapter: ReferenceAdapter, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Export]:
    return exported(adapter, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def paths(found: dict[str, Export]) -> dict[str, Path]:
    return {name: export.path for name, export in found.items()}


def test_an_export_is_proven_with_them_too(found: dict[str, Export]) -> None:
    report = found[LANGUAGE_MODEL].proof
    assert report["compiled"]["passed"] is True
    assert report["compiled"]["frames"] == report["frames"] > 0
    assert report["compiled"]["kl"] != report["kl"], "other rounding"
    assert language_model.is_compiled(report)


def test_kernels_that_answer_otherwise_are_not_used(
    adapter: ReferenceAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind = NativeBinding.run

    def wrong(self: Any) -> None:
        bind(self)
        self._arrays["logits"] *= -1

    monkeypatch.setattr(NativeBinding, "run", wrong)
    report = exported(adapter, tmp_path)[LANGUAGE_MODEL].proof
    assert (report["passed"], report["compiled"]["passed"]) == (True, False)
    assert not language_model.is_compiled(report)


def test_where_there_are_none_the_same_export_runs_as_before(
    found: dict[str, Export], adapter: ReferenceAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "available", lambda: False)
        without = exported(adapter, tmp_path)
    assert "compiled" not in without[LANGUAGE_MODEL].proof
    assert not language_model.is_compiled(without[LANGUAGE_MODEL].proof)
    assert without[LANGUAGE_MODEL].entry.key == found[LANGUAGE_MODEL].entry.key
    paths = {name: export.path for name, export in without.items()}
    assert len(spoken(load_language_model(paths, RunOptions()), adapter, [1])[0]) == 6


def test_float32_has_none(adapter: ReferenceAdapter, tmp_path: Path) -> None:
    assert not language_model.is_compiled(exported(adapter, tmp_path, "fp32")[LANGUAGE_MODEL].proof)


def spoken(decoder: DualARDecoder, adapter: Any, seeds: list[int], batching: Any = "invariant") -> list[np.ndarray]:
    streams = []
    for seed in seeds:
        params = SamplingParams(temperature=0.7, top_p=0.8, top_k=30, seed=seed, repetition_penalty=1.0)
        prompt = adapter.engine.encode_text("word " * (seed + 1))
        streams.append(decoder.generate(prompt, adapter.sampler(params), 6, batching=batching))
    taken = [[next(stream)] for stream in streams]
    for stream, own in zip(streams, taken, strict=True):
        own.extend(stream)
    return [np.stack(own) for own in taken]


def test_seeds_need_no_empty_row(
    paths: dict[str, Path], adapter: ReferenceAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = load_language_model(paths, RunOptions(threads=2, backend="native"))
    widths, step = set(), decode.Transformer.step

    def spy(self: Any, length: int, begin: int = 0, end: int | None = None, **options: Any) -> Any:
        widths.add((self.rows if end is None else end) - begin)
        return step(self, length, begin, end, **options)

    alone = [spoken(decoder, adapter, [seed], batching)[0] for seed in range(3) for batching in ("invariant", "off")]
    monkeypatch.setattr(decode.Transformer, "step", spy)
    together = spoken(decoder, adapter, [0, 1, 2])
    assert 3 in widths
    assert 4 not in widths
    for n, frames in enumerate(together):
        np.testing.assert_array_equal(frames, alone[2 * n])
        np.testing.assert_array_equal(frames, alone[2 * n + 1])


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("threads", [1, min(3, max(2, os.cpu_count() or 1))])  # more than there are only wait
def test_a_frame_in_one_call_is_what_its_steps_are(
    paths: dict[str, Path], adapter: ReferenceAdapter, threads: int, penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = SamplingRule(repetition="both", window=8, penalised="oldest_frame")
    runs, run = [], CodeLoop.run

    def spy(self: Any, draws: Any, filled: int) -> Any:
        runs.append(len(draws))
        if len(runs) % 3 == 0:
            time.sleep(0.005)  # the helpers are asleep then
        return run(self, draws, filled)

    monkeypatch.setattr(CodeLoop, "run", spy)

    def speak(decoder: DualARDecoder, seeds: Sequence[int], temperature: float) -> list[np.ndarray]:
        streams = []
        for seed in seeds:
            params = SamplingParams(temperature=temperature, top_p=0.9, seed=seed, repetition_penalty=penalty)
            sampler = Sampler(rule, params, adapter.sampler(params).layout)
            prompt = adapter.engine.encode_text("word " * (seed + 1))
            streams.append(decoder.generate(prompt, sampler, 12, batching="invariant"))
        taken = [[next(stream)] for stream in streams]
        for stream, own in zip(streams, taken, strict=True):
            own.extend(stream)
        return [np.stack(own) for own in taken]

    for temperature in (0.0, 1.0):
        decoder = load_language_model(paths, RunOptions(threads=threads, backend="native"))
        at_once = [speak(decoder, seeds, temperature) for seeds in ([0], [1, 2, 3])]
        assert {1, 3} <= set(runs)
        with monkeypatch.context() as patched:
            patched.setattr(decode.Transformer, "is_compiled", False)
            runs.clear()
            by_steps = [speak(decoder, seeds, temperature) for seeds in ([0], [1, 2, 3])]
            assert not runs
        for ours, theirs in zip(chain(*at_once), chain(*by_steps), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert len({frame.tobytes() for frame in at_once[0][0]}) > 2


def test_codes_that_cannot_be_drawn_fail_for_their_own_row(
    paths: dict[str, Path], adapter: ReferenceAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = load_language_model(paths, RunOptions(threads=2, backend="native"))
    alone = spoken(decoder, adapter, [1])[0]
    step = decode.Transformer.step

    def broken(self: Any, length: int, begin: int = 0, end: int | None = None, **how: Any) -> Any:
        out = step(self, length, begin, end, **how)
        if self._session is decoder.stepper.codes._session and end == 2:
            out["logits"][0, 3] = np.nan
        return out

    monkeypatch.setattr(decode.Transformer, "step", broken)
    params = SamplingParams(temperature=0.7, top_p=0.8, top_k=30, repetition_penalty=1.0)
    streams = [
        decoder.generate(
            adapter.engine.encode_text("word " * (seed + 1)),
            adapter.sampler(replace(params, seed=seed)),
            6,
            batching="invariant",
        )
        for seed in (0, 1)
    ]
    first = next(streams[0])
    own = [next(streams[1])]
    with pytest.raises(BadOutput, match="codebook 1"):
        list(streams[0])
    assert len(first) == len(own[0])
    np.testing.assert_array_equal(np.stack([*own, *streams[1]]), alone)


def test_without_the_instructions_there_are_none(
    paths: dict[str, Path], adapter: ReferenceAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(features.detect(), isa=("avx2",))
    monkeypatch.setattr(features, "detect", lambda: here)
    features.available.cache_clear()
    try:
        assert not kernels.available()
        with pytest.raises(SessionError, match="AVX2"):
            compiler.function()
    finally:
        features.available.cache_clear()


def test_the_environment_can_do_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for wanted, found in (("none", False), ("AVX2", True), ("auto", True), ("", True)):
            monkeypatch.setenv("ACCELERATOR_KERNELS", wanted)
            features.available.cache_clear()
            assert kernels.available() == found
            assert not (wanted == "AVX2" and features.uses_avx512())
        monkeypatch.setenv("ACCELERATOR_KERNELS", "sse")
        features.available.cache_clear()
        with pytest.raises(InvalidOption, match="ACCELERATOR_KERNELS is 'sse'"):
            kernels.available()
    finally:
        features.available.cache_clear()


@pytest.mark.skipif(not features.uses_avx512(), reason="all tests are of AVX2 here")
def test_those_for_older_processors_compute_the_same(exports: Path) -> None:
    """What is tested here and of a codec's layers, once more in a process whose kernels use AVX2."""
    files = [Path(__file__).with_name(f"test_{name}.py") for name in ("native", "filters", "dense")]
    chosen = "formulas or beside_it or pieces or steps_are or number or int16 or quantized or scale_of or mix"
    asked = {"ACCELERATOR_KERNELS": "avx2", "ACCELERATOR_TEST_CACHE": str(exports)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-k",
        chosen,
        *map(str, files),
    ]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 30


def test_the_machine_code_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    known = compiler._object()
    monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "_compile", lambda: made.append(1) or known)
    assert [compiler._object() for _ in range(2)] == [known, known]
    assert made == [1]
    (entry,) = ContentCache(tmp_path).entries()
    assert entry.name == "kernels"


def test_a_compiler_that_fails_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def broken() -> bytes:
        asked.append(1)
        raise RuntimeError("no compiler")

    monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "_compile", broken)
    compiler._made.cache_clear()
    try:
        for _ in range(2):
            with pytest.raises(SessionError, match="no compiler"):
                compiler.function()
        x = torch.randn(1, 20, 8)
        expected = x + torch.sin(x).square()
        torch.testing.assert_close(layers.snake(x, None, torch.empty(1, 20, 8)), expected)
    finally:
        compiler._made.cache_clear()
    assert asked == [1]
    assert "no compiler" in caplog.text


def test_damaged_machine_code_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = compiler._object()
    monkeypatch.setenv("ACCELERATOR_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "_compile", lambda: known)
    compiler._kept(ContentCache(default_root())).write_bytes(b"no machine code")
    assert compiler._object() == known


# Activations of codecs


@pytest.mark.parametrize(("rows", "channels"), [(1, 7), (40, 96), (3000, 96)])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_snake_is_as_exact_as_pytorchs(rows: int, channels: int, scaled: bool, given: Any, wanted: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    x = (torch.randn(1, rows, channels, generator=generator) * 30).to(given)
    alpha = torch.rand(channels, generator=generator) + 0.5 if scaled else None
    z = x.float() if alpha is None else x.float() * alpha
    exact = z.double() + torch.sin(z.double()).square()
    got = layers.snake(x, alpha, torch.full((1, rows, channels), torch.nan, dtype=wanted))
    allowed = (2**-8 if wanted == torch.bfloat16 else 2e-7) * exact.abs() + 1e-6
    assert ((got.double() - exact).abs() <= allowed).all()


def test_snake_keeps_what_is_no_number() -> None:
    x = torch.tensor([[[1.0, torch.nan, torch.inf, -2.0]]])
    for dtype in (torch.float32, torch.bfloat16):
        got = layers.snake(x, None, torch.empty(1, 1, 4, dtype=dtype))[0, 0].float()
        assert got.isnan().tolist() == [False, True, True, False]


def test_snake_goes_on_in_pytorch_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    x, alpha = torch.randn(1, 20, 8), torch.rand(8)
    expected = layers.snake(x, alpha, torch.empty(1, 20, 8))
    monkeypatch.setattr(kernels, "snake", lambda *_, **__: False)
    torch.testing.assert_close(layers.snake(x, alpha, torch.empty(1, 20, 8)), expected)
    apart = torch.randn(1, 20, 16)[:, :, :8]  # rows that do not lie one behind the other
    monkeypatch.setattr(kernels, "snake", lambda *_, **__: pytest.fail("not for these"))
    torch.testing.assert_close(layers.snake(apart, None, torch.empty(1, 20, 8)), apart + torch.sin(apart).square())
