"""The yardstick must be the same model: llama.cpp's logits against the slow graph's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from accelerator.benchmark import BenchOptions, llama_cpp, yardstick
from accelerator.benchmark.llama_cpp import Graphs, LlamaCpp, compare, write_gguf
from accelerator.cli import app
from accelerator.errors import EngineError, ExportError, ProofFailed
from accelerator.export.graph.causal import build_causal
from accelerator.export.graph.dual_ar import DualARSpec, TransformerSpec, build_slow
from accelerator.export.graph.quantize import RECIPES
from accelerator.export.graph.specs import CausalSpec
from accelerator.inference.transformer import Transformer
from accelerator.runtime.onnx import Session
from accelerator.runtime.options import RunOptions

needs_llama_cpp = pytest.mark.skipif(llama_cpp.missing() is not None, reason=str(llama_cpp.missing()))
STACK = TransformerSpec(
    dim=64, layers=2, heads=4, kv_heads=2, head_dim=32, ffn=96, eps=1e-6, rope_base=1e4, positions=128, qk_norm=True
)
SPEC = DualARSpec(STACK, replace(STACK, positions=4), 4, 32, 300, 331, 299, 32, "pre_norm", True)


def weights(name: str, stack: TransformerSpec = STACK) -> np.ndarray:
    """Seeded by the name, so that every caller sees the same."""
    rng, part = np.random.default_rng(list(name.encode())), name.split(".")[-1]
    width = stack.heads * stack.head_dim
    packed = width + 2 * stack.kv_heads * stack.head_dim
    shapes = {
        "qkv": (packed, STACK.dim),
        "bias": (packed,),
        "out": (STACK.dim, width),
        "gate": (STACK.ffn, STACK.dim),
        "up": (STACK.ffn, STACK.dim),
        "down": (STACK.dim, STACK.ffn),
        "head": (len(SPEC.rows), STACK.dim),
        "q_norm": (stack.head_dim,),
        "k_norm": (stack.head_dim,),
    }
    shape = shapes.get(part, (STACK.dim,))
    if len(shape) == 2:
        return rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[1]))
    return (1 + 0.2 * rng.standard_normal(shape)).astype(np.float32)


@needs_llama_cpp
@pytest.mark.parametrize("flash", [None, False])
@pytest.mark.parametrize("changes", [{}, {"qk_norm": False}, {"qk_norm": False, "qkv_bias": True}], ids=str)
def test_its_logits_are_ours(tmp_path: Path, changes: dict[str, Any], flash: bool | None) -> None:
    spec = replace(SPEC, slow=replace(STACK, **changes))
    build_slow(tmp_path, spec, weights, RECIPES["fp32"])
    outputs = {"logits": len(spec.rows), "hidden": spec.fast.dim}
    slow = Transformer(Session(tmp_path / "slow.onnx"), spec.slow, outputs, 1, 64)
    with LlamaCpp(spec, weights, "f32", threads=1, positions=64, flash=flash) as other:
        for seed, length in enumerate((11, 1, 1, 4)):
            x = np.random.default_rng(seed).standard_normal((length, STACK.dim)).astype(np.float32)
            slow.input(length)[0] = x
            expected = slow.step(length)["logits"][0]
            assert np.abs(expected).max() > 0.5, "the bound would say nothing"
            np.testing.assert_allclose(other.step(x), expected, atol=5e-3)  # its key-value cache is float16


@needs_llama_cpp
@pytest.mark.parametrize("changes", [{"qkv_bias": True}, {}, {"qk_norm": True}], ids=str)
def test_a_causal_models_logits_are_ours(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Models of transformers rotate halves; a part of the vocabulary is in the head."""
    stack = replace(STACK, head_dim=16, qk_norm=False)
    spec = CausalSpec(replace(stack, **changes), ((20, 50), (90, 100)), (7,), half_split=True)

    def own(name: str) -> np.ndarray:
        if name.endswith("head"):
            return np.random.default_rng(1).standard_normal((120, STACK.dim)).astype(np.float32) / 8
        return weights(name, spec.stack)

    build_causal(tmp_path, spec, own, RECIPES["fp32"])
    ours = Transformer(Session(tmp_path / "causal.onnx"), spec.stack, {"logits": len(spec.rows)}, 1, 64)
    with LlamaCpp(spec, own, "f32", threads=1, positions=64) as other:
        for seed, length in enumerate((11, 1, 4)):
            x = np.random.default_rng(seed).standard_normal((length, STACK.dim)).astype(np.float32)
            ours.input(length)[0] = x
            expected = ours.step(length)["logits"][0]
            assert np.abs(expected).max() > 0.5, "the bound would say nothing"
            np.testing.assert_allclose(other.step(x), expected, atol=5e-3)


@needs_llama_cpp
@pytest.mark.parametrize(("kind", "bound"), [("f16", 2e-3), ("q8_0", 0.03), ("q4_0", 0.3)])
def test_quantized_kinds_stay_near(kind: llama_cpp.Kind, bound: float) -> None:
    x = np.random.default_rng(0).standard_normal((9, STACK.dim)).astype(np.float32)
    with LlamaCpp(SPEC, weights, "f32", threads=1, positions=16) as exact:
        expected = exact.step(x).copy()
    with LlamaCpp(SPEC, weights, kind, threads=1, positions=16) as near:
        error = np.linalg.norm(near.step(x) - expected) / np.linalg.norm(expected)
    assert 0 < error < bound


@needs_llama_cpp
def test_it_counts_and_rewinds() -> None:
    x = np.random.default_rng(0).standard_normal((6, STACK.dim)).astype(np.float32)
    with LlamaCpp(SPEC, weights, "f32", threads=1, positions=8) as model:
        model.step(x[:5])
        first = model.step(x[5:]).copy()
        assert model.length == 6
        model.rewind(5)
        assert model.length == 5
        np.testing.assert_array_equal(model.step(x[5:]), first)
        with pytest.raises(EngineError, match="8 positions"):
            model.step(x[:3])


