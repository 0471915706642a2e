"""A run of the benchmark: order, failures, and a whole quick one. No timing is asserted."""

from __future__ import annotations

import copy
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from accelerator.benchmark import BenchOptions, run, to_markdown, to_svg
from accelerator.benchmark.plan import Measure, Plan
from accelerator.benchmark.process import ArmFailed, ArmGone
from accelerator.benchmark.runner import ArmRecord, Team
from tests.benchmark.workers import told

SVG = "{http://www.w3.org/2000/svg}"


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
