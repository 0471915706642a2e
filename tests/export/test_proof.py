"""What the proof lets pass, and that a graph which is wrong in any way does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator.cache import ContentCache
from accelerator.engines.reference import ReferenceAdapter
from accelerator.errors import BadOutput
from accelerator.export.component import Built, proof_note
from accelerator.export.graph.dual_ar import DualARSpec
from accelerator.export.graph.quantize import RECIPES
from accelerator.export.proof import (
    BARS,
    SNR_DB,
    TIE,
    Bar,
    Trace,
    compare_arrays,
    compare_codes,
    compare_logits,
    compare_signals,
    replay,
)
from accelerator.parts.language_model import LANGUAGE_MODEL, language_model_components

FP32 = BARS["fp32"]


@pytest.fixture
def logits() -> np.ndarray:
    """[20, 50] with clear winners."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 50)).astype(np.float32)
    x[np.arange(20), rng.integers(0, 50, 20)] += 5
    return x


def test_equal_logits_pass_every_bar(logits: np.ndarray) -> None:
    for bar in BARS.values():
        report = compare_logits({"main": (logits, logits.copy())}, bar)
        assert report["passed"] is True
        assert report["bar"] == bar.to_dict()
        main = report["main"]
        assert (main["steps"], main["max_error"], main["mismatches"], main["agreement"]) == (20, 0, 0, 1)
        assert main["spread_error"] == 0
        assert main["kl"] == pytest.approx(0, abs=1e-12)


def test_figures_by_hand() -> None:
    p, q = np.array([[1.0, 2.0, 4.0]]), np.array([[1.5, 2.0, 3.0]])
    softmax = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (p[0], q[0])]
    kl = sum(a * math.log(a / b) for a, b in zip(*softmax, strict=True))
    a, b = p[0] - p.mean(), q[0] - q.mean()
    report = compare_logits({"x": (p, q)}, Bar(kl=1.0))
    assert report["x"]["kl"] == pytest.approx(kl)
    assert report["x"]["relative_error"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
    assert report["x"]["max_error"] == pytest.approx(1.0)
    assert report["x"]["spread_error"] == pytest.approx(1.0 / p[0].std())
    assert report["kl"] == report["x"]["kl"]


def test_a_shift_of_all_logits_is_no_difference_to_softmax(logits: np.ndarray) -> None:
    figures = compare_logits({"x": (logits, logits + 3)}, Bar(kl=1.0))["x"]
    assert figures["kl"] < 1e-9
    assert figures["relative_error"] < 1e-5
    assert figures["max_error"] == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "figure"), [(n, f) for n, bar in BARS.items() for f in bar.to_dict() if f != "mismatches"]
)
def test_each_figure_has_its_bar(logits: np.ndarray, name: str, figure: str) -> None:
    bar, rng = BARS[name], np.random.default_rng(1)
    noise = rng.standard_normal(logits.shape)
    only = Bar(**{figure: bar.to_dict()[figure]})
    passed = []
    for scale in np.logspace(-6, 2, 60):
        report = compare_logits({"x": (logits, logits + noise * scale)}, only)
        assert report["passed"] == (report[figure] <= bar.to_dict()[figure])
        passed.append(report["passed"])
    assert passed[0]
    assert not passed[-1]
    assert sorted(passed, reverse=True) == passed, "worse is never better"


def test_every_pair_must_pass_and_the_worst_is_reported(logits: np.ndarray) -> None:
    good, bad = (logits, logits + 1e-5), (logits, logits[::-1].copy())
    for pairs in ({"a": good, "b": bad}, {"a": bad, "b": good}):
        report = compare_logits(pairs, FP32)
        assert report["passed"] is False
        assert report["spread_error"] == max(report["a"]["spread_error"], report["b"]["spread_error"]) > 1