@needs_llama_cpp
def test_its_file_goes_with_it() -> None:
    model = LlamaCpp(SPEC, weights, "q4_0", threads=1, positions=8)
    directory = Path(model._directory.name)
    assert directory.exists()
    model.close()
    model.close()
    assert not directory.exists()


@needs_llama_cpp
def test_biases_that_it_has_no_architecture_for_are_refused(tmp_path: Path) -> None:
    spec = replace(SPEC, slow=replace(STACK, qkv_bias=True))
    with pytest.raises(EngineError, match="biases"):
        write_gguf(tmp_path / "model.gguf", spec, weights, "f32")


@needs_llama_cpp
def test_all_arms_are_timed_in_all_measures(tmp_path: Path) -> None:
    build_slow(tmp_path, SPEC, weights, RECIPES["fp32"])
    arms = {"ours": Graphs(tmp_path / "slow.onnx")}
    figures = compare(SPEC, weights, arms, RunOptions(), kinds=("q4_0",), contexts=(40, 8), rounds=3, steps=2)
    assert set(figures) == {"step_8", "step_40", "prompt_8"}
    for by_arm in figures.values():
        names = ("llama.cpp q4_0", "llama.cpp q4_0, q8_0 head")  # the latter as its own tool writes so narrow a model
        assert list(by_arm) == [*(f"{name}{note}" for name in names for note in ("", ", no flash attention")), "ours"]
        for summary in by_arm.values():
            assert summary["n"] == 3
            assert 0 < summary["min"] <= summary["median"]


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp.importlib.util, "find_spec", lambda name: None)
    assert "llama-cpp-python and gguf" in str(llama_cpp.missing())
    with pytest.raises(EngineError, match="not installed"):
        LlamaCpp(SPEC, weights, "f32", threads=1, positions=8)


QUICK = ("bench", "llama-cpp", "--quick", "--rounds", "2", "--frames", "2", "--threads", "1")


@needs_llama_cpp
def test_the_command_measures_int4_and_int8_at_every_context(exports: Path, tmp_path: Path) -> None:
    written = [tmp_path / "out.json", tmp_path / "out.md"]
    contexts = ("--context", "24", "--context", "48")
    args = [*QUICK, *contexts, "--cache-dir", exports, "--json", written[0], "--markdown", written[1]]
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    assert done.exit_code == 0, done.output
    result = json.loads(written[0].read_text())
    assert (result["kind"], result["threads"], result["errors"]) == ("accelerator-llama-cpp-benchmark", 1, {})
    assert result["plan"]["contexts"] == [24, 48]
    assert list(result["figures"]) == ["step_24", "step_48", "prompt_24"]
    files = ("q4_0", "q4_0, q8_0 head", "q8_0")
    arms = [f"llama.cpp {file}{note}" for file in files for note in ("", ", no flash attention")]
    for measure, by_arm in result["figures"].items():
        reading = [f"reading {each}" for each in ("int4", "int8") if f"reading {each}" in by_arm]
        assert set(by_arm) == {*arms, "int4", "int8", *reading}
        assert all(figures["n"] == 2 and figures["min"] > 0 for figures in by_arm.values())
        for name in reading:
            precision = name.removeprefix("reading ")
            shares = [a / b for a, b in zip(by_arm[name]["values"], by_arm[precision]["values"], strict=True)]
            assert result["shares"][measure][precision]["values"] == pytest.approx(shares)
        assert set(result["ratios_of_8_bits"][measure]) == {"int4"}
        for precision, theirs in (("int4", arms[:2]), ("int8", arms[4:])):
            best = min((by_arm[arm] for arm in theirs), key=lambda figures: figures["median"])
            times = [a / b for a, b in zip(best["values"], by_arm[precision]["values"], strict=True)]
            assert result["ratios"][measure][precision]["values"] == pytest.approx(times)
    table = written[1].read_text()
    assert done.stdout.strip() == table.strip()
    assert "| step at context 48 |" in table
    assert "| prompt of 24 positions |" in table
    assert "`int8`: times less" in table


@needs_llama_cpp
def test_a_precision_that_cannot_be_exported_is_told_of(exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = yardstick.export_component

    def without(rejected: tuple[str, ...]) -> None:
        def exported(component: Any, precision: str, *args: Any, **options: Any) -> Any:
            if precision in rejected:
                raise ProofFailed(f"{precision} is not faithful", {})
            return export(component, precision, *args, **options)

        monkeypatch.setattr(yardstick, "export_component", exported)

    options = BenchOptions(
        quick=True, precisions=("int4", "int8"), contexts=(16,), rounds=1, frames=2, cache_dir=exports
    )
    without(("int4",))
    result = yardstick.run(options, report=lambda text: None)
    assert result["errors"] == {"int4": "int4 is not faithful"}
    assert list(result["ratios"]["step_16"]) == ["int8"]
    assert "`int4` failed: int4 is not faithful" in yardstick.to_markdown(result)
    without(("int4", "int8"))
    with pytest.raises(ExportError, match="int8 is not faithful"):
        yardstick.run(options, report=lambda text: None)


def test_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp.importlib.util, "find_spec", lambda name: None)
    done = CliRunner().invoke(app, list(QUICK))
    assert done.exit_code == 1
    assert "pip install llama-cpp-python gguf" in done.stderr


@pytest.mark.parametrize("other", ["--serving", "--quality", "--svg=out.svg"])
def test_it_has_a_table_of_its_own(other: str) -> None:
    assert CliRunner().invoke(app, [*QUICK, other]).exit_code == 2
