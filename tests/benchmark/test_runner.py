"""The benchmark: figures, order, failures, and a whole quick run. No timing is asserted."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from accelerator.benchmark import BenchOptions, run, to_markdown, to_svg
from accelerator.benchmark import arms as the_arms
from accelerator.benchmark.engines import Hooks, hooks_of
from accelerator.benchmark.machine import BusyClock, busy_warning, memory, others_warning
from accelerator.benchmark.plan import Measure, Plan, arms_of, metrics_of, schedule
from accelerator.benchmark.process import ArmFailed, ArmGone, Process
from accelerator.benchmark.report import format_value
from accelerator.benchmark.runner import ArmRecord, Team
from accelerator.benchmark.statistics import ratio, summarize
from accelerator.cache import ContentCache
from accelerator.engines import adapter_for
from accelerator.errors import EngineError, InvalidOption, ProofFailed
from accelerator.hardware import choose_tier, detect
from accelerator.parts.part import Machine
from accelerator.pipeline.selection import Choice, Selector
from accelerator.reference import load
from accelerator.runtime.options import RunOptions
from accelerator.speech import AudioChunk, SamplingParams, SpeechRequest
from tests.doubles import part, probe

SVG = "{http://www.w3.org/2000/svg}"


# Figures


def test_summarize_gives_linear_quartiles_and_keeps_the_rounds() -> None:
    figures = summarize([4.0, 1.0, None, 3.0, 2.0, 10.0], "s")
    assert figures == {
        "median": 3.0,
        "min": 1.0,
        "max": 10.0,
        "p25": 2.0,
        "p75": 4.0,
        "n": 5,
        "unit": "s",
        "values": [4.0, 1.0, None, 3.0, 2.0, 10.0],
    }


@pytest.mark.parametrize("values", [[], [None, None]])
def test_nothing_measured_is_no_figure(values: list[float | None]) -> None:
    assert summarize(values, "s") is None


def test_ratios_are_taken_pair_by_pair() -> None:
    # The machine slows down fourfold in round 2: pairs do not see it, and the quotient of medians is another number.
    figures = ratio([10.0, 40.0, 12.0], [5.0, 20.0, 4.0])
    assert figures is not None
    assert figures["values"] == [2.0, 2.0, 3.0]
    assert figures["median"] == 2.0
    assert figures["median"] != 12.0 / 5.0


def test_ratios_leave_out_rounds_that_lack_either() -> None:
    figures = ratio([10.0, None, 9.0, 8.0], [5.0, 2.0, None])
    assert figures is not None
    assert figures["values"] == [2.0, None, None]
    assert figures["n"] == 1
    assert ratio([1.0], []) is None


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0271, "s", "27.1 ms"),
        (0.00031, "s", "0.31 ms"),
        (2.5, "s", "2.50 s"),
        (134.6, "s", "135 s"),
        (59.71, "ratio", "59.7"),
        (3 * 2**30, "bytes", "3.00 GiB"),
        (285 * 2**20, "bytes", "285 MiB"),
        (0.0, "s", "0 ms"),
    ],
)
def test_figures_for_people(value: float, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


# The plan


@pytest.mark.parametrize(
    "wrong",
    [
        {"precisions": ("int3",)},
        {"precisions": ("int8", "int8")},
        {"contexts": (200, 200)},
        {"contexts": ()},
        {"rounds": 0},
        {"frames": 1},
        {"threads": 0},
        {"engine": "fish-speech"},
        {"proof": "none"},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        BenchOptions(**wrong)


def test_a_plan_survives_json() -> None:
    plan = Plan.of(BenchOptions(checkpoint=Path("a"), cache_dir=Path("b"), threads=2))
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_full_plan_measures_what_is_promised() -> None:
    plan = Plan.of(BenchOptions())
    assert arms_of(plan, as_shipped=True) == [
        "as-shipped",
        "pytorch-right-sized",
        "onnxruntime-fp32",
        "onnxruntime-int8",
        "onnxruntime-int4",
    ]
    compiled = arms_of(Plan.of(BenchOptions(compiled=True)), as_shipped=False)
    assert compiled[:2] == ["pytorch-right-sized", "pytorch-compiled"]
    names = {row.name for row in metrics_of(plan)}
    for context in (200, 1500):
        assert {f"frame_{context}{part}" for part in ("", "_slow", "_fast", "_sampling")} <= names
    assert {"prefill_200", "prefill_1500", "decode_2s", "decode_10s", "encode_10s", "rtf", "load"} <= names
    assert "peak_memory" in names


def test_arms_are_interleaved() -> None:
    a, b = Measure("decode", 2), Measure("encode", 10)
    assert list(schedule(2, [a, b], "XY", resident=True)) == [
        *[(0, a, "X"), (0, a, "Y"), (0, b, "X"), (0, b, "Y")],
        *[(1, a, "X"), (1, a, "Y"), (1, b, "X"), (1, b, "Y")],
    ]
    assert list(schedule(2, [a, b], "XY", resident=False)) == [
        *[(0, a, "X"), (0, b, "X"), (0, a, "Y"), (0, b, "Y")],
        *[(1, a, "X"), (1, b, "X"), (1, a, "Y"), (1, b, "Y")],
    ]


# The team, with processes that only pretend


class FakeProcess:
    """Answers as a worker does, and keeps a log. faults: (arm, what) -> error to raise."""

    log: list[str]
    faults: dict[tuple[str, str], ArmFailed]
    frame_s: dict[str, float]
    alive = 0
    most_alive = 0

    def __init__(self, _: Callable[[str], None]) -> None:
        self.started, self.arm, self.count = 0.0, "", 0
        type(self).alive += 1
        type(self).most_alive = max(self.alive, self.most_alive)

    def ask(self, do: str, **arguments: Any) -> Any:
        if do == "prepare":
            return {
                "engine": "fake",
                "sample_rate": 1000,
                "as_shipped": "separate",
                "weights": None,
                "rejected": {"onnxruntime-int4": "ProofFailed: not faithful"},
            }
        if do == "open":
            self.arm = arguments["arm"]
        what = do
        if do == "measure":
            measure = Measure(**arguments["measure"])
            what = str(measure)
            self.log.append(f"{self.arm}: {measure}, {arguments['frames']}")
        if error := self.faults.get((self.arm, what)):
            raise error
        if do == "measure":
            self.count += 1
            return self._figures(measure)
        return {
            "open": {"notes": [], "spin_us": {}},
            "tune": {"threads": {"language_model": 1}, "frame_s": 0.05},
            "memory": {"peak_memory": 1000},
        }[do]

    def _figures(self, measure: Measure) -> dict[str, float]:
        if measure.kind == "language_model":
            size = f"{measure.size:g}"
            return {f"prefill_{size}": 1.0, f"frame_{size}": self.frame_s.get(self.arm, 0.01 * self.count)}
        if measure.kind == "speak":
            rtf = 100 * self.frame_s.get(self.arm, 0.01)
            return {"rtf": rtf, "spoken_frames": measure.size}
        return {f"{measure.kind}_{measure.size:g}s": 0.5}

    def close(self) -> None:
        type(self).alive -= 1


@pytest.fixture
def fake() -> type[FakeProcess]:
    class Fake(FakeProcess):
        log: list[str] = []  # noqa: RUF012 - of this test alone
        faults: dict[tuple[str, str], ArmFailed] = {}  # noqa: RUF012
        frame_s: dict[str, float] = {}  # noqa: RUF012

    return Fake


QUICK = BenchOptions(quick=True)


def told(_: str) -> None:
    pass


def test_rounds_take_each_measure_through_all_arms(fake: type[FakeProcess]) -> None:
    plan = replace(Plan.of(QUICK), rounds=2)
    arms = {name: ArmRecord(name) for name in ("as-shipped", "onnxruntime-fp32")}
    team = Team(plan, arms, None, told, fake)  # type: ignore[arg-type]
    team.rounds(resident=True)
    last_round = fake.log[-2 * len(plan.measures) :]
    assert [line.partition(":")[0] for line in last_round] == ["as-shipped", "onnxruntime-fp32"] * len(plan.measures)
    assert [line.partition(": ")[2].partition(",")[0] for line in last_round[::2]] == [str(m) for m in plan.measures]
    assert fake.alive == 0
    assert fake.most_alive == 2


def test_where_memory_is_short_one_arm_is_alive_at_a_time(fake: type[FakeProcess]) -> None:
    plan = replace(Plan.of(QUICK), rounds=2)
    arms = {name: ArmRecord(name) for name in ("as-shipped", "pytorch-right-sized", "onnxruntime-fp32")}
    team = Team(plan, arms, None, told, fake)  # type: ignore[arg-type]
    team.rounds(resident=False)
    assert fake.most_alive == 1
    assert fake.alive == 0
    for arm in arms.values():
        assert len(arm.values["rtf"]) == 2
        assert len(arm.values["load"]) == 2  # a fresh process in every round
        assert arm.values["peak_memory"] == [1000, 1000]


def test_slow_arms_get_fewer_frames(fake: type[FakeProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerator.benchmark.runner._SETTLE_S", 0.0)
    fake.frame_s = {"as-shipped": 2.5, "onnxruntime-fp32": 0.02}
    plan = replace(Plan.of(BenchOptions(rounds=1)), loads=1)
    arms = {name: ArmRecord(name) for name in ("as-shipped", "onnxruntime-fp32")}
    Team(plan, arms, None, told, fake).rounds(resident=True)  # type: ignore[arg-type]
    assert "as-shipped: language_model 200, 4" in fake.log
    assert "onnxruntime-fp32: language_model 200, 24" in fake.log
    whole = round(19 * 60 / 150 / 0.05)  # 19 words at 150 a minute, of which the fake's frames last 50 ms
    assert fake.log[-2:] == ["as-shipped: speak 24, 24", f"onnxruntime-fp32: speak 24, {whole}"]
    assert arms["as-shipped"].frames == {"200": 4, "1500": 4, "speak": 24}


def test_a_length_that_was_asked_for_is_every_arms(fake: type[FakeProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerator.benchmark.runner._SETTLE_S", 0.0)
    fake.frame_s = {"as-shipped": 2.5}
    arms = {name: ArmRecord(name) for name in ("as-shipped", "onnxruntime-fp32")}
    plan = replace(Plan.of(BenchOptions(rounds=1, frames=40)), loads=1)
    Team(plan, arms, None, told, fake).rounds(resident=True)  # type: ignore[arg-type]
    assert fake.log[-2:] == ["as-shipped: speak 40, 40", "onnxruntime-fp32: speak 40, 40"]


def test_a_failing_measure_or_arm_does_not_end_the_run(fake: type[FakeProcess]) -> None:
    fake.faults = {
        ("as-shipped", "encode 1"): ArmFailed("RuntimeError: no encoder"),
        ("onnxruntime-int8", "decode 0.5"): ArmGone("the process ended with signal 9"),
        ("onnxruntime-fp32", "open"): ArmFailed("SessionError: cannot load"),
    }
    result = run(QUICK, told, start=fake)  # type: ignore[arg-type]
    arms = result["arms"]
    assert {name: arm["status"] for name, arm in arms.items()} == {
        "as-shipped": "partial",
        "pytorch-right-sized": "ok",
        "onnxruntime-fp32": "failed",
        "onnxruntime-int8": "failed",
        "onnxruntime-int4": "failed",
    }
    assert arms["as-shipped"]["errors"] == {"encode 1": "RuntimeError: no encoder"}
    assert arms["onnxruntime-fp32"]["errors"] == {"arm": "SessionError: cannot load"}
    assert arms["onnxruntime-int4"]["errors"] == {"arm": "ProofFailed: not faithful"}
    assert "encode_1s" not in arms["as-shipped"]["metrics"]
    assert arms["as-shipped"]["metrics"]["rtf"]["n"] == 2
    assert fake.alive == 0
    markdown = to_markdown(result)
    assert "`as-shipped`, encode 1: RuntimeError: no encoder" in markdown
    assert "`onnxruntime-int4`: ProofFailed: not faithful" in markdown
    assert "failed or not measured" in "".join(ET.fromstring(to_svg(result)).itertext())


def test_speed_ups_are_over_both_baselines(fake: type[FakeProcess]) -> None:
    fake.frame_s = {"as-shipped": 2.0, "pytorch-right-sized": 0.2, "onnxruntime-fp32": 0.1, "onnxruntime-int8": 0.05}
    result = run(QUICK, told, start=fake)  # type: ignore[arg-type]
    ratios = result["ratios"]
    assert {n: r["frame_64"]["median"] for n, r in ratios["over_as_shipped"].items() if r} == {
        "pytorch-right-sized": pytest.approx(10),
        "onnxruntime-fp32": pytest.approx(20),
        "onnxruntime-int8": pytest.approx(40),
    }
    assert ratios["over_right_sized"]["onnxruntime-int8"]["frame_64"]["median"] == pytest.approx(4)
    assert "as-shipped" not in ratios["over_as_shipped"]
    assert "spoken_frames" not in ratios["over_right_sized"]["onnxruntime-fp32"]
    svg = to_svg(result)
    assert "logarithmic" in svg  # 2 s beside 0.05 s
    assert "real time, 50.0 ms" in svg


# Real processes


def test_a_worker_answers_errors_and_goes_on() -> None:
    process = Process(told)
    try:
        with pytest.raises(ArmFailed, match="EngineError: no engine called 'nobody'"):
            process.ask("open", plan=_plan(engine="nobody", checkpoint="x"), arm="pytorch-right-sized", weights="x")
        assert process.ask("memory")["peak_memory"] > 1_000_000
    finally:
        process.close()


def test_a_worker_that_dies_tells_why() -> None:
    process = Process(told)
    try:
        process._child.kill()
        with pytest.raises(ArmGone, match=r"ended with (signal 9|status)"):
            process.ask("memory")
    finally:
        process.close()


def test_a_worker_that_does_not_answer_is_ended() -> None:
    process = Process(told, patience_s=0.0)
    with pytest.raises(ArmGone, match="no answer to 'memory'"):
        process.ask("memory")
    assert process._child.poll() is not None


def test_an_engine_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    options = BenchOptions(quick=True, checkpoint=tmp_path / "missing.safetensors")
    with pytest.raises(EngineError, match=r"cannot read the weights .*missing\.safetensors"):
        run(options, told)


def _plan(**options: Any) -> dict[str, Any]:
    plan = Plan.of(QUICK).to_dict()
    plan["options"] |= options
    return plan


# Arms


class FakeAdapter:
    """Speaks silence; notes who was asked. Its language model counts."""

    name = "fake"
    sample_rate = 1000

    def parts(self) -> list[Any]:
        return [
            SimpleNamespace(name=n, original=lambda n=n: f"part {n}", components=())
            for n in ("text2semantic", "decoder")
        ]

    def bind(self, calls: dict[str, Any]) -> Any:
        return SimpleNamespace(stream=lambda request, kept: [AudioChunk(np.zeros(500, np.float32), 1000)])

    def original(self, request: SpeechRequest) -> list[AudioChunk]:
        return [AudioChunk(np.zeros(250, np.float32), 1000), AudioChunk(np.zeros(250, np.float32), 500)]


SLOWER_AS_SHIPPED = Hooks(as_shipped=lambda adapter: {"text2semantic": lambda: "as it ships"})


@pytest.mark.parametrize(
    ("hooks", "name", "language_model", "audio_s"),
    [
        (SLOWER_AS_SHIPPED, "as-shipped", "as it ships", 0.75),
        (SLOWER_AS_SHIPPED, "pytorch-right-sized", "part text2semantic", 0.5),
        (Hooks(), "pytorch-right-sized", "part text2semantic", 0.75),
        (None, "as-shipped", None, 0.75),
        (None, "pytorch-right-sized", "part text2semantic", 0.5),
    ],
)
def test_pytorch_arms_run_what_is_known_of_the_engine(
    hooks: Hooks | None, name: str, language_model: str | None, audio_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(the_arms, "open_adapter", lambda plan, weights, **_: FakeAdapter())
    monkeypatch.setattr(the_arms, "hooks_of", lambda adapter: hooks)
    arm = the_arms.open_arm(Plan.of(QUICK), name, None)
    assert arm.call("decoder")() == "part decoder"
    assert arm.speak("Hello.", SamplingParams()).audio_s == audio_s
    if language_model is not None:
        assert arm.call("text2semantic")() == language_model
    else:
        assert "end to end only" in arm.notes[0]
        with pytest.raises(EngineError, match="no text2semantic that could be called alone as as-shipped"):
            arm.call("text2semantic")


def test_a_compiled_arm_compiles_or_says_that_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, hooks = Plan.of(QUICK), Hooks()
    monkeypatch.setattr(the_arms, "open_adapter", lambda plan, weights, **_: FakeAdapter())
    monkeypatch.setattr(the_arms, "hooks_of", lambda adapter: hooks)
    with pytest.raises(EngineError, match=r"torch\.compile"):
        the_arms.open_arm(plan, "pytorch-compiled", None)
    compiled: list[bool] = []
    hooks = Hooks(compile_torch=lambda adapter: compiled.append(True))
    arm = the_arms.open_arm(plan, "pytorch-compiled", None)
    assert compiled == [True]
    assert arm.call("decoder")() == "part decoder"


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_draw_the_same_frames() -> None:
    adapter = adapter_for(load("tiny"))
    prompt = adapter.engine.encode_text("Hello there.")
    params = SamplingParams(seed=1, max_new_tokens=6)
    call = next(part.original for part in adapter.parts() if part.name == "text2semantic")
    before = np.stack(list(call(prompt, params)))
    hooks = hooks_of(adapter)
    assert hooks is not None
    assert hooks.compile_torch is not None
    hooks.compile_torch(adapter)
    np.testing.assert_array_equal(np.stack(list(call(prompt, params))), before)
    model = adapter.engine.language_model
    assert all(block._compiled_call_impl is not None for block in (*model.layers, *model.fast_layers))


def test_digests_of_a_checkpoint_go_where_the_exports_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def opened(engine: str, path: Any, **options: Any) -> FakeAdapter:
        given.update(options)
        return FakeAdapter()

    monkeypatch.setattr(the_arms, "adapter_from_checkpoint", opened)
    plan = Plan.of(replace(QUICK, engine="fish-speech", checkpoint=tmp_path, cache_dir=tmp_path / "cache"))
    the_arms.open_adapter(plan, tmp_path, dtype="bf16")
    assert given["cache"].root == tmp_path / "cache"
    assert given["dtype"] == "bf16"


@pytest.mark.parametrize("bf16", [True, False])
def test_a_baseline_is_not_in_what_pytorch_emulates(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(the_arms, "has_bf16", lambda: bf16)
    options, (note,) = the_arms._usual("fish-speech")
    assert options == {"dtype": "bf16" if bf16 else "fp32"}
    assert ("no convolutions" in note) != bf16
    assert the_arms._usual("reference") == ({}, [])
    assert the_arms.SHIPPED["fish-speech"] == {"dtype": "bf16"}


def test_a_precision_that_the_proof_rejected_is_not_compared() -> None:
    report = {"precision": "int4", "kl": 0.3, "bar": {"kl": 0.15}}
    part = {"reason": "", "exports": {"text2semantic": {"precision": "int8", "rejected": [report]}}}
    optimizer: Any = SimpleNamespace(status=lambda: {"parts": {"text2semantic": part}})
    the_arms._check(optimizer, "int8")
    with pytest.raises(ProofFailed, match=r"int4 is not faithful .*kl 0\.3; .*users get int8"):
        the_arms._check(optimizer, "int4")


def test_a_part_that_the_probe_left_in_pytorch_is_measured_in_onnx_runtime_all_the_same(tmp_path: Path) -> None:
    made = part(original=lambda: "PyTorch", load=lambda paths, options: lambda: "ours", probe=probe(slow="onnx"))
    profile = detect()
    selector = Selector(ContentCache(tmp_path), Machine(profile, choose_tier(profile), 2, "fp32"))
    route: Any = SimpleNamespace(choice=Choice(None, "its replacement is slower here", "Slower"), part=made)
    optimizer: Any = SimpleNamespace(_runtime=SimpleNamespace(selector=selector))
    call, used, notes = the_arms._onnx_call(route, optimizer)
    assert call() == "ours"
    assert used == RunOptions(threads=2)
    assert "users get PyTorch here" in notes[0]
    route.choice = Choice(None, "the exporter failed", "ExportError")
    with pytest.raises(EngineError, match="the exporter failed"):
        the_arms._onnx_call(route, optimizer)


# A whole run on the tiny engine

PRECISION = "int8"


@pytest.fixture(scope="module")
def quick(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Exports are kept between test sessions: tracing the codec takes most of the time, and keys are complete."""
    cache = request.config.cache
    assert cache is not None
    lines: list[str] = []
    result = run(
        BenchOptions(quick=True, precisions=(PRECISION,), cache_dir=cache.mkdir("accelerator-benchmark")), lines.append
    )
    assert any(line.startswith("round 2/2: speak 6, onnxruntime-int8") for line in lines)
    return result