def test_ties_may_swap_and_nothing_else(logits: np.ndarray) -> None:
    order = np.argsort(logits[0])
    first, second = order[-1], order[-2]
    for gap, mismatches in ((TIE / 2, 0), (TIE * 2, 1)):
        expected = logits.copy()
        expected[0, second] = expected[0, first]
        expected[0, second] -= np.float32(gap * expected[0].std())
        actual = expected.copy()
        actual[0, [first, second]] = expected[0, [second, first]]
        figures = compare_logits({"x": (expected, actual)}, FP32)["x"]
        assert figures["mismatches"] == mismatches
        assert figures["agreement"] == pytest.approx(0.95)
    assert not compare_logits({"x": (expected, actual)}, Bar(mismatches=0))["passed"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", BARS)
@pytest.mark.parametrize("side", ["a", "b"])
def test_what_is_not_finite_never_passes(logits: np.ndarray, value: float, name: str, side: str) -> None:
    """And says so without a warning: here these are errors."""
    broken = logits.copy()
    broken[3, 4] = value
    report = compare_logits({"a": (logits, broken if side == "a" else logits), "b": (logits, broken)}, BARS[name])
    assert report["passed"] is False
    assert all(not math.isfinite(report[figure]) for figure in BARS[name].to_dict() if figure != "mismatches")


def test_logits_of_any_leading_shape() -> None:
    x = np.random.default_rng(0).standard_normal((5, 3, 7)).astype(np.float32)
    assert compare_logits({"x": (x, x)}, FP32)["x"]["steps"] == 15


RAMP = np.linspace(-0.5, 0.5, 100, dtype=np.float32)


def test_arrays_are_compared_relative_to_the_largest_of_all() -> None:
    assert compare_arrays([(RAMP, RAMP + 1e-5)], 1e-4)["passed"] is True
    report = compare_arrays([(RAMP, RAMP), (RAMP[:50], RAMP[:50] + 2e-4)], 1e-4)
    assert (report["passed"], report["lengths"]) == (False, [100, 50])
    assert report["max_error"] == pytest.approx(4e-4, rel=0.01)
    assert compare_arrays([(RAMP * 200, RAMP * 200 + 5e-3)], 1e-4)["passed"] is True, "relative beyond 1"


def test_quiet_arrays_are_not_held_to_what_is_not_heard() -> None:
    quiet, silent = RAMP / 50, RAMP * 0
    assert compare_arrays([(RAMP, RAMP), (quiet, quiet + 4e-5)], 1e-4)["passed"] is True, "one among louder ones"
    assert compare_arrays([(quiet, quiet + 4e-5)], 1e-4)["passed"] is False, "quiet ones by themselves"
    assert compare_arrays([(silent, silent + 5e-6)], 1e-4)["passed"] is True
    assert compare_arrays([(silent, silent + 2e-5)], 1e-4)["passed"] is False


def test_arrays_of_other_shapes_do_not_pass() -> None:
    expected = {"passed": False, "bar": {"max_error": 1.0}, "shapes": [[100], [99]]}
    assert compare_arrays([(RAMP, RAMP[:99])], 1.0) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_arrays_that_are_not_finite_do_not_pass(value: float) -> None:
    broken = RAMP.copy()
    broken[7] = value
    assert compare_arrays([(RAMP, broken)], 1e3)["passed"] is False


def test_nothing_compared_is_nothing_proven() -> None:
    assert compare_arrays([], 1.0)["passed"] is False


def test_codes() -> None:
    codes = np.arange(100).reshape(4, 25)
    other = codes.copy()
    other[0, 0] = 50
    assert compare_codes([(codes, codes)], 1.0) == {"passed": True, "bar": {"equal": 1.0}, "equal": 1.0}
    assert compare_codes([(codes, codes), (codes, other)], 0.995)["passed"] is True
    assert compare_codes([(codes, other)], 0.995) == {"passed": False, "bar": {"equal": 0.995}, "equal": 0.99}
    assert compare_codes([(codes, codes[:, :24])], 0.1)["passed"] is False
    assert compare_codes([], 0.5)["passed"] is False


def test_replay_feeds_the_traces_frames_and_keeps_the_answers() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 9, (6, 4))
    trace = Trace(np.zeros((4, 2), np.int64), frames, np.zeros((6, 11), np.float32), np.zeros((6, 2, 9), np.float32))
    main, codes = rng.standard_normal((6, 11)), rng.standard_normal((6, 2, 9))

    def generate(prompt: np.ndarray, sampler: Any, count: int) -> Any:
        assert prompt is trace.prompt
        for step in range(count):
            frame = [sampler.main(main[step]), frames[step, 1]]
            frame += [sampler.code(k, codes[step, k - 1]) for k in (1, 2)]
            assert frame == frames[step].tolist()
            sampler.push(np.array(frame))
            yield frame

    recorder = replay(generate, trace)
    np.testing.assert_allclose(recorder.main_logits, main, rtol=1e-6)
    np.testing.assert_allclose(recorder.code_logits, codes, rtol=1e-6)


