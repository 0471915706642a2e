"""The decode loop against PyTorch's, sequences side by side, and what it does at its limits."""

from __future__ import annotations

import copy
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator.engines.reference import ReferenceAdapter
from accelerator.errors import BadOutput, BatchFailed, GenerationError, SessionError
from accelerator.export.graph.dual_ar import DualARSpec, KVRanges, build_fast, build_slow
from accelerator.export.graph.quantize import RECIPES
from accelerator.inference import stepper, transformer
from accelerator.inference.batcher import DualARDecoder
from accelerator.inference.codebooks import Codes
from accelerator.inference.embeddings import write_table
from accelerator.inference.prefix_cache import cuts
from accelerator.inference.sampling import Sampler
from accelerator.inference.sequence import Guidance
from accelerator.inference.transformer import Embeddings, StepTimes
from accelerator.parts.language_model import _WeightEmbeddings
from accelerator.runtime.onnx import Session
from accelerator.speech import SamplingParams

TEXT = "The decode loop."
GREEDY = {"temperature": 0, "repetition_penalty": 1.0}


@pytest.fixture(scope="module")
def adapter(tiny: Any) -> ReferenceAdapter:
    return ReferenceAdapter(tiny)


@pytest.fixture(scope="module")
def built(adapter: ReferenceAdapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("graphs")
    build_slow(directory, adapter._spec, adapter.backbone()[1], RECIPES["fp32"])
    build_fast(directory, adapter._spec, adapter.backbone()[1], RECIPES["fp32"])
    for name in ("embeddings", "codebook_embeddings", "fast_embeddings"):
        write_table(directory / f"{name}.npy", adapter.backbone()[1](name))
    return directory


def decoder_of(built: Path, spec: DualARSpec) -> DualARDecoder:
    return DualARDecoder(spec, Session(built / "slow.onnx"), Session(built / "fast.onnx"), Embeddings(built, spec))


@pytest.fixture(scope="module")
def decoder(built: Path, adapter: ReferenceAdapter) -> DualARDecoder:
    return decoder_of(built, adapter._spec)


def sampler(adapter: ReferenceAdapter, **params: Any) -> Sampler:
    return adapter.sampler(SamplingParams(**{"top_p": 0.8, "top_k": 30, "repetition_penalty": 1.0, **params}))


def generate(
    decoder: DualARDecoder, adapter: ReferenceAdapter, prompt: np.ndarray, count: int, **how: Any
) -> np.ndarray:
    frames, batching = how.pop("frames", ()), how.pop("batching", "off")
    sampling = sampler(adapter, **{"temperature": 0, **how}).resume(frames)
    return np.stack(list(decoder.generate(prompt, sampling, count, frames=frames, batching=batching)))


def of_pytorch(engine: Any, prompt: np.ndarray, count: int) -> np.ndarray:
    return np.stack(list(engine.generate(prompt, max_new_tokens=count, **GREEDY)))


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


def test_threads_at_once_equal_serial_twins(decoder: DualARDecoder, adapter: Any, tiny: Any) -> None:
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


class Scripted:
    """A sampler whose main tokens are given."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.pushed = iter(tokens), []

    def main(self, logits: np.ndarray) -> int:
        return next(self.tokens)

    def code(self, codebook: int, logits: np.ndarray) -> int:
        return codebook

    def push(self, frame: np.ndarray) -> None:
        self.pushed.append(frame.copy())


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
    frames = list(decoder.generate(prompt, Scripted([end, begin + 1, end]), 10, end_may_come_first=False))
    assert [f[0] for f in frames] == [end, begin + 1, end]
    resumed = decoder.generate(prompt, Scripted([end]), 10, frames=frames[:2], end_may_come_first=False)
    assert [f[0] for f in resumed] == [end], "behind earlier frames nothing comes first"


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


def test_a_single_codebook_is_the_main_tokens_own(adapter: Any) -> None:
    """There is nothing to run a fast model for."""
    spec = replace(adapter._spec, codebooks=1).codebook
    codes = Codes(None, None, spec, None, 8)  # type: ignore[arg-type]
    frames = [np.array([spec.begin + n, 99]) for n in (0, 5, spec.size + 7)]
    codes.fill([(0, None, frame) for frame in frames], np.zeros((3, 4), np.float32), wide=False)  # type: ignore[list-item]
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


@pytest.fixture(scope="module")
def guided(tiny: Any) -> Any:
    """The engine with guidance: away from what it would say without the text."""
    engine = copy.copy(tiny)
    config = tiny.config
    engine.config = replace(config, guidance=1.7, language_model=replace(config.language_model, untold=259))
    return engine


def guided_frames(decoder: DualARDecoder, adapter: Any, engine: Any, text: str, count: int, **how: Any) -> np.ndarray:
    prompt = engine.encode_text(text)
    guidance = ReferenceAdapter(engine)._guidance(prompt)
    frames, batching = how.pop("frames", ()), how.pop("batching", "off")
    sampling = sampler(adapter, **{"temperature": 0, **how}).resume(frames)
    return np.stack(
        list(decoder.generate(prompt, sampling, count, frames=frames, batching=batching, guidance=guidance))
    )


def test_guided_frames_are_pytorchs_token_for_token(decoder: DualARDecoder, adapter: Any, guided: Any) -> None:
    for text in (TEXT, "a", "Ünïcödé 你好"):
        prompt = guided.encode_text(text)
        expected = of_pytorch(guided, prompt, 60)
        np.testing.assert_array_equal(guided_frames(decoder, adapter, guided, text, 60), expected)
        for way in ("off", "invariant", "on"):
            again = guided_frames(decoder, adapter, guided, text, 60, frames=list(expected[:20]), batching=way)
            np.testing.assert_array_equal(again[: len(expected) - 20], expected[20:])


def test_guided_and_plausible_frames_are_pytorchs(decoder: DualARDecoder, adapter: Any, guided: Any) -> None:
    engine = copy.copy(guided)
    engine.config = replace(guided.config, guidance=4.0, plausible=0.7)
    expected = of_pytorch(engine, engine.encode_text(TEXT), 60)
    np.testing.assert_array_equal(guided_frames(decoder, adapter, engine, TEXT, 60), expected)
    engine.config = replace(engine.config, plausible=0.0)
    assert not np.array_equal(guided_frames(decoder, adapter, engine, TEXT, 60), expected)


def test_guidance_keeps_what_is_plausible() -> None:
    """Both prompts are sure of code 0, the other one surer: extrapolation alone would draw code 1."""
    given = np.array([[8.0, 2.0, -9.0], [20.0, 0.0, 0.0]], np.float32)
    bare, kept = given.copy(), given.copy()
    Guidance(np.zeros((2, 1), np.int64), 2.0).mix(bare, 0, 1)
    np.testing.assert_allclose(bare, [[-4.0, 4.0, -18.0], given[1]])
    Guidance(np.zeros((2, 1), np.int64), 2.0, 0.1).mix(kept, 0, 1)
    assert kept[0, 0] == -4.0
    assert kept[0, 1:].max() < -1e8
    assert np.isfinite(kept).all()
    np.testing.assert_array_equal(kept[1], given[1])
    near = np.array([[3.0, 2.9, -9.0], [9.0, 0.0, 0.0]], np.float32)  # code 1 is plausible: guidance may prefer it
    Guidance(np.zeros((2, 1), np.int64), 2.0, 0.1).mix(near, 0, 1)
    assert near[0].argmax() == 1
    broken = np.array([[np.nan, 2.0, 1.0], [0.0, 0.0, 0.0]], np.float32)
    Guidance(np.zeros((2, 1), np.int64), 2.0, 0.1).mix(broken, 0, 1)
    assert not np.isfinite(broken[0].sum())  # still to be seen by whoever looks


def test_guidance_away_from_itself_is_none(decoder: DualARDecoder, adapter: Any, tiny: Any) -> None:
    """`other + scale * (own - other)` is `own` where both prompts are the same."""
    prompt = tiny.encode_text(TEXT)
    frames = list(decoder.generate(prompt, sampler(adapter, temperature=0), 40, guidance=Guidance(prompt, 3.0)))
    np.testing.assert_array_equal(np.stack(frames), generate(decoder, adapter, prompt, 40))


def test_guidance_says_something_else(decoder: DualARDecoder, adapter: Any, tiny: Any, guided: Any) -> None:
    own = generate(decoder, adapter, tiny.encode_text(TEXT), 40)
    assert not np.array_equal(guided_frames(decoder, adapter, guided, TEXT, 40), own)


def test_guided_rows_and_others_share_a_batch(decoder: DualARDecoder, adapter: Any, tiny: Any, guided: Any) -> None:
    """Rows of other lengths and limits join and leave beside guided ones; each gets what it gets alone."""
    texts = ["One.", "Two of them, longer.", "Three!", "And a fourth, the longest of all."]
    limits = [30, 12, 45, 7]
    for seed in (1, 2):
        how: dict[str, Any] = {"temperature": 0.9, "seed": seed, "batching": "invariant"}
        alone = [
            guided_frames(decoder, adapter, guided, text, limit, **how)
            if n % 2
            else generate(decoder, adapter, tiny.encode_text(text), limit, **how)
            for n, (text, limit) in enumerate(zip(texts, limits, strict=True))
        ]
        jobs = []
        for n, (text, limit) in enumerate(zip(texts, limits, strict=True)):
            prompt = tiny.encode_text(text)
            guidance = ReferenceAdapter(guided)._guidance(prompt) if n % 2 else None
            sampling = sampler(adapter, temperature=0.9, seed=seed)
            jobs.append(decoder.generate(prompt, sampling, limit, batching="invariant", guidance=guidance))
        answers: list[list[np.ndarray]] = [[] for _ in jobs]
        running = dict(enumerate(jobs))
        while running:
            for n in list(running):
                frame = next(running[n], None)
                if frame is None:
                    del running[n]
                else:
                    answers[n].append(frame)
        for own, answer in zip(alone, answers, strict=True):
            np.testing.assert_array_equal(np.stack(answer), own)
    assert decoder.busy == 0


def test_a_guided_rows_failure_is_its_own(decoder: DualARDecoder, adapter: Any, tiny: Any, guided: Any) -> None:
    prompt = tiny.encode_text(TEXT)
    expected = generate(decoder, adapter, prompt, 20, batching="on")
    other = np.full_like(prompt, 10**6)  # a prompt that cannot be embedded
    bad = decoder.generate(prompt, sampler(adapter, temperature=0), 20, batching="on", guidance=Guidance(other, 2.0))
    good = decoder.generate(prompt, sampler(adapter, temperature=0), 20, batching="on")
    first = next(good)
    with pytest.raises(GenerationError, match="outside the vocabulary"):
        next(bad)
    np.testing.assert_array_equal(np.stack([first, *good]), expected)
    abandoned = decoder.generate(
        prompt, sampler(adapter, temperature=0), 20, batching="on", guidance=Guidance(prompt, 2.0)
    )
    next(abandoned)
    abandoned.close()
    assert decoder.busy == 0