def test_a_quick_run_measures_everything(quick: dict[str, Any]) -> None:
    assert quick["schema"] == 1
    assert json.loads(json.dumps(quick)) == quick
    assert {"options", "plan", "engine", "machine", "method", "metrics", "arms", "ratios", "warnings"} <= set(quick)
    assert list(quick["arms"]) == ["pytorch-right-sized", "onnxruntime-int8"]
    assert quick["engine"]["frame_s"] == pytest.approx(256 / 16_000)
    rows = {row["name"]: row for row in quick["metrics"]}
    for name, arm in quick["arms"].items():
        assert arm["status"] == "ok", arm["errors"]
        missing = set(rows) - set(arm["metrics"])
        allowed = {"memory_private", "memory_file"} if not sys.platform.startswith("linux") else set()
        if name == "pytorch-right-sized":
            allowed |= {"frame_64_sampling", "frame_128_sampling"}  # counts to the rest there
        assert missing <= allowed
        for metric, figures in arm["metrics"].items():
            assert figures["unit"] == rows[metric]["unit"]
            assert figures["n"] == len([v for v in figures["values"] if v is not None])
            assert 0 <= figures["min"] <= figures["p25"] <= figures["median"] <= figures["p75"] <= figures["max"]
            if rows[metric]["part_of"] is None:
                assert figures["median"] > 0
        assert arm["metrics"]["frame_64"]["n"] == 2
        assert arm["metrics"]["spoken_frames"]["median"] == pytest.approx(6)
        assert arm["frames_a_round"] == {"64": 6, "128": 6}


