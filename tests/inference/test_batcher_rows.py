"""Sequences side by side: rows join, leave, fail, and none notices."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator.errors import BadOutput, BatchFailed, GenerationError, SessionError
from accelerator.export.graph.dual_ar import KVRanges, build_fast, build_slow
from accelerator.export.graph.quantize import RECIPES
from accelerator.inference import transformer
from accelerator.inference.batcher import DualARDecoder
from accelerator.inference.embeddings import write_table
from accelerator.inference.prefix_cache import cuts
from accelerator.inference.transformer import Embeddings
from accelerator.runtime.onnx import Session
from tests.inference.frames import TEXT, Scripted, decoder_of, generate, of_pytorch, sampler


def together(decoder: DualARDecoder, adapter: Any, jobs: list[tuple[np.ndarray, int, dict[str, Any]]]) -> list[Any]:
    """Frames, or the error, of each (prompt, count, sampling), all generated at once by a thread each."""
    answers: list[Any] = [None] * len(jobs)
    gate = threading.Barrier(len(jobs))

    def work(n: int) -> None:
        prompt, count, how = jobs[n]
        gate.wait()
        try:
            answers[n] = generate(decoder, adapter, prompt, count, **how)
        except (BadOutput, GenerationError) as error:
            answers[n] = error

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.parametrize("batching", ["on", "invariant"])
def test_rows_join_and_leave_a_batch_and_none_notices(
    built: Path, adapter: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch, batching: str
) -> None:
    """Twenty sequences of all lengths through three rows: each as if it were alone, and steps are shared."""
    decoder = DualARDecoder(
        adapter._spec,
        Session(built / "slow.onnx"),
        Session(built / "fast.onnx"),
        Embeddings(built, adapter._spec),
        rows=3,
    )
    jobs = [
        (tiny.encode_text("word " * (n % 5) + "end"), 4 + 7 * (n % 4), {"temperature": 0.8 * (n % 2), "seed": n})
        for n in range(20)
    ]
    alone = [generate(decoder_of(built, adapter._spec), adapter, p, c, **how) for p, c, how in jobs]
    jobs = [(p, c, {**how, "batching": batching}) for p, c, how in jobs]
    widths, step = [], transformer.Transformer.step

    def spy(self: Any, length: int, begin: int = 0, end: int | None = None, **how: Any) -> Any:
        if self._session is decoder.stepper.graph and length == 1:
            widths.append(end - begin)  # type: ignore[operator]
        return step(self, length, begin, end, **how)

    monkeypatch.setattr(transformer.Transformer, "step", spy)
    for expected, answer in zip(alone, together(decoder, adapter, jobs), strict=True):
        np.testing.assert_array_equal(answer, expected)
    frames = sum(len(a) for a in alone)
    assert max(widths) == (3 if batching == "on" else 4), "never more than there are rows"
    assert batching == "on" or {width % 2 for width in widths} == {0}
    assert len(widths) < 0.6 * frames, "most steps served several sequences"
    assert decoder.busy == 0


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_quantized_rows_are_the_same_in_any_company(adapter: Any, tiny: Any, tmp_path: Path, precision: str) -> None:
    """Quantized kernels round by the number of rows; a seed must not hear that."""
    trace, spec, recipe = adapter._trace(), adapter._spec, RECIPES[precision]
    build_slow(tmp_path, spec, adapter.backbone()[1], recipe, KVRanges(trace.key_range, trace.value_range))
    build_fast(tmp_path, spec, adapter.backbone()[1], recipe)
    for name in ("embeddings", "codebook_embeddings", "fast_embeddings"):
        write_table(tmp_path / f"{name}.npy", adapter.backbone()[1](name))
    decoder = decoder_of(tmp_path, spec)
    how: dict[str, Any] = {"temperature": 0.9, "batching": "invariant"}
    jobs = [(tiny.encode_text("word " * n + "end"), 20 + 3 * n, {**how, "seed": n}) for n in range(5)]
    alone = [generate(decoder, adapter, p, c, **options) for p, c, options in jobs]
    for expected, answer in zip(alone, together(decoder, adapter, jobs), strict=True):
        np.testing.assert_array_equal(answer, expected)


def test_one_consumer_advances_all(decoder: DualARDecoder, adapter: Any, tiny: Any) -> None:
    """Generators pulled by turns in one thread are a batch too; the order of pulling changes nothing."""
    prompts = [tiny.encode_text(t) for t in ("one", "two and a half", "three")]
    alone = [generate(decoder, adapter, p, 12, temperature=0.8, seed=5) for p in prompts]
    modes = ("off", "on", "invariant")
    streams = [
        decoder.generate(p, sampler(adapter, temperature=0.8, seed=5), 12, batching=mode)  # type: ignore[arg-type]
        for p, mode in zip(prompts, modes, strict=True)
    ]
    taken: list[list[np.ndarray]] = [[], [], []]
    for which in (0, 1, 0, 2, 2, 1, 0):
        taken[which].append(next(streams[which]))
    for which in (2, 0, 1):
        taken[which] += list(streams[which])
    for expected, frames in zip(alone, taken, strict=True):
        np.testing.assert_array_equal(np.stack(frames), expected)


def test_a_failing_row_fails_alone(decoder: DualARDecoder, adapter: Any, tiny: Any) -> None:
    prompt = tiny.encode_text(TEXT)
    expected = generate(decoder, adapter, prompt, 15)

    class Refusing(Scripted):
        def main(self, logits: np.ndarray) -> int:
            if len(self.pushed) == 4:
                raise BadOutput("no")
            return super().main(logits)

        def code(self, codebook: int, logits: np.ndarray) -> int:
            if len(self.pushed) == 2 and codebook == 2 and self.fast:
                raise BadOutput("no code")
            return codebook

        fast = False

    begin = adapter._spec.semantic_begin
    good = decoder.generate(prompt, sampler(adapter, temperature=0), 15, batching="on")
    bad, worse = (Refusing([begin + 1] * 9) for _ in range(2))
    worse.fast = True
    wrong = prompt.copy()
    wrong[0, 2] = -1
    streams = [
        good,
        *(decoder.generate(prompt, s, 9, batching="on") for s in (bad, worse)),
        decoder.generate(wrong, bad, 9, batching="on"),
    ]
    first = [next(s) for s in streams[:3]]
    with pytest.raises(GenerationError, match="outside the vocabulary"):
        next(streams[3])
    for stream, message, count in ((streams[2], "no code", 2), (streams[1], "no", 4)):
        frames = [next(stream) for _ in range(count - 1)]
        assert len(frames) == count - 1, "what was drawn before the failure was handed out"
        with pytest.raises(BadOutput, match=f"^{message}$"):
            next(stream)
    np.testing.assert_array_equal(np.stack([first[0], *good]), expected)


def test_a_failing_run_fails_its_batch_and_not_the_next(
    decoder: DualARDecoder, adapter: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tiny.encode_text(TEXT)
    expected = generate(decoder, adapter, prompt, 6)
    streams = [decoder.generate(prompt, sampler(adapter, temperature=0), 6, batching="on") for _ in range(2)]
    for stream in streams:
        next(stream)
    with monkeypatch.context() as patch:
        step = transformer.Transformer.step

        def broken(self: Any, length: int, begin: int = 0, end: int | None = None, **how: Any) -> Any:
            if length == 1 and self._session is decoder.stepper.graph:
                raise SessionError("out of memory")
            return step(self, length, begin, end, **how)

        patch.setattr(transformer.Transformer, "step", broken)
        failures = []
        for stream in streams:
            with pytest.raises(BatchFailed, match="2 sequences failed") as caught:
                list(stream)
            failures.append(caught.value)
        assert failures[0] is failures[1]
        alone = decoder.generate(prompt, sampler(adapter, temperature=0), 6, batching="on")
        next(alone)
        with pytest.raises(SessionError, match=r"^out of memory$"):
            next(alone)
    assert decoder.busy == 0
    np.testing.assert_array_equal(generate(decoder, adapter, prompt, 6), expected)


def test_an_interrupted_thread_leaves_the_others_an_answer(decoder: DualARDecoder, adapter: Any, tiny: Any) -> None:
    class Interrupted(Scripted):
        def main(self, logits: np.ndarray) -> int:
            raise KeyboardInterrupt

    prompt = tiny.encode_text(TEXT)
    other = decoder.generate(prompt, sampler(adapter, temperature=0), 5, batching="on")
    next(other)
    with pytest.raises(KeyboardInterrupt):
        next(decoder.generate(prompt, Interrupted([]), 5, batching="on"))
    with pytest.raises(BatchFailed, match="KeyboardInterrupt"):
        list(other)
    assert decoder.busy == 0


def test_memory_bounds_who_joins(built: Path, adapter: Any, tiny: Any) -> None:
    """No room beside the first: the second waits until the first has left, and then both were right."""
    spec = adapter._spec
    narrow = DualARDecoder(
        spec, Session(built / "slow.onnx"), Session(built / "fast.onnx"), Embeddings(built, spec), cache_bytes=1
    )
    prompt = tiny.encode_text(TEXT)
    expected = generate(narrow, adapter, prompt, 8)
    first, second = (narrow.generate(prompt, sampler(adapter, temperature=0), 8, batching="on") for _ in range(2))
    head = next(first)
    np.testing.assert_array_equal(np.stack(list(second)), expected)
    np.testing.assert_array_equal(np.stack([head, *first]), expected)
    assert narrow._shared is not None
    assert narrow._shared.state.rows == 2


def test_a_known_voice_is_not_prefilled_again(
    built: Path, adapter: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoder_of(built, adapter._spec)
    codes = np.random.default_rng(0).integers(0, 32, (4, 30))
    prompts = [tiny.encode_text(t, codes, "says this") for t in ("One.", "Something else.", "One.")]
    prefilled: list[int] = []
    step = transformer.Transformer.step

    def spy(self: Any, length: int, begin: int = 0, end: int | None = None, **how: Any) -> Any:
        if self._session is decoder.stepper.graph and length > 1:
            prefilled.append(length)
        return step(self, length, begin, end, **how)

    monkeypatch.setattr(transformer.Transformer, "step", spy)
    answers = [generate(decoder, adapter, p, 20, temperature=0.9, seed=1) for p in prompts]
    (cut,) = cuts(prompts[0], adapter._spec.semantic_begin, adapter._spec.semantic_end)
    assert prefilled == [cut, *(p.shape[1] - cut for p in prompts)]
    assert (decoder.prefixes.hits, decoder.prefixes.misses) == (2, 1)
    np.testing.assert_array_equal(answers[2], answers[0], "a known voice says what it said when it was new")
    np.testing.assert_array_equal(
        generate(decoder_of(built, adapter._spec), adapter, prompts[1], 20, temperature=0.9, seed=1), answers[1]
    )
    np.testing.assert_array_equal(generate(decoder, adapter, prompts[1], 20), of_pytorch(tiny, prompts[1], 20))
