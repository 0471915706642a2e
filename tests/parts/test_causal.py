"""The part that a causal language model is: what is exported, what the proof says, and how it is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import kernels
from accelerator.cache import ContentCache
from accelerator.errors import ExportError, ProofFailed
from accelerator.export.component import export_beside, export_component
from accelerator.export.graph.specs import CausalSpec
from accelerator.export.trace import Trace
from accelerator.hardware import Tier, detect
from accelerator.parts.backends import COMPILED, ONNX_RUNTIME
from accelerator.parts.causal import (
    CAUSAL,
    EMBEDDINGS,
    PREFILL,
    causal_backends,
    causal_components,
    exported_spec,
    is_float,
    load_causal,
    outside,
    stored_components,
)
from accelerator.parts.llama import record, spec_of, weight
from accelerator.parts.part import Machine
from accelerator.runtime.options import RunOptions
from tests.parts.llamas import END, VOCABULARY, drawn, made, of_transformers, prompt_of

needs_kernels = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")


@pytest.fixture(scope="module")
def model() -> Any:
    return made("qwen2")


Exported = Callable[..., tuple[dict[str, Path], dict[str, Any]]]


@pytest.fixture(scope="module")
def exported(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Exports of a model into a cache of its own: paths, and the proofs of the graph, and of one for prefill."""

    def export(precision: str, model: Any = model, spec: CausalSpec | None = None, **how: Any) -> Any:
        spec = spec or spec_of(model, END)
        components = causal_components(
            spec,
            how.pop("weights", partial(weight, model)),
            lambda: "0" * 64,
            lambda: record(model, spec, prompt_of(40), 40),
            **{"prefill": False, **how},
        )
        cache = ContentCache(tmp_path_factory.mktemp("cache"))
        made = {EMBEDDINGS: export_component(components[0], "fp32", cache)}
        made[CAUSAL] = export_component(components[1], precision, cache)
        proofs = dict(made[CAUSAL].proof)
        for component in components[2:]:
            beside = export_beside(component, made[CAUSAL], cache)
            assert beside is not None
            made[PREFILL], proofs[PREFILL] = beside, beside.proof
        return {name: each.path for name, each in made.items()}, proofs

    return export


def test_float32_says_what_transformers_says(model: Any, exported: Exported) -> None:
    paths, proof = exported("fp32")
    assert (proof["passed"], proof["frames"], proof["mismatches"], proof["outside"]) == (True, 40, 0, 0.0)
    decoder = load_causal(paths, RunOptions())
    assert drawn(decoder, prompt_of(20), 40) == of_transformers(model, prompt_of(20), 40, END)


@needs_kernels
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_ones_are_proven_on_both_backends(exported: Exported, precision: str) -> None:
    paths, proof = exported(precision)
    assert proof["passed"]
    assert proof["structure"]["passed"]
    assert proof["compiled"]["passed"]
    assert proof["kv_bits"] == proof["compiled"]["kv_bits"] == 8
    assert proof["kl"] != proof["compiled"]["kl"]
    for backend in (COMPILED, ONNX_RUNTIME):
        decoder = load_causal(paths, RunOptions(threads=2, backend=backend))
        assert decoder.stepper.invariant == (backend == COMPILED)
        assert len(drawn(decoder, prompt_of(9), 5)) >= 1


@needs_kernels
@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_what_was_written_once_is_proven_where_it_lies(
    model: Any, exported: Exported, precision: str, tmp_path: Path
) -> None:
    """By answers recorded then; the entry has no file of its own to speak of."""
    paths, proof = exported(precision)
    spec = spec_of(model, END)
    record(model, spec, prompt_of(40), 40).save(tmp_path / "trace.npz")
    folder = shutil.copytree(paths[CAUSAL], tmp_path / "folder")
    shutil.copy(paths[EMBEDDINGS] / "embeddings.npy", folder)
    (component,) = stored_components(folder, precision, str, partial(Trace.load, tmp_path / "trace.npz"))
    assert not component.in_torch
    export = export_component(component, precision, ContentCache(tmp_path / "cache"))
    again = {**export.proof, **({"structure": proof["structure"]} if precision != "fp32" else {})}
    assert again == proof
    assert sum(file.stat().st_size for file in export.path.iterdir()) < 10_000
    with pytest.raises(ExportError, match="is no trace"):
        Trace.load(folder / "embeddings.npy")


@needs_kernels
def test_compiled_kernels_are_for_exports_that_were_proven_with_them(exported: Exported) -> None:
    model = made("llama")
    spec = spec_of(model, END)
    components = causal_components(spec, partial(weight, model), str, lambda: record(model, spec, prompt_of(9), 9))
    compiled, onnx = causal_backends(components, load_causal)
    assert (compiled.name, onnx.name) == (COMPILED, ONNX_RUNTIME)
    machine = Machine(detect(), Tier("any", "int8", 2, ""), threads=2)
    assert [options.backend for options in compiled.offers(machine)] == [COMPILED]
    for precision, expected in (("int8", True), ("fp32", False)):
        export: Any = SimpleNamespace(proof=exported(precision)[1])
        assert compiled.proven(RunOptions(), {CAUSAL: export}) is expected


