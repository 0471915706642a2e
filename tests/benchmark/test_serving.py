"""The serving benchmark: figures, failures, each scenario on the tiny engine. No timing is asserted."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from accelerator.benchmark.process import ArmFailed, ArmGone
from accelerator.benchmark.serving import ServingOptions, compiled, to_markdown, to_svg
from accelerator.benchmark.serving_plan import ON_A_SERVER, PYTORCH, SCENARIOS, ServingPlan
from accelerator.benchmark.serving_scenarios import Served, resident, take, warm
from accelerator.engines.base import Job
from accelerator.errors import EngineError
from accelerator.inference.prefix_cache import Prefixes
from accelerator.speech import Speech, SpeechRequest
from accelerator.text.segments import Segment, split
from tests.benchmark.workers import FakeProcess, measured
from tests.doubles import BareStages
from tests.voices.servers import real_server

SVG = "{http://www.w3.org/2000/svg}"
QUICK = ServingPlan.of(ServingOptions(quick=True))
LINUX = sys.platform.startswith("linux")


# Figures


def test_quotients_are_over_the_base_of_the_same_round() -> None:
    plan = replace(QUICK, rounds=2)
    values = {
        "pytorch": {"frames_per_s": [5.0, 20.0]},
        "1 at once": {"frames_per_s": [10.0, 40.0], "audio_per_s": [1.0, 2.0]},
        "2 at once": {"frames_per_s": [15.0, 80.0], "audio_per_s": [None, 3.0]},
    }
    table = compiled(SCENARIOS["throughput"], plan, values)  # type: ignore[arg-type]
    rows = table["rows"]
    assert list(rows) == ["pytorch", "1 at once", "2 at once", "1 text of 2 segments"]
    assert rows["2 at once"]["frames_per_s"]["median"] == 47.5
    assert rows["2 at once"]["frames_per_s_times"]["values"] == [1.5, 2.0]
    assert rows["pytorch"]["frames_per_s_times"]["values"] == [0.5, 0.5]
    assert rows["2 at once"]["audio_per_s_times"]["values"] == [None, 1.5]
    assert "audio_per_s" not in rows["pytorch"]
    assert rows["1 text of 2 segments"] == {}
    labels = {figure["name"]: figure["label"] for figure in table["figures"]}
    assert labels["frames_per_s_times"] == "times, 1 at once = 1"


class Clock:
    """A second later each time it is asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class FakeStages(BareStages):
    def segments(self, request: SpeechRequest, *, soon: bool) -> list[Segment]:
        return split(request.text, comfortable=200, longest=400)

    def generate(self, segment: Segment, voice: Any, job: Job, *, resume: Sequence[Any] = ()) -> Iterator[Any]:
        assert not job.invariant
        assert job.sampling.max_new_tokens is not None
        yield from [(0,)] * job.sampling.max_new_tokens


class FakeOptimizer:
    """Speaks a second for each request."""

    sample_rate = 1000
    adapter = SimpleNamespace(name="fake")
    fallback: list[dict[str, str]] = []  # noqa: RUF012 - never changed

    def __init__(self) -> None:
        self._bound = SimpleNamespace(stages=FakeStages())
        self.asked: list[dict[str, Any]] = []

    def synthesize(self, text: str, *reference: Any, **options: Any) -> Any:
        self.asked.append(options)
        segments = [{"frames": options["max_new_tokens"]}] * 2
        metrics = {"fallback": self.fallback, "audio_s": 1.0, "elapsed_s": 8.0, "rtf": 8.0, "segments": segments}
        return Speech(np.zeros(1000, np.float32), 1000, metrics)

    def synthesize_batch(self, texts: list[str], **options: Any) -> list[Any]:
        return [self.synthesize(text, **options) for text in texts]


@pytest.fixture
def faked() -> Served:
    optimizer: Any = FakeOptimizer()
    return Served(optimizer, replace(QUICK, frames=8, callers=(1, 2)), Clock())


def test_throughput_counts_frames_and_audio_of_all(faked: Served) -> None:
    figures = take(faked, "throughput", "2 at once", 0)
    assert figures == {"frames_per_s": 16.0, "audio_per_s": 2.0}  # the clock says that either took a second


