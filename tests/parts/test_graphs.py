"""Graphs for prefill beside the others: which runs they take, and who has them."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator import kernels
from accelerator.cache import ContentCache
from accelerator.engines.reference import ReferenceAdapter, examples
from accelerator.export import component
from accelerator.export.component import Export, export_beside, export_component
from accelerator.export.proof import Bar
from accelerator.hardware import detect
from accelerator.inference import transformer
from accelerator.inference.batcher import DualARDecoder
from accelerator.parts import backends, graphs, language_model
from accelerator.parts.graphs import EMBEDDINGS, LANGUAGE_MODEL, PREFILL
from accelerator.parts.language_model import language_model_components, load_language_model
from accelerator.runtime.options import RunOptions
from accelerator.speech import SamplingParams

needs_exact_sums = pytest.mark.skipif(
    not {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"} & set(detect().isa), reason="8-bit sums may saturate here"
)
pytestmark = needs_exact_sums


@pytest.fixture(scope="module")
def adapter(tiny: Any) -> ReferenceAdapter:
    return ReferenceAdapter(tiny)


def exported(
    adapter: ReferenceAdapter, cache: ContentCache, *, prefill: bool = True, precision: str = "int8"
) -> dict[str, Export]:
    tables, model, *beside = language_model_components(
        *adapter.backbone(), lambda: "0" * 64, adapter._trace, prefill=prefill
    )
    found = {
        EMBEDDINGS: export_component(tables, "fp32", cache),
        LANGUAGE_MODEL: export_component(model, precision, cache, proof="warn"),
    }
    for other in beside:
        if (export := export_beside(other, found[LANGUAGE_MODEL], cache)) is not None:
            found[other.name] = export
    return found


def loaded(exports: dict[str, Export]) -> DualARDecoder:
    return load_language_model({name: export.path for name, export in exports.items()}, RunOptions())


@pytest.fixture(scope="module")
def both(adapter: ReferenceAdapter, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Export]:
    return exported(adapter, ContentCache(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def decoder(both: dict[str, Export]) -> DualARDecoder:
    return loaded(both)


@pytest.fixture
def runs(decoder: DualARDecoder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """(graph, rows, length) of every run."""
    seen: list[tuple[str, int, int]] = []
    bind = transformer.Transformer._bind

    def spy(self: Any, length: int, begin: int, end: int, x: np.ndarray, prefill_graph: bool) -> Any:
        binding = bind(self, length, begin, end, x, prefill_graph)
        run, name = binding.run, (self._prefill_graph if prefill_graph else self._session).path.stem
        binding.run = lambda: (seen.append((name, end - begin, length)), run())  # type: ignore[method-assign]
        return binding

    monkeypatch.setattr(transformer.Transformer, "_bind", spy)
    return seen


def speak(decoder: DualARDecoder, adapter: Any, count: int, batching: Any, frames: int = 6) -> list[np.ndarray]:
    """Sequences of one batch: pulled by turns, so that all of them are being generated from the first turn on."""
    streams = []
    for n in range(count):
        params = SamplingParams(temperature=0.7, top_p=0.8, top_k=30, seed=n, repetition_penalty=1.0)
        prompt = adapter.engine.encode_text("word " * (n + 1))
        streams.append(decoder.generate(prompt, adapter.sampler(params), frames, batching=batching))
    taken: list[list[np.ndarray]] = [[next(stream)] for stream in streams]
    for stream, own in zip(streams, taken, strict=True):
        own.extend(stream)
    return [np.stack(own) for own in taken]


@pytest.mark.parametrize("amx", [True, False])
def test_prompts_and_with_amx_large_batches_are_for_the_prefill_graphs(
    both: dict[str, Export], adapter: Any, runs: Any, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(detect(), isa=("avx512_vnni", "amx_int8") if amx else ("avx512_vnni",))
    monkeypatch.setattr(backends, "detect", lambda: here)
    speak(loaded(both), adapter, 8, "on", frames=12)
    for name, rows, length in runs:
        if length > 2:
            assert (name, rows) == ("prefill_slow", 1), "a prompt"
        else:
            assert name.startswith("prefill_") == (amx and rows >= 4), "a step"
    assert max(rows for _, rows, length in runs if length == 1) == 8


def test_what_must_be_invariant_never_changes_its_graph(decoder: DualARDecoder, adapter: Any, runs: Any) -> None:
    together = speak(decoder, adapter, 6, "invariant")
    assert {name for name, _, length in runs if length <= 2} == {"slow", "fast"}
    alone = [a for n in range(6) for a in [speak_one(decoder, adapter, n)]]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one, other)


def speak_one(decoder: DualARDecoder, adapter: Any, n: int) -> np.ndarray:
    prompt = adapter.engine.encode_text("word " * (n + 1))
    params = SamplingParams(temperature=0.7, top_p=0.8, top_k=30, seed=n, repetition_penalty=1.0)
    return np.stack(list(decoder.generate(prompt, adapter.sampler(params), 6, batching="invariant")))


def test_the_proof_covers_both_ways_of_using_them(both: dict[str, Export]) -> None:
    assert {p.name for p in both[LANGUAGE_MODEL].path.glob("*.onnx")} == {"slow.onnx", "fast.onnx"}
    assert {p.name for p in both[PREFILL].path.glob("*.onnx")} == {"prefill_slow.onnx", "prefill_fast.onnx"}
    report = both[PREFILL].proof
    assert report["passed"] is True
    assert report["prompts"]["kl"] != report["all"]["kl"] != both[LANGUAGE_MODEL].proof["kl"]


def reject(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """No quantized graph passes."""
    monkeypatch.setitem(language_model.BARS, precision, Bar(kl=1e-12, relative_error=1e-12))


def warns(rejected: bool) -> AbstractContextManager[Any]:
    return pytest.warns(RuntimeWarning, match="published all the same") if rejected else nullcontext()


def test_where_the_others_fail_their_proof_nearer_ones_are_kept(
    adapter: ReferenceAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under proof="warn" four bits may be published that miss the bar; so must prompts in eight, which is nearer."""
    reject(monkeypatch, "int4")
    with warns(True):
        found = exported(adapter, ContentCache(tmp_path), precision="int4")
    prefill = found[PREFILL].proof
    assert (found[LANGUAGE_MODEL].proof["passed"], prefill["prompts"]["passed"], prefill["passed"]) == (
        False,
        False,
        True,
    )
    assert loaded(found).stepper.prefill_graph is not None


