"""Causal language models of transformers, tiny and random, through graph, kernels, cache and batcher."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from accelerator import kernels
from accelerator.errors import GenerationError, UnsupportedEngine
from accelerator.export.graph.causal import build_causal
from accelerator.export.graph.quantize import RECIPES
from accelerator.export.graph.specs import CausalSpec, KVRanges
from accelerator.export.proof import BARS, Bar, Trace, compare_logits, replay
from accelerator.inference.batcher import CausalDecoder
from accelerator.inference.sequence import Guidance
from accelerator.inference.token_sampling import TokenSampler
from accelerator.parts.llama import record, spec_of, weight
from accelerator.speech import SamplingParams
from tests.parts.llamas import END, SIZES, VOCABULARY, decoder_of, drawn, made, of_transformers, prompt_of, sampler

needs_kernels = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")


@pytest.fixture(scope="module", params=["qwen2", "llama", "qwen3"])
def model(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


@pytest.fixture(scope="module")
def spec(model: Any) -> CausalSpec:
    return spec_of(model, END)


@pytest.fixture(scope="module")
def exact(model: Any, spec: CausalSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exact")
    build_causal(directory, spec, partial(weight, model), RECIPES["fp32"])
    return directory


@pytest.fixture(scope="module")
def trace(model: Any, spec: CausalSpec) -> Trace:
    return record(model, spec, prompt_of(40), 64)


@pytest.fixture(scope="module", params=["int8", "int4"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def quantized(
    model: Any, spec: CausalSpec, trace: Trace, precision: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory = tmp_path_factory.mktemp(precision)
    ranges = KVRanges(trace.key_range, trace.value_range)  # type: ignore[arg-type]
    build_causal(directory, spec, partial(weight, model), RECIPES[precision], ranges)
    return directory


def test_greedy_tokens_are_transformers(model: Any, spec: CausalSpec, exact: Path) -> None:
    decoder = decoder_of(model, replace(spec, end_ids=()), exact)
    for length in (1, 2, 37):
        prompt = prompt_of(length)
        expected = of_transformers(model, prompt, 64)
        assert len(set(expected)) >= 8, "it says something"
        assert drawn(decoder, prompt, 64) == expected


def test_any_of_several_ends_ends(model: Any, spec: CausalSpec, exact: Path) -> None:
    free = of_transformers(model, prompt_of(37), 64)
    for ends in (free[9:10], [free[9], free[4]], [VOCABULARY - 1, free[0]]):
        expected = of_transformers(model, prompt_of(37), 64, ends)
        assert drawn(decoder_of(model, replace(spec, end_ids=tuple(ends)), exact), prompt_of(37), 64) == expected
        assert expected[-1] in ends


@pytest.mark.parametrize("compiled", [0, pytest.param(2, marks=needs_kernels)])
def test_quantized_logits_are_within_the_bar(
    model: Any, spec: CausalSpec, trace: Trace, quantized: Path, precision: str, compiled: int
) -> None:
    """Teacher-forced: fed with PyTorch's tokens."""
    decoder = decoder_of(model, spec, quantized, compiled)
    assert decoder.stepper.graph.inputs["past_key.0"][0] is np.int8
    answers = replayed(decoder, trace)
    report = compare_logits({"main": (flat(trace).main_logits, answers)}, BARS[precision])
    assert report["passed"], report
    assert report["main"]["steps"] == 64
    if compiled:  # the same weights: much nearer to each other than the bar is wide
        beside = replayed(decoder_of(model, spec, quantized), trace)
        assert compare_logits({"main": (beside, answers)}, Bar(kl=0.002, relative_error=0.08))["passed"]


def replayed(decoder: CausalDecoder, trace: Trace) -> np.ndarray:
    return replay(lambda prompt, recorder, n: decoder.generate(prompt[0], recorder, n), flat(trace)).main_logits


def flat(trace: Trace) -> Trace:
    return replace(trace, main_logits=trace.main_logits.reshape(len(trace.frames), -1))


@pytest.mark.parametrize("compiled", [0, pytest.param(2, marks=needs_kernels)])
def test_ragged_rows_are_what_they_are_one_by_one(model: Any, spec: CausalSpec, quantized: Path, compiled: int) -> None:
    decoder = decoder_of(model, replace(spec, end_ids=()), quantized, compiled)
    jobs = [(prompt_of(3 + 17 * n, seed=n), 20 + 5 * n, n) for n in range(5)]

    def begun(job: tuple[np.ndarray, int, int]) -> Iterator[int]:
        prompt, count, seed = job
        return decoder.generate(prompt, sampler(spec, 0.9, seed=seed), count, batching="invariant")

    alone = [list(begun(job)) for job in jobs]
    streams = [begun(job) for job in jobs]
    together = [[next(stream)] for stream in streams]
    assert decoder.busy == 5
    for tokens, stream in zip(together, streams, strict=True):
        tokens.extend(stream)
    assert together == alone
    assert [len(tokens) for tokens in alone] == [20, 25, 30, 35, 40]
    assert len({tuple(tokens[:20]) for tokens in alone}) == 5