def test_percentiles_are_of_all_callers_requests(faked: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    latencies = iter([1.0, 2.0, 3.0, 10.0])
    now = 0.0

    def clock() -> float:
        return now

    def speak(text: str, *, frames: int, **sampling: Any) -> Any:
        nonlocal now
        now += next(latencies)
        return SimpleNamespace(metrics={"audio_s": 4.0})

    served = replace(faked, clock=clock, plan=replace(faked.plan, batch=4))
    monkeypatch.setattr(served, "speak", speak)
    figures = take(served, "callers", "1 caller", 0)
    assert figures["p50"] == 2.5
    assert figures["p95"] == pytest.approx(np.percentile([1, 2, 3, 10], 95))
    assert figures["p99_over_p50"] == pytest.approx(figures["p99"] / 2.5)
    assert figures["audio_per_s"] == 1.0  # 16 seconds of audio in 16 seconds


def test_callers_with_seeds_have_a_seed_each(faked: Served) -> None:
    take(faked, "callers", "2 callers, seeds", 0)
    seeds = [options["seed"] for options in faked.optimizer.asked]  # type: ignore[attr-defined]
    assert len(set(seeds)) == len(seeds) == 4
    take(faked, "callers", "2 callers", 0)
    assert all("seed" not in options for options in faked.optimizer.asked[4:])  # type: ignore[attr-defined]


def test_a_long_text_costs_by_the_word(faked: Served) -> None:
    figures = take(faked, "long-text", "40 words", 0)
    assert figures["s_per_word"] == 0.2
    assert (figures["segments"], figures["frames_per_word"], figures["audio_bytes"]) == (2.0, 0.4, 4000.0)


def test_what_pytorch_spoke_is_noted(faked: Served) -> None:
    faked.optimizer.fallback = [{"part": "encoder", "reason": "Slower", "message": "by far"}]  # type: ignore[attr-defined]
    faked.speak("Hello.", frames=4)
    faked.speak("Hello.", frames=4)
    assert faked.notes == {"encoder in PyTorch: Slower: by far"}


def test_an_engine_without_stages_cannot_be_served(faked: Served) -> None:
    faked.optimizer._bound.stages = None  # type: ignore[misc]
    with pytest.raises(EngineError, match="fake cannot be served"):
        take(faked, "throughput", "1 at once", 0)


# The scenarios, on the tiny engine


@pytest.fixture
def served(fast: Any, tmp_path: Path) -> Iterator[Served]:
    runtime, voices = fast._runtime, fast._dispatcher.voices
    before = runtime.settings, voices._store
    runtime.settings, voices._store = replace(runtime.settings, voices_dir=tmp_path / "voices"), None
    yield Served(fast, QUICK)
    runtime.settings, voices._store = before


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name not in ("memory", "neighbours")])
def test_every_item_has_its_figures(served: Served, scenario: str) -> None:
    known = {figure.name for figure in SCENARIOS[scenario].figures}
    if not LINUX:
        known -= {"rss_before", "rss_after", "rss_peak"}
    warm(served, scenario)
    for number, item in SCENARIOS[scenario].order(replace(QUICK, rounds=1)):
        if item != PYTORCH:
            figures = take(served, scenario, item, number)
            assert set(figures) == known, item
            assert all(np.isfinite(value) and value > 0 for value in figures.values()), item


def test_a_known_voice_is_neither_encoded_nor_prefilled_again(served: Served) -> None:
    route = served.optimizer._routes["encoder"]
    encoded: list[int] = []
    told: list[int] = []
    choice, look_up = route.choice, Prefixes.longest

    def spy(self: Any, prompt: np.ndarray, ends: Any) -> Any:
        found = look_up(self, prompt, ends)
        told.append(found[0])
        return found

    def encode(audio: np.ndarray) -> np.ndarray:
        encoded.append(len(audio))
        return np.asarray(choice.call(audio))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prefixes, "longest", spy)
        patch.setattr(route, "_choice", replace(choice, call=encode))
        for item in SCENARIOS["voice"].items(QUICK):
            take(served, "voice", item, 7)
            assert encoded == [16_000], item  # a second, by the first item only
    assert told[:2] == [0, 0]
    assert told[2] > 0