@pytest.mark.parametrize("rejected", [False, True])
def test_unfaithful_ones_are_left_out(
    adapter: ReferenceAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rejected: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    build = graphs.build_slow

    def wrong(directory: Path, spec: Any, weights: Any, *args: Any, **options: Any) -> None:
        if options.get("name"):  # the one for prefill
            good = weights
            weights = lambda name: -good(name) if name.endswith(".out") else good(name)  # noqa: E731
        build(directory, spec, weights, *args, **options)

    monkeypatch.setattr(graphs, "build_slow", wrong)
    if rejected:
        reject(monkeypatch, "int8")
    with warns(rejected):
        found = exported(adapter, ContentCache(tmp_path))
    assert found[LANGUAGE_MODEL].proof["passed"] is not rejected
    assert list(found) == [EMBEDDINGS, LANGUAGE_MODEL]
    assert "does without it" in caplog.text
    decoder = loaded(found)
    assert decoder.stepper.prefill_graph is None
    assert len(speak(decoder, adapter, 5, "on")) == 5


def test_float32_has_none(adapter: ReferenceAdapter, tmp_path: Path) -> None:
    assert list(exported(adapter, ContentCache(tmp_path), precision="fp32")) == [EMBEDDINGS, LANGUAGE_MODEL]


@pytest.mark.parametrize(
    ("isa", "compiled", "wanted"),
    [
        (("avx2",), False, False),
        (("avx512_vnni",), False, True),
        (("avx512_vnni",), True, False),
        (("avx512_vnni", "amx_int8"), True, True),
    ],
)
def test_only_machines_that_want_them_build_them(
    adapter: ReferenceAdapter, monkeypatch: pytest.MonkeyPatch, isa: tuple[str, ...], compiled: bool, wanted: bool
) -> None:
    here = replace(detect(), isa=isa)
    monkeypatch.setattr(backends, "detect", lambda: here)
    monkeypatch.setattr(kernels, "available", lambda: compiled)
    made = language_model_components(*adapter.backbone(), lambda: "0" * 64, adapter._trace)
    assert [c.name for c in made] == [EMBEDDINGS, LANGUAGE_MODEL, *([PREFILL] if wanted else [])]


def test_who_does_without_leaves_them_alone(both: dict[str, Export], adapter: Any, tmp_path: Path) -> None:
    """The graphs' key is the same with them and without: one cache serves both."""
    alone = exported(adapter, ContentCache(tmp_path), prefill=False)
    assert list(alone) == [EMBEDDINGS, LANGUAGE_MODEL]
    assert alone[LANGUAGE_MODEL].entry.key == both[LANGUAGE_MODEL].entry.key
    assert loaded(alone).stepper.prefill_graph is None


def test_one_warm_cache_serves_machines_of_other_instruction_sets(
    adapter: ReferenceAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is proven once more, and not built; only who wants graphs for prefill builds these."""
    monkeypatch.setattr(kernels, "available", lambda: False)

    def stages(*isa: str) -> dict[str, list[str]]:
        here, events = replace(detect(), isa=isa), []  # type: ignore[var-annotated]
        with monkeypatch.context() as patch:
            for module in (backends, component):
                patch.setattr(module, "detect", lambda: here)
            trace = functools.partial(examples.trace, adapter.engine)
            made = language_model_components(*adapter.backbone(), lambda: "0" * 64, trace)
            cache, exports = ContentCache(tmp_path), {}
            for each, precision in zip(made, ("fp32", "int8", "int8"), strict=False):
                beside = exports.get(each.beside)
                exports[each.name] = export_component(each, precision, cache, progress=events.append, beside=beside)
        return {name: list(dict.fromkeys(e.stage for e in events if e.component == name)) for name in exports}

    everything, again, known = ["hash", "build", "prove"], ["hash", "prove"], ["hash"]
    assert stages("avx2") == {EMBEDDINGS: everything, LANGUAGE_MODEL: everything}
    assert stages("avx2", "amx_int8") == {EMBEDDINGS: again, LANGUAGE_MODEL: again, PREFILL: everything}
    assert stages("avx2") == {EMBEDDINGS: known, LANGUAGE_MODEL: known}
    assert stages("avx2", "amx_int8") == {EMBEDDINGS: known, LANGUAGE_MODEL: known, PREFILL: known}
