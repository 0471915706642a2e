"""The decode loop against PyTorch's, and what it does at its limits."""

from __future__ import annotations

import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator.errors import BadOutput, GenerationError
from accelerator.inference import stepper, transformer
from accelerator.inference.batcher import DualARDecoder
from accelerator.inference.codebooks import Codes
from accelerator.inference.transformer import Embeddings, StepTimes
from accelerator.parts.language_model import _WeightEmbeddings
from tests.inference.frames import TEXT, Scripted, decoder_of, generate, of_pytorch, sampler


def test_greedy_frames_are_pytorchs_token_for_token(decoder: DualARDecoder, adapter: Any, tiny: Any) -> None:
    for text in (TEXT, "a", "Ünïcödé 你好"):
        prompt = tiny.encode_text(text)
        np.testing.assert_array_equal(generate(decoder, adapter, prompt, 96), of_pytorch(tiny, prompt, 96))
    codes = np.random.default_rng(0).integers(0, 32, (4, 30))
    prompt = tiny.encode_text("With a voice.", codes, "says this")
    np.testing.assert_array_equal(generate(decoder, adapter, prompt, 64), of_pytorch(tiny, prompt, 64))


@pytest.mark.parametrize("block", [1, 3, 16])
def test_a_growing_cache_changes_nothing(
    built: Path, adapter: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    prompt = tiny.encode_text(TEXT)
    expected = generate(decoder_of(built, adapter._spec), adapter, prompt, 70)
    decoder = decoder_of(built, adapter._spec)
    grown = []
    grow = transformer.Transformer.grow

    def spy(self: Any, total: int) -> None:
        grow(self, total)
        if self._spec is adapter._spec.slow:
            grown.append(self.cache.capacity)

    for module in (transformer, stepper):
        monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(transformer.Transformer, "grow", spy)
    np.testing.assert_array_equal(generate(decoder, adapter, prompt, 70), expected)
    assert len(grown) >= 2
    assert grown == sorted(set(grown))
    assert all(capacity % block == 0 for capacity in grown)
    assert grown[-1] < 2 * (70 + prompt.shape[1]) + block


def test_the_models_last_position_is_used_and_the_next_is_an_error(built: Path, adapter: Any, tiny: Any) -> None:
    prompt = tiny.encode_text(TEXT)
    room = 10
    spec = adapter._spec
    spec = replace(spec, slow=replace(spec.slow, positions=prompt.shape[1] + room))
    short = decoder_of(built, spec)
    expected = of_pytorch(tiny, prompt, room + 1)
    np.testing.assert_array_equal(
        generate(short, adapter, prompt, room + 1), expected
    )  # the last frame is not fed back
    frames = short.generate(prompt, sampler(adapter, temperature=0), room + 2)
    for row in expected:
        np.testing.assert_array_equal(next(frames), row)
    with pytest.raises(GenerationError, match=f"needs {prompt.shape[1] + room + 1} positions"):
        next(frames)
    with pytest.raises(GenerationError, match="shorten text or reference"):
        next(short.generate(np.repeat(prompt, 3, axis=1), sampler(adapter, temperature=0), 1))
    np.testing.assert_array_equal(generate(short, adapter, prompt, 3), expected[:3])  # and it still works


@pytest.mark.parametrize("temperature", [0, 0.9])
@pytest.mark.parametrize("at", [1, 7, 19])
def test_resuming_is_continuing(decoder: DualARDecoder, adapter: Any, tiny: Any, at: int, temperature: float) -> None:
    prompt = tiny.encode_text(TEXT)
    whole = generate(decoder, adapter, prompt, 20, temperature=temperature, seed=3)
    rest = generate(decoder, adapter, prompt, 20 - at, temperature=temperature, seed=3, frames=list(whole[:at]))
    np.testing.assert_array_equal(rest, whole[at:])


def test_same_seed_same_frames(decoder: DualARDecoder, adapter: Any, tiny: Any) -> None:
    prompt = tiny.encode_text(TEXT)
    a, b, c = (generate(decoder, adapter, prompt, 12, temperature=1.0, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_threads_at_once_equal_serial_ones(decoder: DualARDecoder, adapter: Any, tiny: Any) -> None:
    prompts = [tiny.encode_text(f"{'word ' * n}end") for n in range(6)]
    serial = [generate(decoder, adapter, p, 30, temperature=0.8, seed=n) for n, p in enumerate(prompts)]
    answers: dict[int, np.ndarray] = {}
    gate = threading.Barrier(6)

    def work(n: int) -> None:
        gate.wait()
        answers[n] = generate(decoder, adapter, prompts[n], 30, temperature=0.8, seed=n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, expected in enumerate(serial):
        np.testing.assert_array_equal(answers[n], expected)


def test_an_abandoned_generator_gives_its_buffers_back(built: Path, adapter: Any, tiny: Any) -> None:
    decoder, prompt = decoder_of(built, adapter._spec), tiny.encode_text(TEXT)
    expected = generate(decoder, adapter, prompt, 5)
    for _ in range(3):
        frames = decoder.generate(prompt, sampler(adapter, temperature=0), 50)
        next(frames)
        frames.close()
    assert decoder.busy == 0
    np.testing.assert_array_equal(generate(decoder, adapter, prompt, 5), expected)


def test_a_step_allocates_nothing_that_stays(decoder: DualARDecoder, adapter: Any, tiny: Any) -> None:
    frames = decoder.generate(tiny.encode_text(TEXT), sampler(adapter, temperature=0.7, seed=0), 200)
    for _ in range(40):
        next(frames)
    tracemalloc.start()
    try:
        for _ in range(10):
            next(frames)
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(100):
            next(frames)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 4096


def test_the_end_token_ends(decoder: DualARDecoder, adapter: Any, tiny: Any) -> None:
    begin, end = adapter._spec.semantic_begin, adapter._spec.end_id
    script = Scripted([begin + 5, begin + 9, end, begin])
    frames = list(decoder.generate(tiny.encode_text(TEXT), script, 10))
    assert [f.tolist() for f in frames] == [[begin + 5, 5, 1, 2, 3], [begin + 9, 9, 1, 2, 3], [end, 0, 0, 0, 0]]
    assert len(script.pushed) == 2, "the end is no frame of speech"
    frames = list(decoder.generate(tiny.encode_text(TEXT), Scripted([end]), 10))
    assert [f[0] for f in frames] == [end]


def test_some_engines_ignore_an_end_that_comes_first(decoder: DualARDecoder, adapter: Any, tiny: Any) -> None:
    begin, end = adapter._spec.semantic_begin, adapter._spec.end_id
    prompt = tiny.encode_text(TEXT)
    frames = list(decoder.generate(prompt, Scripted([end, begin + 1, end]), 10, prefill_may_end=False))
    assert [f[0] for f in frames] == [end, begin + 1, end]
    resumed = decoder.generate(prompt, Scripted([end]), 10, frames=frames[:2], prefill_may_end=False)
    assert [f[0] for f in resumed] == [end], "behind earlier frames nothing comes first"


def test_a_single_codebook_is_the_main_tokens_own(adapter: Any) -> None:
    """There is nothing to run a fast model for."""
    spec = replace(adapter._spec, codebooks=1).codebook
    codes = Codes(None, None, spec, None, 8)  # type: ignore[arg-type]
    frames = [np.array([spec.begin + n, 99]) for n in (0, 5, spec.size + 7)]
    codes.fill([(0, None, frame) for frame in frames], np.zeros((3, 4), np.float32), prefill_graph=False)  # type: ignore[list-item]
    assert [frame[1] for frame in frames] == [0, 5, spec.size - 1]


def test_nothing_wanted_nothing_run(decoder: DualARDecoder, tiny: Any) -> None:
    for count in (0, -3):
        assert list(decoder.generate(tiny.encode_text(TEXT), Scripted([]), count)) == []


@pytest.mark.parametrize("where", ["slow", "fast"])
def test_logits_that_are_no_numbers_are_refused(
    built: Path, adapter: Any, tiny: Any, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoder_of(built, adapter._spec)
    session = decoder.stepper.graph if where == "slow" else decoder.stepper.codes._session
    step = transformer.Transformer.step

    def broken(self: Any, length: int, begin: int = 0, end: int | None = None, **how: Any) -> Any:
        out = step(self, length, begin, end, **how)
        if self._session is session and self.lengths[0] > 20 * (where == "slow"):
            out["logits"][0, 3] = np.nan
        return out

    monkeypatch.setattr(transformer.Transformer, "step", broken)
    for temperature in (0, 0.8):
        with pytest.raises(BadOutput):
            list(decoder.generate(tiny.encode_text(TEXT), sampler(adapter, temperature=temperature), 10))


def test_a_token_outside_the_vocabulary_is_refused(decoder: DualARDecoder, adapter: Any, tiny: Any) -> None:
    prompt = tiny.encode_text(TEXT).copy()
    for wrong in (336, -1):
        prompt[0, 2] = wrong
        with pytest.raises(GenerationError, match=f"token {wrong} is outside"):
            next(decoder.generate(prompt, sampler(adapter, temperature=0), 3))


def test_times_add_up(decoder: DualARDecoder, adapter: Any, tiny: Any) -> None:
    times = StepTimes()
    list(decoder.generate(tiny.encode_text(TEXT), sampler(adapter, temperature=0), 9, times=times))
    assert times.frames == 9
    assert min(times.prefill, times.slow, times.fast, times.sampling, times.embed) > 0


def test_embeddings_are_pytorchs(built: Path, adapter: Any, tiny: Any) -> None:
    codes = np.random.default_rng(0).integers(0, 32, (4, 9))
    prompt = tiny.encode_text("abc", codes, "de")
    with torch.inference_mode():
        expected = tiny.language_model.embed(torch.from_numpy(prompt)[None])[0].numpy()
    for embeddings in (Embeddings(built, adapter._spec), _WeightEmbeddings(adapter._spec, adapter.backbone()[1])):
        np.testing.assert_allclose(embeddings.frames(prompt), expected, atol=1e-6)
        out = np.zeros(64, np.float32)
        column = int(np.flatnonzero(prompt[0] >= 260)[3])
        embeddings.frame(prompt[:, column], out)
        np.testing.assert_allclose(out, expected[column], atol=1e-6)
        embeddings.code(7, out)
        np.testing.assert_array_equal(out, tiny.language_model.fast_embeddings.weight[7].numpy())
    assert embeddings.frames(prompt[:, :0]).shape == (0, 64)