def test_the_parts_of_a_frame_add_up(quick: dict[str, Any]) -> None:
    metrics = quick["arms"]["onnxruntime-int8"]["metrics"]
    for number in range(2):
        whole = metrics["frame_64"]["values"][number]
        parts = sum(metrics[f"frame_64_{p}"]["values"][number] for p in ("slow", "fast", "sampling", "rest"))
        assert parts == pytest.approx(whole)


def test_ratios_of_a_run_are_those_of_its_rounds(quick: dict[str, Any]) -> None:
    arms, ratios = quick["arms"], quick["ratios"]
    assert ratios["over_as_shipped"] == {}  # this engine has no slower way to run: none was invented
    for metric, figures in ratios["over_right_sized"]["onnxruntime-int8"].items():
        baseline, ours = (arms[n]["metrics"][metric]["values"] for n in ("pytorch-right-sized", "onnxruntime-int8"))
        assert figures["values"] == pytest.approx([a / b for a, b in zip(baseline, ours, strict=True)])


def test_the_machine_is_described(quick: dict[str, Any]) -> None:
    machine = quick["machine"]
    assert machine["hardware"]["usable_cores"] >= 1
    assert machine["tier"]["precision"] in ("fp32", "int8", "int4")
    assert {"python", "torch", "onnxruntime", "numpy", "accelerator"} <= set(machine["versions"])
    assert all(arm["threads"] for arm in quick["arms"].values())


