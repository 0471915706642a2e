"""Graphs in integers by rows beside the others: which runs they take, and when an export has them."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator.cache import ContentCache
from accelerator.engines.reference import ReferenceAdapter
from accelerator.export.component import export_component
from accelerator.export.proof import Bar
from accelerator.hardware import detect
from accelerator.inference import transformer
from accelerator.inference.batcher import DualARDecoder
from accelerator.parts import language_model
from accelerator.parts.language_model import EMBEDDINGS, LANGUAGE_MODEL, language_model_components, load_language_model
from accelerator.runtime.options import RunOptions
from accelerator.speech import SamplingParams

needs_exact_sums = pytest.mark.skipif(
    not {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"} & set(detect().isa), reason="8-bit sums may saturate here"
)
pytestmark = needs_exact_sums


@pytest.fixture(scope="module")
def adapter(tiny: Any) -> ReferenceAdapter:
    return ReferenceAdapter(tiny)


def paths(adapter: ReferenceAdapter, cache: ContentCache, *, wide: bool, precision: str = "int8") -> dict[str, Path]:
    components = language_model_components(
        adapter._spec, adapter.backbone()[1], lambda: "0" * 64, adapter._trace, wide=wide
    )
    exports = [
        export_component(c, p, cache, proof="warn") for c, p in zip(components, ("fp32", precision), strict=True)
    ]
    return {c.name: e.path for c, e in zip(components, exports, strict=True)}


@pytest.fixture(scope="module")
def both(adapter: ReferenceAdapter, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return paths(adapter, ContentCache(tmp_path_factory.mktemp("cache")), wide=True)


@pytest.fixture
def decoder(both: dict[str, Path]) -> DualARDecoder:
    return load_language_model(both, RunOptions())


@pytest.fixture
def runs(decoder: DualARDecoder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """(graph, rows, length) of every run."""
    seen: list[tuple[str, int, int]] = []
    bind = transformer.Transformer._bind

    def spy(self: Any, length: int, begin: int, end: int, x: np.ndarray, wide: bool) -> Any:
        binding = bind(self, length, begin, end, x, wide)
        run, name = binding.run, (self._wide if wide else self._session).path.stem
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
def test_prompts_and_with_amx_large_batches_are_for_the_wide_graphs(
    both: dict[str, Path], adapter: Any, runs: Any, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(detect(), isa=("avx512_vnni", "amx_int8") if amx else ("avx512_vnni",))
    monkeypatch.setattr(language_model, "detect", lambda: here)
    speak(load_language_model(both, RunOptions()), adapter, 8, "on", frames=12)
    for name, rows, length in runs:
        if length > 2:
            assert (name, rows) == ("wide_slow", 1), "a prompt"
        else:
            assert name.startswith("wide_") == (amx and rows >= 4), "a step"
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


def test_the_proof_covers_both_ways_of_using_them(both: dict[str, Path]) -> None:
    directory = both[LANGUAGE_MODEL]
    assert {p.name for p in directory.glob("*.onnx")} == {"slow.onnx", "fast.onnx", "wide_slow.onnx", "wide_fast.onnx"}
    report = json.loads((directory / "manifest.json").read_text())["meta"]["proof"]
    assert report["wide"]["passed"] is True
    assert report["wide"]["prompts"]["kl"] != report["wide"]["all"]["kl"] != report["kl"]


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
        found = paths(adapter, ContentCache(tmp_path), wide=True, precision="int4")
    proof = json.loads((found[LANGUAGE_MODEL] / "manifest.json").read_text())["meta"]["proof"]
    assert (proof["passed"], proof["wide"]["prompts"]["passed"], proof["wide"]["passed"]) == (False, False, True)
    assert load_language_model(found, RunOptions()).stepper.wide is not None


@pytest.mark.parametrize("rejected", [False, True])
def test_unfaithful_ones_are_left_out(
    adapter: ReferenceAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rejected: bool
) -> None:
    build = language_model.build_slow

    def wrong(directory: Path, spec: Any, weights: Any, *args: Any, **options: Any) -> None:
        if options.get("name"):  # the wide one
            good = weights
            weights = lambda name: -good(name) if name.endswith(".out") else good(name)  # noqa: E731
        build(directory, spec, weights, *args, **options)

    monkeypatch.setattr(language_model, "build_slow", wrong)
    if rejected:
        reject(monkeypatch, "int8")
    with warns(rejected):
        found = paths(adapter, ContentCache(tmp_path), wide=True)
    assert not list(found[LANGUAGE_MODEL].glob("wide_*"))
    proof = json.loads((found[LANGUAGE_MODEL] / "manifest.json").read_text())["meta"]["proof"]
    assert (proof["passed"], proof["wide"]["passed"]) == (not rejected, False)
    decoder = load_language_model(found, RunOptions())
    assert decoder.stepper.wide is None
    assert len(speak(decoder, adapter, 5, "on")) == 5


def test_machines_without_integer_matrices_have_none(adapter: ReferenceAdapter, tmp_path: Path) -> None:
    found = paths(adapter, ContentCache(tmp_path), wide=False)
    assert not list(found[LANGUAGE_MODEL].glob("wide_*"))
    assert load_language_model(found, RunOptions()).stepper.wide is None
    assert EMBEDDINGS in found