# A real component, built from weights or a spec that are wrong in one place


@pytest.fixture(scope="module")
def adapter(tiny: Any) -> ReferenceAdapter:
    return ReferenceAdapter(tiny)


@pytest.fixture(scope="module")
def trace(adapter: ReferenceAdapter) -> Trace:
    return adapter._trace()


def proof_of(
    adapter: ReferenceAdapter,
    trace: Trace,
    directory: Path,
    *,
    precision: str = "fp32",
    weights: Callable[[str], np.ndarray] | None = None,
    spec: DualARSpec | None = None,
    dtype: str = "fp32",
) -> dict[str, Any]:
    """The proof of what is built from `weights` and `spec`, against PyTorch's `trace`."""
    _, component, *_ = language_model_components(
        spec or adapter._spec, weights or adapter.backbone()[1], lambda: "", lambda: trace, dtype=dtype
    )
    assert component.name == LANGUAGE_MODEL
    (directory / "made").mkdir(parents=True)
    (directory / "scratch").mkdir()
    component.build(directory / "made", precision, lambda _: None)
    before = contents(directory / "made")
    try:
        return component.prove(Built(directory / "made", precision, directory / "scratch"))
    finally:
        assert contents(directory / "made") == before, "what is judged stays as it is"


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_right_export_passes(adapter: Any, trace: Trace, tmp_path: Path, precision: str) -> None:
    report = proof_of(adapter, trace, tmp_path, precision=precision)
    assert report["passed"] is True, report
    assert report["frames"] == len(trace.frames) == 96
    assert report["bar"] == BARS[precision].to_dict()
    assert report["main"]["steps"] == 96
    assert report["codes"]["steps"] == 96 * 3
    if precision == "fp32":
        assert report["mismatches"] == 0


def flipped(name: str, weight: np.ndarray) -> np.ndarray:
    weight = weight.copy()
    if name == "slow.1.down":
        weight.reshape(-1)[int(np.abs(weight).argmax())] *= -1
    return weight


