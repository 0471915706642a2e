"""The serving benchmark: options, order, figures, failures, each scenario on the tiny engine. No timing is asserted."""

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
from doubles import BareStages
from typer.testing import CliRunner

from accelerator.benchmark import serving_neighbours
from accelerator.benchmark.process import ArmFailed, ArmGone
from accelerator.benchmark.serving import ServingOptions, compiled, run, to_markdown, to_svg
from accelerator.benchmark.serving_plan import PYTORCH, SCENARIOS, ServingPlan
from accelerator.benchmark.serving_scenarios import Served, resident, take, voice, warm
from accelerator.benchmark.serving_text import SENTENCES, text_of
from accelerator.cli import app
from accelerator.engines.base import Job
from accelerator.errors import EngineError, InvalidOption
from accelerator.inference.prefix_cache import Prefixes
from accelerator.speech import Speech, SpeechRequest
from accelerator.text.segments import Segment, split

SVG = "{http://www.w3.org/2000/svg}"
QUICK = ServingPlan.of(ServingOptions(quick=True))
LINUX = sys.platform.startswith("linux")


# Options and the plan


@pytest.mark.parametrize(
    "wrong",
    [
        {"scenarios": ("speed",)},
        {"scenarios": ("voice", "voice")},
        {"precision": "int3"},
        {"rounds": 0},
        {"frames": 3},
        {"requests": 0},
        {"threads": 0},
        {"proof": "none"},
        {"engine": "fish-speech"},
        {"quick": True, "full": True},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        ServingOptions(**wrong)


@pytest.mark.parametrize(
    "options", [{}, {"full": True}, {"quick": True, "checkpoint": Path("a"), "cache_dir": Path("b")}]
)
def test_a_plan_survives_json(options: dict[str, Any]) -> None:
    plan = ServingPlan.of(ServingOptions(**options))
    assert ServingPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_plan_measures_what_is_promised() -> None:
    plan = ServingPlan.of(ServingOptions())
    items = {name: scenario.items(plan) for name, scenario in SCENARIOS.items()}
    assert items["throughput"] == ["pytorch", *(f"{n} at once" for n in (1, 2, 4, 8, 16)), "1 text of 8 segments"]
    assert items["long-text"] == ["100 words", "300 words", "1000 words", "3000 words"]
    assert items["callers"][-2:] == ["8 callers", "8 callers, seeds"]
    assert items["memory"][-1] == "after 200 requests"
    full = ServingPlan.of(ServingOptions(full=True, scenarios=("memory",)))
    assert SCENARIOS["long-text"].items(full)[-1] == "10000 words"
    assert SCENARIOS["memory"].items(full)[-1] == "after 1000 requests"
    assert (plan.scenarios, full.scenarios) == (tuple(SCENARIOS), ("memory",))


def test_rounds_go_through_all_items_and_long_texts_wait_for_the_last() -> None:
    plan = replace(QUICK, rounds=2, words=(40, 100), slow_words=50)
    assert SCENARIOS["long-text"].order(plan) == [(0, "40 words"), (1, "40 words"), (1, "100 words")]
    assert SCENARIOS["voice"].order(plan) == [(n, i) for n in (0, 1) for i in SCENARIOS["voice"].items(plan)]
    assert [number for number, _ in SCENARIOS["memory"].order(plan)] == [0, 0, 0]


def test_texts_have_the_words_they_are_asked_for() -> None:
    assert [len(sentence.split()) for sentence in SENTENCES] == [20] * len(SENTENCES)
    assert len(set(SENTENCES)) == len(SENTENCES)
    for words in (20, 105, 10_000):
        assert len(text_of(words).split()) == words
    assert text_of(20) == SENTENCES[0]


def test_voices_are_audible_and_differ() -> None:
    one, other = voice(16_000, 0.5, 0), voice(16_000, 0.5, -1)
    assert one.dtype == np.float32
    assert len(one) == 8000
    assert 0.05 < np.abs(one).max() < 1
    np.testing.assert_array_equal(one, voice(16_000, 0.5, 0))
    assert not np.array_equal(one, other)


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
    assert list((tmp_path / "voices").rglob("voice.npz"))


# The run, with processes that only pretend


class FakeProcess:
    log: list[str]
    faults: dict[str, ArmFailed]
    alive = 0

    def __init__(self, _: Callable[[str], None]) -> None:
        type(self).alive += 1
        self._is_alive = True

    def ask(self, do: str, **arguments: Any) -> Any:
        if do == "prepare":
            part = {"backend": "onnxruntime", "precision": "int8", "threads": 2, "reason": "fastest"}
            facts = {"name": "fake", "sample_rate": 1000, "frame_s": 0.05}
            return {**facts, "weights": "w", "trained": False, "parts": {"text2semantic": part}}
        if do == "take":
            what = f"{arguments['scenario']}: {arguments['item']}"
            self.log.append(what)
            if error := self.faults.get(what):
                raise error
            return {f.name: 2.0 for f in SCENARIOS[arguments["scenario"]].figures}
        if do == "measure":
            self.log.append(f"throughput: pytorch {arguments['measure']['kind']}, {arguments['frames']}")
            if arguments["measure"]["kind"] == "speak":
                return {"rtf": 4.0, "spoken_frames": 6}
            return {f"prefill_{len(SENTENCES[0])}": 0.5, f"frame_{len(SENTENCES[0])}": 0.3}
        if do == "beside":
            self.log.append(f"neighbours: {arguments['item']} {arguments['numbers']}")
            if error := self.faults.get(f"neighbours: {arguments['item']}"):
                raise error
            requests = [{"number": n, "seconds": 2.0, "audio_s": 3.0} for n in arguments["numbers"]]
            return {"begun": 1.0, "ended": 1.0 + 2 * len(requests), "requests": requests}
        if do == "notes":
            return ["encoder in PyTorch: Slower: by far"]
        return None

    def close(self) -> None:
        type(self).alive -= self._is_alive
        self._is_alive = False


@pytest.fixture
def fake() -> type[FakeProcess]:
    class Fake(FakeProcess):
        log: list[str] = []  # noqa: RUF012 - of this test alone
        faults: dict[str, ArmFailed] = {}  # noqa: RUF012

    return Fake


def told(_: str) -> None:
    pass


def measured(fake: type[FakeProcess], **options: Any) -> dict[str, Any]:
    start: Any = fake
    return run(ServingOptions(quick=True, **options), told, start=start, start_pytorch=start)


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


# Several processes


def answer(*seconds: float, first: int = 0, begun: float = 0.0) -> dict[str, Any]:
    """What a process answers that took so long for requests `first`, `first` + 1, ...: 4 s of audio each."""
    requests = [{"number": first + n, "seconds": s, "audio_s": 4.0} for n, s in enumerate(seconds)]
    return {"begun": begun, "ended": begun + sum(seconds), "requests": requests}


def test_neighbours_are_compared_with_the_same_sentence_alone() -> None:
    alone = [answer(1.0, 2.0), answer(3.0, 2.0)]  # sentence 0: 1 and 3 s, sentence 1: 2 s
    first = [answer(6.0, 6.0, begun=10.0), answer(3.0, 12.0, begun=11.0)]  # from 10 to 26
    second = [answer(9.0, first=len(SENTENCES)), answer(3.0, first=1)]  # sentences 0 and 1 again
    assert serving_neighbours.figures(alone, [first, second], 1.5) == {
        "alone_s": 2.0,
        "fair_s": 3.0,
        "median_shares": 2.0,  # of 2, 2, 1, 4, 3, 1
        "slowest_shares": 4.0,
        "alone_audio_per_s": 16 / 8,
        "audio_per_s": 24 / (16 + 9),
    }


def test_neighbours_make_all_requests_by_turns(fake: type[FakeProcess]) -> None:
    items = SCENARIOS["neighbours"].items(QUICK)
    assert items[:2] == ["own choice", "1 thread"]
    scenario = measured(fake, scenarios=("neighbours",))["scenarios"]["neighbours"]
    opened = [f"neighbours: {item} [0]" for item in items] * 2
    rounds = [f"neighbours: {item} {numbers}" for numbers in ([0, 1], [2]) for item in items for _ in range(3)]
    assert fake.log == opened + rounds  # alone, then both
    row = scenario["rows"]["1 thread"]
    assert {name: figure["median"] for name, figure in row.items()} == {
        "alone_s": 2.0,
        "fair_s": 2.0 * QUICK.processes_per_core,
        "median_shares": 1 / QUICK.processes_per_core,
        "slowest_shares": 1 / QUICK.processes_per_core,
        "alone_audio_per_s": 1.5,
        "alone_audio_per_s_times": 1.0,
        "audio_per_s": 3.0,
        "audio_per_s_times": 1.0,
    }
    assert scenario["notes"] == ["encoder in PyTorch: Slower: by far"]
    assert fake.alive == 0


def test_a_neighbour_that_fails_ends_them_all(fake: type[FakeProcess]) -> None:
    fake.faults = {"neighbours: 1 thread": ArmGone("the process ended with signal 9")}
    scenario = measured(fake, scenarios=("neighbours",))["scenarios"]["neighbours"]
    assert scenario["errors"] == {"all": "the process ended with signal 9"}
    assert scenario["rows"]["own choice"] == {}
    assert fake.alive == 0


def test_only_whole_sentences_of_the_bundled_voice_are_of_it() -> None:
    def plan(**options: Any) -> ServingPlan:
        return ServingPlan.of(ServingOptions(**options))

    alone: dict[str, Any] = {"scenarios": ("neighbours",)}
    assert plan(**alone).speaks_in_the_bundled_voice
    others = ({"quick": True}, {"size": "tiny"}, {"checkpoint": Path("a")}, {"scenarios": ("neighbours", "voice")})
    assert not any(plan(**{**alone, **other}).speaks_in_the_bundled_voice for other in others)
    assert not plan().speaks_in_the_bundled_voice
    assert plan(**alone, requests=7).each == 7


@pytest.mark.slow
def test_neighbours_speak_in_processes_of_their_own(tmp_path: Path) -> None:
    told: list[str] = []
    options = ServingOptions(quick=True, scenarios=("neighbours",), rounds=1, requests=2, cache_dir=tmp_path)
    scenario = run(options, told.append)["scenarios"]["neighbours"]
    assert scenario["errors"] == {}
    assert list(scenario["rows"]) == SCENARIOS["neighbours"].items(QUICK)
    for row in scenario["rows"].values():
        assert set(row) == {f["name"] for f in scenario["figures"]}
        figures = {name: figure["median"] for name, figure in row.items()}
        assert figures["fair_s"] == figures["alone_s"] * QUICK.processes_per_core
        assert 0 < figures["median_shares"] <= figures["slowest_shares"]
        assert min(figures["audio_per_s"], figures["alone_audio_per_s"]) > 0
    assert "neighbours: opening process 2 of 2" in told


# The command


def test_the_command_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from accelerator.benchmark import serving

    given: list[ServingOptions] = []
    monkeypatch.setattr(serving, "run", lambda options, report: given.append(options) or {"rows": 1})
    monkeypatch.setattr(serving, "to_markdown", lambda result: f"{result['rows']} row\n")
    monkeypatch.setattr(serving, "to_svg", lambda result: "<svg/>")
    file = tmp_path / "a.json"
    words = "serving --size tiny --scenario voice --scenario memory --full --precision int8 --rounds 2 --frames 9 "
    words += "--requests 8"
    result = CliRunner().invoke(app, ["bench", *words.split(), "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "1 row" in result.stdout
    assert json.loads(file.read_text()) == {"command": f"accelerator bench {words}", "rows": 1}
    chosen: dict[str, Any] = {"scenarios": ("voice", "memory"), "full": True, "precision": "int8"}
    assert given == [ServingOptions(size="tiny", rounds=2, frames=9, requests=8, **chosen)]
    assert CliRunner().invoke(app, ["bench", "--serving"]).exit_code == 0
    assert given[1] == ServingOptions()


@pytest.mark.parametrize(
    "words",
    [
        "--scenario voice",
        "--full",
        "serving --scenario speed",
        "serving --precision int8 --precision int4",
        "serving --context 64",
        "--serving --quick --full",
    ],
)
def test_the_command_refuses(words: str) -> None:
    result = CliRunner().invoke(app, ["bench", *words.split()])
    assert result.exit_code != 0
    assert "Traceback" not in result.output