def test_markdown_names_every_arm_and_measure(quick: dict[str, Any]) -> None:
    text = to_markdown(quick)
    assert text.startswith("# Benchmark of reference tiny, random weights\n")
    assert all(f"`{arm}`" in text for arm in quick["arms"])
    for row in quick["metrics"]:
        assert row["label"] in text
    assert "figures mean nothing" in text
    assert "there is no slower baseline" in text
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count(" |") for line in tables} <= {2, 3}


def test_markdown_says_who_spoke_a_part_of_the_sentence_only(quick: dict[str, Any]) -> None:
    result = copy.deepcopy(quick)
    result["plan"] |= {"text_s": 6.0, "text": "Two words."}
    result["engine"]["frame_s"] = 0.05
    for frames, arm in zip((24, 120), result["arms"].values(), strict=True):
        arm["frames_a_round"]["speak"] = frames
    text = to_markdown(result)
    assert "one sentence of 2 words for as long as it would be read (120 frames)" in text
    assert text.count("end to end.") == 1
    assert "24 end to end." in text


def test_the_chart_is_well_formed(quick: dict[str, Any]) -> None:
    root = ET.fromstring(to_svg(quick))
    assert root.tag == f"{SVG}svg"
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert texts.count("pytorch-right-sized") == texts.count("onnxruntime-int8") == 3
    assert "real time" in texts
    assert len(list(root.iter(f"{SVG}rect"))) == 6
    height = float(root.attrib["height"])
    for rect in root.iter(f"{SVG}rect"):
        assert 0 < float(rect.attrib["width"]) <= 860 - 190
        assert float(rect.attrib["y"]) + float(rect.attrib["height"]) <= height