WRONG_WEIGHTS: dict[str, Callable[[str, np.ndarray], np.ndarray]] = {
    "one weight's sign": flipped,
    "a layer that does nothing": lambda n, w: w * 0 if n in ("slow.1.down", "slow.1.out") else w,
    "gate and up swapped": lambda n, w: w[::-1] if n == "slow.0.gate" else w,
    "a norm of ones": lambda n, w: np.ones_like(w) if n == "slow.0.attention_norm" else w,
    "heads permuted": lambda n, w: np.roll(w, 16, axis=0) if n == "slow.0.qkv" else w,
    "fast embeddings off by one": lambda n, w: np.roll(w, 1, axis=0) if n == "fast_embeddings" else w,
    "codebooks off by one": lambda n, w: np.roll(w, 64, axis=0) if n == "codebook_embeddings" else w,
    "the fast head permuted": lambda n, w: np.roll(w, 1, axis=0) if n == "fast.head" else w,
    "the head's end row first": lambda n, w: np.roll(w, 1, axis=0) if n == "slow.head" else w,
    "infinite": lambda n, w: w / np.float32(0.0) if n == "slow.0.up" else w,
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the division above
@pytest.mark.parametrize("fault", WRONG_WEIGHTS)
def test_wrong_weights_are_rejected(adapter: Any, trace: Trace, tmp_path: Path, fault: str) -> None:
    change = WRONG_WEIGHTS[fault]
    try:
        report = proof_of(
            adapter,
            trace,
            tmp_path,
            weights=lambda name: np.ascontiguousarray(change(name, adapter.backbone()[1](name))),
        )
    except BadOutput:
        return  # logits that are no numbers stop the loop itself
    assert report["passed"] is False
    assert report["spread_error"] > BARS["fp32"].spread_error


@pytest.mark.parametrize(
    ("precision", "scale"), [("fp32", 1 / 200), ("fp32", 1), ("fp32", 200), ("fp32", 1e6), ("int8", 200)]
)
def test_the_size_of_the_logits_decides_nothing(
    adapter: Any, trace: Trace, tmp_path: Path, precision: str, scale: float
) -> None:
    """Real checkpoints have logits of a hundred, and rounding grows with them: an error of 1e-5 of them is rounding at
    any size, and one of 1e-3 is a wrong export at any size."""
    scaled = replace(
        trace, main_logits=trace.main_logits * np.float32(scale), code_logits=trace.code_logits * np.float32(scale)
    )

    def weights(wrong: float) -> Callable[[str], np.ndarray]:
        def read(name: str) -> np.ndarray:
            weight = adapter.backbone()[1](name)
            noise = np.random.default_rng(0).standard_normal(weight.shape)
            factor = np.float32(scale) if name in ("slow.head", "fast.head") else np.float32(1)
            return (weight * factor * (1 + wrong * noise)).astype(np.float32)

        return read

    (tmp_path / "wrong").mkdir()
    right = proof_of(adapter, scaled, tmp_path, precision=precision, weights=weights(0))
    wrong = proof_of(adapter, scaled, tmp_path / "wrong", precision=precision, weights=weights(1e-3))
    exact_right, exact_wrong = (r if precision == "fp32" else r["structure"] for r in (right, wrong))
    assert exact_right["passed"] is True, exact_right
    assert exact_right["spread_error"] < 1e-5
    assert exact_right["mismatches"] == 0
    assert exact_wrong["passed"] is False, exact_wrong
    assert wrong["passed"] is False
    assert exact_wrong["spread_error"] > 1e-3


WRONG_SPECS: dict[str, Callable[[DualARSpec], DualARSpec]] = {
    "another base of rotation": lambda s: replace(s, slow=replace(s.slow, rope_base=1e4)),
    "no norm of keys and queries": lambda s: replace(s, slow=replace(s.slow, qk_norm=False)),
    "the other input of the fast model": lambda s: replace(s, fast_input="post_norm"),
    "codes not scaled": lambda s: replace(s, scale_codebook_embeddings=False),
    "another epsilon": lambda s: replace(s, slow=replace(s.slow, eps=1e-1)),
    "one layer short": lambda s: replace(s, slow=replace(s.slow, layers=1)),
}


@pytest.mark.parametrize("fault", WRONG_SPECS)
def test_a_wrong_spec_is_rejected(adapter: Any, trace: Trace, tmp_path: Path, fault: str) -> None:
    assert proof_of(adapter, trace, tmp_path, spec=WRONG_SPECS[fault](adapter._spec))["passed"] is False


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # dividing by zero, for the infinite one
@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("fault", WRONG_WEIGHTS)
def test_quantization_excuses_no_wrong_graph(
    adapter: Any, trace: Trace, tmp_path: Path, precision: str, fault: str
) -> None:
    """Finer faults drown in the noise of four bits on random weights: the same graph in float32 gives them away."""
    change = WRONG_WEIGHTS[fault]
    try:
        report = proof_of(
            adapter,
            trace,
            tmp_path,
            precision=precision,
            weights=lambda name: change(name, adapter.backbone()[1](name)),
        )
    except BadOutput:
        return
    assert report["passed"] is False
    assert report["structure"]["passed"] is False
    assert report["bar"] == BARS["fp32"].to_dict()


@pytest.mark.parametrize("fault", WRONG_SPECS)
def test_quantization_excuses_no_wrong_spec(adapter: Any, trace: Trace, tmp_path: Path, fault: str) -> None:
    report = proof_of(adapter, trace, tmp_path, precision="int4", spec=WRONG_SPECS[fault](adapter._spec))
    assert report["passed"] is False


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_logits_are_held_to_their_own_bar(
    adapter: Any, trace: Trace, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right graph whose recipe is too coarse: the structure passes, the fidelity does not."""
    coarse = replace(RECIPES["int4"], block=128, symmetric=True, fit="extremes", head_bits=4, head_block=128)
    monkeypatch.setitem(RECIPES, precision, coarse)
    monkeypatch.setitem(BARS, precision, Bar(kl=1e-3, relative_error=0.02))
    report = proof_of(adapter, trace, tmp_path, precision=precision)
    assert report["passed"] is False
    assert report["structure"]["passed"] is True
    assert report["bar"] == {"kl": 1e-3, "relative_error": 0.02}


def test_an_engine_in_bfloat16_has_a_bar_of_its_own(adapter: Any, trace: Trace, tmp_path: Path) -> None:
    """Logits as wrong as bfloat16 makes them fail float32's bar and pass the other."""
    import torch

    rounded = replace(
        trace,
        main_logits=torch.from_numpy(trace.main_logits).bfloat16().float().numpy(),
        code_logits=torch.from_numpy(trace.code_logits).bfloat16().float().numpy(),
    )
    assert proof_of(adapter, rounded, tmp_path)["passed"] is False
    report = proof_of(adapter, rounded, tmp_path / "again", dtype="bf16")
    assert report["passed"] is True
    assert report["bar"] == BARS["fp32/bf16"].to_dict()


def test_the_report_is_a_note_beside_the_export(fast: Any) -> None:
    components = {c.name: c for route in fast._routes.values() for c in route.part.components}
    exports = {n: e for route in fast._routes.values() for n, e in route.choice.exports.items()}
    assert set(exports) == {"encoder", "embeddings", "text2semantic", "decoder"}
    cache = ContentCache()
    for name, export in exports.items():
        assert cache.read_note(export.entry.key, proof_note(components[name])) == export.proof
        assert export.proof["passed"] is True
        assert export.proof["bar"]


def signals(noise: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    tone = np.sin(np.arange(20_000) / 7).astype(np.float32)
    return tone, tone + (noise * rng.standard_normal(20_000)).astype(np.float32)


def test_the_noisiest_signal_decides() -> None:
    figures = compare_signals([signals(1e-4), signals(1e-2), signals(1e-3)], 30.0)
    assert figures["snr_db"] == pytest.approx(10 * math.log10(0.5 / 1e-4), abs=0.2)  # a sine's power over the noise's
    assert figures["passed"]
    assert figures["bar"] == {"snr_db": 30.0}
    assert not compare_signals([signals(1e-4), signals(1e-2)], 40.0)["passed"]


def test_signals_equal_silent_broken_or_none() -> None:
    tone, _ = signals(0.0)
    assert compare_signals([(tone, tone)], SNR_DB)["passed"]
    assert compare_signals([(tone * 0, tone * 0)], SNR_DB)["passed"]
    for wrong in (tone[:-1], np.full_like(tone, np.nan), np.full_like(tone, np.inf), -tone):
        figures = compare_signals([(tone, tone), (tone, wrong)], SNR_DB)
        assert not figures["passed"], figures
        assert math.isfinite(figures["snr_db"])
    assert not compare_signals([(tone * 0, tone)], SNR_DB)["passed"]
    assert not compare_signals([], SNR_DB)["passed"]
