"""Compiled kernels in an engine: when it has them, and that frames and seeds are the same with them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator import kernels
from accelerator.cache import ContentCache
from accelerator.engines.reference import ReferenceAdapter
from accelerator.errors import BadOutput
from accelerator.export.component import Export, export_component
from accelerator.inference import transformer as decode
from accelerator.inference.batcher import DualARDecoder
from accelerator.inference.compiled import NativeBinding
from accelerator.inference.frame_loop import CodeLoop
from accelerator.inference.sampling import Sampler, SamplingRule
from accelerator.parts import backends
from accelerator.parts.language_model import LANGUAGE_MODEL, language_model_components, load_language_model
from accelerator.runtime.options import RunOptions
from accelerator.speech import SamplingParams

pytestmark = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")


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
    assert backends.is_compiled(report)


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
    assert not backends.is_compiled(report)


def test_where_there_are_none_the_same_export_runs_as_before(
    found: dict[str, Export], adapter: ReferenceAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "available", lambda: False)
        without = exported(adapter, tmp_path)
    assert "compiled" not in without[LANGUAGE_MODEL].proof
    assert not backends.is_compiled(without[LANGUAGE_MODEL].proof)
    assert without[LANGUAGE_MODEL].entry.key == found[LANGUAGE_MODEL].entry.key
    paths = {name: export.path for name, export in without.items()}
    assert len(spoken(load_language_model(paths, RunOptions()), adapter, [1])[0]) == 6


def test_float32_has_none(adapter: ReferenceAdapter, tmp_path: Path) -> None:
    assert not backends.is_compiled(exported(adapter, tmp_path, "fp32")[LANGUAGE_MODEL].proof)


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
