"""In float32 a seed gives the tokens that transformers draws by PyTorch's own generator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from accelerator import UniversalOptimizer
from accelerator.engines.spark_tts.multinomial import Multinomial
from accelerator.inference.token_sampling import TokenSampler
from accelerator.speech import SamplingParams

VOCABULARY = 5000
PARAMS = SamplingParams(temperature=0.8, top_k=50, top_p=0.95, seed=7)
TEXT = "is this one said"
STYLE = {"gender": "female", "pitch": "low", "speed": "high"}


def logits(step: int) -> np.ndarray:
    return (np.random.default_rng(step).standard_normal(VOCABULARY) * 3).astype(np.float32)


def of_transformers(count: int, seed: int) -> list[int]:
    """Tokens as `generate` draws them."""
    warpers: Any = transformers.generation.logits_process
    rules = [warpers.TemperatureLogitsWarper(0.8), warpers.TopKLogitsWarper(50), warpers.TopPLogitsWarper(0.95)]
    torch.manual_seed(seed)
    tokens = []
    for step in range(count):
        scores = torch.from_numpy(logits(step))[None]
        for rule in rules:
            scores = rule(None, scores)
        tokens.append(int(torch.multinomial(scores.softmax(-1), 1)))
    return tokens


def sampler(seed: int, rows: np.ndarray | None = None) -> TokenSampler:
    rows = np.arange(VOCABULARY) if rows is None else rows
    params = SamplingParams(**{**vars(PARAMS), "seed": seed})
    return TokenSampler(params, rows, chance=lambda seed: Multinomial(VOCABULARY, seed=seed))


def drawn(one: TokenSampler, steps: range) -> list[int]:
    tokens = []
    for step in steps:
        tokens.append(one.main(logits(step)))
        one.push(tokens[-1:])
    return tokens


def test_draws_are_pytorchs() -> None:
    assert drawn(sampler(7), range(200)) == of_transformers(200, 7)
    assert drawn(sampler(8), range(200)) == of_transformers(200, 8)


def test_sequences_do_not_disturb_each_other_nor_pytorch() -> None:
    expected = [of_transformers(20, seed) for seed in (1, 2)]
    before = torch.get_rng_state()
    both, tokens = [sampler(seed) for seed in (1, 2)], [list[int](), list[int]()]
    for step in range(20):
        for one, said in zip(both, tokens, strict=True):
            said += drawn(one, range(step, step + 1))
    assert tokens == expected
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_resumed_goes_on_as_it_would_have() -> None:
    expected = of_transformers(30, 3)
    assert drawn(sampler(3).resume(expected[:12]), range(12, 30)) == expected[12:]
    one = sampler(3)
    drawn(one, range(5))
    assert drawn(one.resume([]), range(30)) == expected


def test_a_cut_head_draws_the_same_ids() -> None:
    """Rows are another order of the likely ids: numbers belong to ids."""
    kept = np.unique(np.concatenate([np.argsort(-logits(step))[:60] for step in range(20)]))[::-1].copy()
    one, tokens = sampler(5, kept), []
    for step in range(20):
        tokens.append(one.main(logits(step)[kept]))
        one.push(tokens[-1:])
    assert tokens == of_transformers(20, 5)


def test_pytorch_takes_over_in_the_middle() -> None:
    expected = of_transformers(10, 9)
    chance = Multinomial(VOCABULARY, seed=9)
    rules: Any = transformers.generation.logits_process
    before = torch.get_rng_state()
    with chance.in_torch(6):
        scores = rules.TopKLogitsWarper(50)(None, torch.from_numpy(logits(6))[None] / 0.8)
        token = int(torch.multinomial(rules.TopPLogitsWarper(0.95)(None, scores).softmax(-1), 1))
    assert token == expected[6]
    assert torch.equal(torch.get_rng_state(), before)


def asked(recording: Path) -> list[dict[str, Any]]:
    return [STYLE, {"prompt_speech_path": recording}]


def check_inference(engine: Any, fast: UniversalOptimizer, options: dict[str, Any]) -> None:
    torch.manual_seed(11)
    expected = [engine.inference(TEXT, **options) for _ in range(2)]
    after = torch.get_rng_state()
    torch.manual_seed(11)
    for each in expected:
        answer = fast.engine.inference(TEXT, **options)
        assert answer.shape == each.shape
        np.testing.assert_allclose(answer, each, atol=1e-4)
    assert torch.equal(torch.get_rng_state(), after), "whatever is drawn next, too"


def check_synthesize(engine: Any, fast: UniversalOptimizer, recording: Path) -> None:
    for seed in (1, 2):
        for own, ours in ((STYLE, STYLE), ({"prompt_speech_path": recording}, {"reference_audio": recording})):
            torch.manual_seed(seed)
            expected = engine.inference(TEXT, **own)
            answer = fast.synthesize(TEXT, seed=seed, **ours)
            assert not answer.metrics["fallback"]
            assert answer.audio.shape == expected.shape
            np.testing.assert_allclose(answer.audio, expected, atol=1e-3)


def test_who_seeds_pytorch_hears_what_the_engine_would_say(
    engine: Any, fast: UniversalOptimizer, recording: Path
) -> None:
    for options in asked(recording):
        check_inference(engine, fast, options)


def test_a_seed_is_what_the_engine_would_say(engine: Any, fast: UniversalOptimizer, recording: Path) -> None:
    check_synthesize(engine, fast, recording)


def test_a_part_that_fails_in_the_middle_leaves_the_same_tokens(engine: Any, fast: UniversalOptimizer) -> None:
    """PyTorch goes on with the numbers of the token where it takes over."""
    torch.manual_seed(4)
    expected = engine.inference(TEXT, **STYLE)
    route = fast._routes["text2semantic"]
    working = route.choice.call  # type: ignore[union-attr]

    def failing(*args: Any, **options: Any) -> Any:
        for number, token in enumerate(working(*args, **options)):
            if number == 5:
                raise RuntimeError("no more")
            yield token

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(route, "_choice", replace(route.choice, call=failing))  # type: ignore[type-var]
        torch.manual_seed(4)
        answer = fast.engine.inference(TEXT, **STYLE)
        said = fast.synthesize(TEXT, seed=4, **STYLE)
    assert answer.shape == expected.shape
    np.testing.assert_allclose(answer, expected, atol=1e-4)
    assert said.metrics["fallback"]
    assert said.audio.shape == expected.shape
    np.testing.assert_allclose(said.audio, expected, atol=1e-4)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_real_package_draws_the_same(folder: Path, recording: Path) -> None:
    from spark_tts_lib.SparkTTS import SparkTTS

    engine = SparkTTS(folder, torch.device("cpu"))
    engine.model.float()
    with UniversalOptimizer(engine, precision="fp32", threads=1, probe=False) as fast:
        fast.prepare()
        for options in asked(recording):
            check_inference(engine, fast, options)
        check_synthesize(engine, fast, recording)
