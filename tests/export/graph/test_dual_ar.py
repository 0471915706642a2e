"""The graphs against the reference engine's PyTorch modules, on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from accelerator.engines.reference import ReferenceAdapter
from accelerator.export.graph.dual_ar import DualARSpec, build_fast, build_slow, rope_tables
from accelerator.export.graph.quantize import BY_ROW, RECIPES
from accelerator.inference.transformer import Transformer
from accelerator.reference import SIZES, ReferenceEngine
from accelerator.reference.transformer import rope_table
from accelerator.reference.weights import random_weights
from accelerator.runtime.onnx import Session

BOUND = 1e-3


class Model:
    """A tiny engine with some options changed, and its graphs."""

    def __init__(self, directory: Path, precision: str = "fp32", **options: Any) -> None:
        lm = SIZES["tiny"].language_model
        changed = {k: options.pop(k) for k in list(options) if k in ("qk_norm", "kv_heads", "rope_bf16", "layers")}
        lm = replace(lm, **{stack: replace(getattr(lm, stack), **changed) for stack in ("slow", "fast")})
        bias, projection = options.pop("bias", False), options.pop("projection", False)
        config = replace(SIZES["tiny"], language_model=replace(lm, **options))
        torch.manual_seed(3)
        self.engine = ReferenceEngine(config, *random_weights(config, seed=5))
        self.lm = self.engine.language_model
        adapter = ReferenceAdapter(self.engine)
        spec = adapter._spec
        self.extra: dict[str, np.ndarray] = {}
        self.projection = None
        if bias:
            for stack in ("slow", "fast"):
                spec = replace(spec, **{stack: replace(getattr(spec, stack), qkv_bias=True, out_bias=True)})
            self._add_biases()
        if projection:
            spec = replace(spec, fast_projection=True)
            self.projection = torch.nn.Linear(lm.slow.dim, lm.fast.dim)
            self.extra["fast_in"] = self.projection.weight.detach().numpy()
            self.extra["fast_in.bias"] = self.projection.bias.detach().numpy()
        self.spec: DualARSpec = spec
        self.weights: Callable[[str], np.ndarray] = lambda name: (
            self.extra[name] if name in self.extra else adapter.backbone()[1](name)
        )
        recipe = {**RECIPES, "by row": BY_ROW}[precision]
        build_slow(directory, spec, self.weights, recipe)
        build_fast(directory, spec, self.weights, recipe)
        self.slow_session, self.fast_session = Session(directory / "slow.onnx"), Session(directory / "fast.onnx")

    def _add_biases(self) -> None:
        for stack, layers in (("slow", self.lm.layers), ("fast", self.lm.fast_layers)):
            for i, layer in enumerate(layers):
                for name in ("qkv", "out"):
                    linear = getattr(layer.attention, name)
                    linear.bias = torch.nn.Parameter(torch.randn(linear.out_features) * 0.3)
                    self.extra[f"{stack}.{i}.{name}.bias"] = linear.bias.detach().numpy()

    def columns(self, length: int, seed: int = 0) -> torch.Tensor:
        """Text and frames, mixed: int64 [1, 1+C, length]."""
        rng, lm = np.random.default_rng(seed), self.engine.config.language_model
        columns = np.zeros((1, 1 + lm.codebooks, length), np.int64)
        columns[0, 0] = rng.integers(0, 256, length)
        frames = rng.random(length) < 0.5
        codes = rng.integers(0, 32, (lm.codebooks, frames.sum()))
        columns[0, 1:, frames] = codes.T
        columns[0, 0, frames] = codes[0] + lm.semantic_begin
        return torch.from_numpy(columns)

    def slow(self, batch: int = 1, capacity: int = 64) -> Transformer:
        outputs = {"logits": len(self.spec.rows), "hidden": self.spec.fast.dim}
        return Transformer(self.slow_session, self.spec.slow, outputs, batch, capacity)

    def fast(self, batch: int = 1) -> Transformer:
        outputs = {"logits": self.spec.fast_codes}
        return Transformer(self.fast_session, self.spec.fast, outputs, batch, self.spec.codebooks)

    @torch.inference_mode()
    def torch_slow(self, columns: torch.Tensor, cache: Any, start: int) -> tuple[np.ndarray, np.ndarray]:
        logits, hidden = self.lm.slow(columns, cache, start)
        hidden = hidden if self.projection is None else self.projection(hidden)
        return logits.numpy(), hidden.numpy()


VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "every head its own key": {"kv_heads": 4},
    "one key for all heads": {"kv_heads": 1},
    "qk_norm": {"qk_norm": True},
    "no qk_norm": {"qk_norm": False},
    "biases": {"bias": True},
    "biases, no qk_norm": {"bias": True, "qk_norm": False},
    "projection": {"projection": True},
    "post_norm": {"fast_input": "post_norm"},
    "post_norm, projection": {"fast_input": "post_norm", "projection": True},
    "codes not scaled": {"scale_codebook_embeddings": False},
    "exact cosines": {"rope_bf16": False},
    "tied": {"tie_output": True},
    "one layer": {"layers": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_prefill_append_and_decode_answer_as_pytorch(tmp_path: Path, variant: str) -> None:
    model = Model(tmp_path, **VARIANTS[variant])
    slow, cache, start = model.slow(), model.lm.slow_cache(64), 0
    for seed, length in enumerate((11, 1, 1, 4, 1, 2)):  # the 4 and the 2 are prefills onto a past
        columns = model.columns(length, seed)
        logits, hidden = model.torch_slow(columns, cache, start)
        with torch.inference_mode():
            slow.input(length)[:] = model.lm.embed(columns).numpy()
        out = slow.step(length)
        start += length
        assert slow.lengths.tolist() == [start] * slow.rows
        np.testing.assert_allclose(out["logits"], logits, atol=BOUND, err_msg=f"logits at {start}")
        np.testing.assert_allclose(out["hidden"], hidden, atol=BOUND, err_msg=f"hidden at {start}")
        assert np.abs(logits).max() > 0.5, "the bound would say nothing"


@pytest.mark.parametrize("variant", ["as it is", "qk_norm", "biases", "one key for all heads"])
def test_the_fast_model_answers_as_pytorch_in_frame_after_frame(tmp_path: Path, variant: str) -> None:
    model = Model(tmp_path, **VARIANTS[variant])
    fast, cache, rng = model.fast(), model.lm.fast_cache(), np.random.default_rng(1)
    for _ in range(3):  # each frame begins anew on the same cache
        fast.lengths[:], at = 0, 0
        for length in (2, 1, 1):
            x = rng.standard_normal((1, length, model.spec.fast.dim)).astype(np.float32)
            with torch.inference_mode():
                expected = model.lm.fast(torch.from_numpy(x), cache, at).numpy()
            fast.input(length)[:] = x
            np.testing.assert_allclose(fast.step(length)["logits"], expected, atol=BOUND)
            at += length
        assert (fast.lengths == model.spec.codebooks).all()


def test_a_batch_of_equal_lengths(tmp_path: Path) -> None:
    model = Model(tmp_path)
    slow, singles = model.slow(batch=3), [model.slow() for _ in range(3)]
    for length in (6, 1, 1):
        columns = torch.cat([model.columns(length, seed) for seed in (7 * length, 8, 9)])
        with torch.inference_mode():
            x = model.lm.embed(columns).numpy()
        slow.input(length)[:] = x
        out = {k: v.copy() for k, v in slow.step(length).items()}
        for row, single in enumerate(singles):
            single.input(length)[:] = x[row : row + 1]
            for name, value in single.step(length).items():
                np.testing.assert_allclose(out[name][row], value[0], atol=1e-5, err_msg=f"{name} {row} {length}")


def test_a_ragged_batch(tmp_path: Path) -> None:
    """Prompts of 3, 5 and 8 columns, padded behind, then decoding each at its own position."""
    model, lengths, capacity = Model(tmp_path), [3, 5, 8], 32
    stack, session = model.spec.slow, model.slow_session
    prompts = [model.columns(n, seed=n) for n in lengths]
    steps = [[model.columns(1, seed=10 * n + i) for i in range(3)] for n in lengths]
    past = {
        f"past_{kind}.{i}": np.zeros((3, stack.kv_heads, capacity, stack.head_dim), np.float32)
        for i in range(stack.layers)
        for kind in ("key", "value")
    }
    expected = []
    for prompt, further in zip(prompts, steps, strict=True):
        cache, start, answers = model.lm.slow_cache(capacity), 0, []
        for columns in (prompt, *further):
            answers.append(model.torch_slow(columns, cache, start)[0][0])
            start += columns.shape[2]
        expected.append(answers)

    def run(x: np.ndarray, last: list[int], totals: list[int]) -> np.ndarray:
        outputs = {
            "logits": np.zeros((3, len(model.spec.rows)), np.float32),
            "hidden": np.zeros((3, model.spec.fast.dim), np.float32),
            **{name.replace("past", "present"): array for name, array in past.items()},
        }
        inputs = {
            "x": x,
            "last": np.array(last, np.int64)[:, None],
            "seqlens_k": np.array(totals, np.int32) - 1,
            "total_sequence_length": np.array(max(totals), np.int32),
            **past,
        }
        session.bind(inputs, outputs).run()
        return outputs["logits"]

    x = np.zeros((3, max(lengths), stack.dim), np.float32)
    with torch.inference_mode():
        for row, prompt in enumerate(prompts):
            x[row, : lengths[row]] = model.lm.embed(prompt)[0].numpy()
        answers = run(x, [n - 1 for n in lengths], lengths)
        for row in range(3):
            np.testing.assert_allclose(answers[row], expected[row][0], atol=BOUND, err_msg=f"prefill {row}")
        for i in range(3):
            x = np.concatenate([model.lm.embed(steps[row][i]).numpy() for row in range(3)])
            answers = run(x, [0, 0, 0], [n + i + 1 for n in lengths])
            for row in range(3):
                np.testing.assert_allclose(answers[row], expected[row][i + 1], atol=BOUND, err_msg=f"{row} {i}")


@pytest.mark.parametrize(
    ("precision", "bound"),
    [("int8", 0.03), ("by row", 0.05), ("int4", 0.35)],
)
def test_quantized_graphs_stay_near(
    tmp_path: Path, precision: str, bound: float, request: pytest.FixtureRequest
) -> None:
    if precision == "by row":
        request.getfixturevalue("exact_sums")
    model = Model(tmp_path, precision)
    slow, cache, columns = model.slow(), model.lm.slow_cache(64), model.columns(40)
    logits, hidden = model.torch_slow(columns, cache, 0)
    with torch.inference_mode():
        slow.input(40)[:] = model.lm.embed(columns).numpy()
    out = slow.step(40)
    for name, expected in (("logits", logits), ("hidden", hidden)):
        error = np.linalg.norm(out[name] - expected) / np.linalg.norm(expected)
        assert 1e-6 < error < bound, name


@pytest.mark.parametrize("bf16", [False, True])
def test_rotary_tables_are_pytorchs_far_out(bf16: bool) -> None:
    stack = replace(SIZES["s1-mini"].language_model.slow, rope_bf16=bf16)
    spec = ReferenceAdapter(ReferenceEngine(SIZES["tiny"], *random_weights(SIZES["tiny"], 0)))._spec.slow
    spec = replace(spec, head_dim=stack.head_dim, rope_base=stack.rope_base, positions=8192, rope_bf16=bf16)
    cos, sin = rope_tables(spec)
    expected = rope_table(8192, stack).numpy()
    assert cos.shape == sin.shape == (8192, 64)
    assert cos.dtype == np.float32
    bound = 2**-7 if bf16 else 1e-3  # an angle of 8191 rad in float32 is known to 5e-4
    np.testing.assert_allclose(cos, expected[..., 0], atol=bound)
    np.testing.assert_allclose(sin, expected[..., 1], atol=bound)
    if bf16:
        assert not (cos.view(np.uint32) & 0xFFFF).any()
        assert (cos == expected[..., 0]).mean() > 0.99


def test_bfloat16_is_rounded_as_pytorch_does() -> None:
    from accelerator.export.graph.dual_ar import round_to_bfloat16

    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    values[:4] = [1.00390625, 1.01171875, 0.0, -1.0]  # ties go to even
    np.testing.assert_array_equal(round_to_bfloat16(values), torch.from_numpy(values).bfloat16().float().numpy())


def test_the_spec_survives_json_and_knows_its_rows_and_bytes(tmp_path: Path) -> None:
    import json

    model = Model(tmp_path)
    spec = model.spec
    assert DualARSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.rows.tolist() == list(model.engine.config.language_model.candidate_ids)
    lm = model.lm
    matrices = sum(p.numel() for layers in (lm.layers, lm.fast_layers) for p in layers.parameters() if p.ndim == 2)
    assert spec.weight_bytes == 4 * (matrices + 65 * 64 + lm.fast_output.weight.numel())


def test_only_rows_that_can_be_sampled_are_exported(tmp_path: Path) -> None:
    model = Model(tmp_path)
    graph = onnx.load(str(tmp_path / "slow.onnx"), load_external_data=False).graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    assert shapes["slow.head"] == (64, 65), "of a vocabulary of 336"
    assert {"logits", "hidden"} <= {output.name for output in graph.output}
    assert model.spec.fast_codes == 64


def test_weights_are_asked_for_one_at_a_time(tmp_path: Path) -> None:
    """An export's memory is a layer, not the model: what was handed out is let go before much more is asked for."""
    import weakref

    model = Model(tmp_path)
    alive: list[Any] = []
    most = 0

    class Array(np.ndarray):
        pass

    def weights(name: str) -> np.ndarray:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))
        array = np.array(model.weights(name)).view(Array)
        alive.append(weakref.ref(array))
        return array

    build_slow(tmp_path, model.spec, weights, RECIPES["int4"])
    assert len(alive) > 12
    assert most <= 3