def test_a_known_voice_on_a_server(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ON_A_SERVER not in SCENARIOS["voice"].items(QUICK)
    with real_server(tmp_path) as port:
        monkeypatch.setenv("ACCELERATOR_VOICES", f"redis://127.0.0.1:{port}?timeout=20")
        assert SCENARIOS["voice"].items(QUICK)[2] == ON_A_SERVER
        assert take(served, "voice", ON_A_SERVER, 3)["codes_s"] > 0
        import redis

        with redis.Redis(port=port) as client:
            assert client.dbsize() >= 1
    assert str(served.optimizer._runtime.voices) == str(tmp_path / "voices")


def test_mixed_requests_are_of_all_kinds_and_counted(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def noting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            asked.append(name + (" seed" if "seed" in options else "") + (" voice" if len(args) > 1 else ""))
            return method(*args, **options)

        return call

    for name in ("synthesize", "synthesize_batch", "stream"):
        monkeypatch.setattr(served.optimizer, name, noting(name, getattr(served.optimizer, name)))
    before = take(served, "memory", "after 0 requests", 0)
    assert asked == []
    after = take(served, "memory", "after 16 requests", 0)
    assert served.done == 16
    assert served.done == len(asked) + 3 * asked.count("synthesize_batch")
    assert {"synthesize", "synthesize seed", "synthesize voice", "synthesize_batch", "stream"} == set(asked)
    assert set(before) == set(after) == set(resident())
    assert after["rss_peak"] > 1_000_000


def test_new_voices_leave_the_users_cache_alone(served: Served, tmp_path: Path) -> None:
    take(served, "first-audio", "new voice", 5)
    assert list((tmp_path / "voices").rglob("voice.safetensors"))


def test_a_result_is_whole(fake: type[FakeProcess]) -> None:
    result = measured(fake)
    assert json.loads(json.dumps(result)) == result
    assert list(result["scenarios"]) == list(SCENARIOS)
    assert fake.alive == 0
    assert result["engine"]["size"] == "tiny"
    assert result["machine"]["hardware"]["usable_cores"] >= 1
    for name, scenario in result["scenarios"].items():
        assert scenario["errors"] == {}
        for item, row in scenario["rows"].items():
            expected = {f["name"] for f in scenario["figures"]}
            assert set(row) == expected, (name, item)
            assert all(
                figures["n"] == (1 if name in ("memory", "neighbours") else 2) or item == "80 words"
                for figures in row.values()
            )
    pytorch = result["scenarios"]["throughput"]["rows"]["pytorch"]
    assert pytorch["frames_per_s"]["values"] == [3.0, 3.0]  # 6 frames in 0.5 + 5 * 0.3 s
    assert pytorch["audio_per_s"]["values"] == [0.25, 0.25]
    assert "throughput: pytorch language_model, 5" in fake.log


def test_only_the_scenarios_that_were_chosen_are_taken(fake: type[FakeProcess]) -> None:
    result = measured(fake, scenarios=("voice",), rounds=1)
    assert list(result["scenarios"]) == ["voice"]
    assert fake.log == [f"voice: {item}" for item in SCENARIOS["voice"].items(QUICK)]


def test_what_fails_is_told_and_the_rest_goes_on(fake: type[FakeProcess]) -> None:
    fake.faults = {
        "callers: 2 callers": ArmFailed("GenerationError: said nothing"),
        "long-text: 40 words": ArmGone("the process ended with signal 9"),
    }
    result = measured(fake)
    callers, texts = result["scenarios"]["callers"], result["scenarios"]["long-text"]
    assert callers["errors"] == {"2 callers": "GenerationError: said nothing"}
    assert callers["rows"]["2 callers"] == {}
    assert callers["rows"]["2 callers, seeds"]["p50"]["n"] == 2
    assert fake.log.count("callers: 2 callers") == 1  # not asked again
    assert texts["errors"]["all"] == "the process ended with signal 9"
    assert result["scenarios"]["memory"]["rows"]["after 16 requests"]["rss"]["median"] == 2.0
    assert fake.alive == 0
    markdown = to_markdown(result)
    assert "- 2 callers failed: GenerationError: said nothing" in markdown
    assert "- failed: the process ended with signal 9" in markdown
    assert "failed or not measured" in "".join(ET.fromstring(to_svg(result)).itertext())


def test_markdown_and_charts_name_everything(fake: type[FakeProcess]) -> None:
    result = measured(fake)
    text, svg = to_markdown(result), ET.fromstring(to_svg(result))
    assert text.startswith("# fake tiny, random weights, as a server\n")
    assert "text2semantic onnxruntime int8 2 threads" in text
    assert "encoder in PyTorch: Slower: by far" in text
    drawn = "".join(svg.itertext())
    for scenario in result["scenarios"].values():
        assert f"## {scenario['title']}" in text
        for item in scenario["rows"]:
            assert f"| {item} |" in text
            assert item in drawn
    height = float(svg.attrib["height"])
    for rect in svg.iter(f"{SVG}rect"):
        assert float(rect.attrib["y"]) + float(rect.attrib["height"]) <= height
        assert 0 < float(rect.attrib["width"]) <= float(svg.attrib["width"]) - float(rect.attrib["x"])