def test_names_are_escaped_in_the_chart(quick: dict[str, Any]) -> None:
    hardware = {**quick["machine"]["hardware"], "brand": "A <B> & C"}
    svg = to_svg({**quick, "machine": {**quick["machine"], "hardware": hardware}})
    assert "A <B> & C" in "".join(ET.fromstring(svg).itertext())


# The machine


def test_a_busy_machine_is_told() -> None:
    machine = {"load_average": [1.5, 1.0, 1.0], "hardware": {"usable_cpus": 2.0}, "others_cpus": 0.6}
    assert "load 1.5 on 2 CPUs" in str(busy_warning(machine))
    assert "0.6 CPUs" in str(others_warning(machine))
    idle = {"load_average": [0.1, 1.0, 1.0], "hardware": {"usable_cpus": 2.0}, "others_cpus": 0.01}
    assert busy_warning(idle) is None
    assert others_warning(idle) is None
    assert busy_warning({**idle, "load_average": None}) is None
    assert others_warning({**idle, "others_cpus": None}) is None


def test_memory_and_others_are_measured() -> None:
    figures = memory()
    assert figures["peak_memory"] > 1_000_000
    others = BusyClock().others_cpus()
    assert others is None or others >= 0


def test_importing_it_loads_neither_torch_nor_onnxruntime() -> None:
    code = "import sys, accelerator.benchmark; print(sorted({'torch', 'onnxruntime', 'onnx'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