def test_a_cut_head_has_the_rows_of_its_ranges(model: Any, spec: CausalSpec, exact: Path, tmp_path: Path) -> None:
    """Two ranges that are apart and an end id beside them: as if all else of a whole head were forbidden."""
    cut = replace(spec, ranges=((200, 260), (10, 30)), end_ids=(END[1],))
    np.testing.assert_array_equal(cut.rows, [*range(200, 260), *range(10, 30), END[1]])
    build_causal(tmp_path, cut, partial(weight, model), RECIPES["fp32"])
    decoder = decoder_of(model, cut, tmp_path)
    tokens = drawn(decoder, prompt_of(9), 40, 1.0)
    assert set(tokens) <= set(cut.rows.tolist())
    whole = decoder_of(model, replace(spec, end_ids=cut.end_ids), exact)
    within = TokenSampler(
        SamplingParams(temperature=1.0, top_p=1.0, seed=0), spec.rows, allowed=[*cut.ranges, (END[1], END[1] + 1)]
    )
    assert list(whole.generate(prompt_of(9), within, 40)) == tokens
    greedy = [drawn(decoder, prompt_of(n), 1)[0] for n in range(1, 9)]
    with torch.inference_mode():
        for n, token in enumerate(greedy, 1):
            logits = model(input_ids=torch.from_numpy(prompt_of(n))[None]).logits[0, -1].numpy()
            assert token == cut.rows[logits[cut.rows].argmax()]


def test_resuming_is_continuing(model: Any, spec: CausalSpec, exact: Path) -> None:
    decoder, prompt = decoder_of(model, replace(spec, end_ids=()), exact), prompt_of(11)
    for temperature in (0.0, 1.0):
        whole = drawn(decoder, prompt, 30, temperature, seed=5)
        for at in (1, 17):
            sampling = sampler(spec, temperature, seed=5).resume(whole[:at])
            assert list(decoder.generate(prompt, sampling, 30 - at, tokens=whole[:at])) == whole[at:]


def test_a_known_beginning_is_not_prefilled_again(model: Any, spec: CausalSpec, exact: Path) -> None:
    decoder, same = decoder_of(model, replace(spec, end_ids=()), exact), prompt_of(50)
    prompts = [np.concatenate([same, prompt_of(7, seed)]) for seed in (1, 2)]
    expected = [drawn(decoder, prompt, 12) for prompt in prompts]
    assert decoder.prefixes.nbytes == 0
    assert [drawn(decoder, prompt, 12, cuts=[50]) for prompt in prompts] == expected
    assert (decoder.prefixes.hits, decoder.prefixes.misses) == (1, 1)


def test_guidance_extrapolates_from_another_prompt(model: Any, spec: CausalSpec, exact: Path) -> None:
    decoder, prompt, other = decoder_of(model, replace(spec, end_ids=()), exact), prompt_of(20), prompt_of(8, 3)
    plain, guided = drawn(decoder, prompt, 10), []
    assert drawn(decoder, prompt, 10, guidance=Guidance(prompt[None], 3.0)) == plain, "away from itself"
    with torch.inference_mode():
        for _ in range(10):
            rows = [torch.from_numpy(np.concatenate([each, guided]).astype(np.int64))[None] for each in (prompt, other)]
            own, beside = (model(input_ids=row).logits[0, -1].numpy() for row in rows)
            guided.append(int((beside + 3.0 * (own - beside)).argmax()))
    assert guided != plain
    assert drawn(decoder, prompt, 10, guidance=Guidance(other[None], 3.0)) == guided


def test_what_the_model_has_no_room_or_row_for_is_refused(model: Any, spec: CausalSpec, exact: Path) -> None:
    short = replace(spec, stack=replace(spec.stack, positions=20), end_ids=())
    decoder = decoder_of(model, short, exact)
    tokens = decoder.generate(prompt_of(18), sampler(spec), 5)
    assert [next(tokens) for _ in range(3)] == of_transformers(model, prompt_of(18), 3)
    with pytest.raises(GenerationError, match="needs 21 positions"):
        next(tokens)
    with pytest.raises(GenerationError, match="token 320 is outside the vocabulary of 320"):
        next(decoder.generate(np.array([3, 320]), sampler(spec), 5))
    assert list(decoder.generate(prompt_of(3), sampler(spec), 0)) == []


def test_a_spec_survives_json(spec: CausalSpec) -> None:
    cut = replace(spec, ranges=((3, 9), (11, 12)))
    assert CausalSpec.from_dict(json.loads(json.dumps(cut.to_dict()))) == cut
    with pytest.raises(AssertionError, match="occur twice"):
        replace(spec, ranges=((3, 9), (8, 12)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "the activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "type 'linear'"),
        ({"mlp_bias": True}, "biases in the feed-forward"),
    ],
)
def test_other_models_are_refused(change: dict[str, Any], message: str) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, **change}))
    with pytest.raises(UnsupportedEngine, match=message):
        spec_of(model, END)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("Gemma2", "layers of another kind"), ("Olmo2", "norms over all queries"), ("GPT2", "no model.")],
)
def test_other_families_are_refused(kind: str, message: str) -> None:
    small = {k: v for k, v in SIZES.items() if k != "attn_implementation"} if kind != "GPT2" else {"n_layer": 1}
    config = getattr(transformers, f"{kind}Config")(**small)
    with pytest.raises(UnsupportedEngine, match=message):
        spec_of(getattr(transformers, f"{kind}ForCausalLM" if kind != "GPT2" else "GPT2LMHeadModel")(config), END)


def test_sliding_windows_are_refused() -> None:
    config = transformers.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(UnsupportedEngine, match="a sliding window"):
        spec_of(transformers.Qwen2ForCausalLM(config), END)
