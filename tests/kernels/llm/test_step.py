"""A compiled step against plain arithmetic in NumPy, alone and beside others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from accelerator import kernels
from accelerator.errors import SessionError
from accelerator.export.graph.dual_ar import (
    DualARSpec,
    rope_tables,
)
from accelerator.export.graph.quantize import BY_ROW, RECIPES, Recipe, dequantize_blocks
from accelerator.export.graph.stored import stored
from accelerator.inference.compiled import NativeSession
from accelerator.kernels.llm.team import Team
from tests.kernels.llm.stacks import INT4_FLOAT_CACHE, SPEC, STACK, build, noise, run, transformer, varied

pytestmark = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")


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