def test_a_head_is_cut_only_where_nothing_else_is_likely(exported: Exported) -> None:
    """A model that never says anything below 200, and one that does."""
    free = made("llama")
    cut = spec_of(free, END, ranges=((200, 318),))
    paths, proof = exported("int8", free, cut)
    kept = load_causal(paths, RunOptions()).spec
    assert len(kept.rows) == VOCABULARY, "all of the vocabulary, since it says other things, too"
    assert proof["outside"] == 0.0
    with torch.no_grad():
        bound = made("llama")
        direction = torch.ones(128)
        bound.model.norm.weight.copy_(direction)
        bound.lm_head.weight[200:] *= 12
    paths, proof = exported("fp32", bound, cut)
    kept = load_causal(paths, RunOptions()).spec
    np.testing.assert_array_equal(kept.rows, range(200, 320))
    assert 0 < proof["outside"] <= 1e-3
    with torch.inference_mode():
        logits = bound(input_ids=torch.from_numpy(prompt_of(30))[None]).logits[0, -1].numpy()
    assert drawn(load_causal(paths, RunOptions()), prompt_of(30), 1) == [int(logits.argmax())]


def test_requests_of_other_kinds_have_a_say_in_the_cut(exported: Exported) -> None:
    """Asked for only where the spec leaves ids out; one that says other things keeps the head whole."""
    bound = made("llama")
    with torch.no_grad():
        bound.model.norm.weight.fill_(1.0)
        bound.lm_head.weight[200:] *= 12
    cut, asked = spec_of(bound, END, ranges=((200, 318),)), list[str]()

    def witnesses(*models: Any) -> Callable[[], list[Trace]]:
        def record_all() -> list[Trace]:
            asked.append("")
            return [record(model, cut, prompt_of(11), 5) for model in models]

        return record_all

    def rows(spec: CausalSpec, *models: Any, **how: Any) -> tuple[int, float]:
        paths, proof = exported("fp32", bound, spec, witnesses=witnesses(*models), **how)
        return len(exported_spec(paths[CAUSAL]).rows), proof["outside"]

    kept, alone = rows(cut, bound)
    assert (kept, len(asked)) == (120, 1)
    assert 0 < alone <= 1e-3
    assert rows(cut, bound, made("llama")) == (VOCABULARY, 0.0)
    assert rows(cut, bound, outside=alone / 2) == (VOCABULARY, 0.0)
    asked.clear()
    assert rows(spec_of(bound, END), made("llama")) == (VOCABULARY, 0.0)
    assert not asked


def test_what_is_quantized_is_known_of_an_export(exported: Exported) -> None:
    assert [is_float(exported(precision)[0][CAUSAL]) for precision in ("fp32", "int8")] == [True, False]


def test_what_is_outside_of_a_head() -> None:
    logits = np.log(np.array([[0.2, 0.3, 0.5], [0.05, 0.9, 0.05]], np.float32))
    assert outside(logits, np.array([1, 2])) == pytest.approx(0.2)
    assert outside(logits, np.array([0, 1])) == pytest.approx(0.5)
    assert outside(logits, np.arange(3)) == 0.0


def test_keys_that_an_int8_cache_cannot_hold_get_a_float_one(exported: Exported) -> None:
    """Large biases of keys, as trained Qwen2 models have them: an int8 cache rounds by the largest magnitude."""
    model = made("qwen2")
    assert exported("int8", model)[1]["kv_bits"] == 8
    with torch.no_grad():
        for layer in model.model.layers:  # of the pair that turns slowest, where attention hardly sees them
            bias = layer.self_attn.k_proj.bias.view(2, 32)
            bias[:, 15] += 150
            bias[:, 31] -= 150
    paths, proof = exported("int8", model)
    assert (proof["passed"], proof["kv_bits"]) == (True, 32)
    assert load_causal(paths, RunOptions()).stepper.graph.inputs["past_key.0"][0] is np.float32


def test_a_wrong_graph_is_not_published(model: Any, exported: Exported) -> None:
    """Weights for paired halves, taken for neighbours; and biases that are lost."""
    with pytest.raises(ProofFailed, match="not faithful"):
        exported("int4", spec=replace(spec_of(model, END), half_split=False))

    def lost(name: str) -> np.ndarray:
        return weight(model, name) * (0 if name.endswith("bias") else 1)

    with pytest.raises(ProofFailed, match="not faithful"):
        exported("int8", weights=lost)


@pytest.mark.skipif(
    not {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"} & set(detect().isa), reason="8-bit sums may saturate here"
)
def test_prompts_by_the_graph_in_integers_are_proven_too(exported: Exported) -> None:
    paths, proof = exported("int8", prefill=True)
    assert proof[PREFILL]["passed"]
    assert proof[PREFILL]["prompts"]["kl"] != proof[PREFILL]["all"]["kl"]
    decoder = load_causal(paths, RunOptions())
    assert decoder.stepper.prefill_graph is not None
    assert decoder.stepper.prefill_graph[0].path.stem == "prefill_causal"
    assert json.loads((paths[CAUSAL] / "spec.json").read_text())["half_split"] is True
    assert len(drawn(decoder, prompt_of(30), 6)) == 6
