"""Neighbours that speak at once, each in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accelerator.benchmark import serving_neighbours
from accelerator.benchmark.process import ArmGone
from accelerator.benchmark.serving import ServingOptions, run
from accelerator.benchmark.serving_plan import SCENARIOS, ServingPlan
from accelerator.benchmark.serving_text import SENTENCES
from tests.benchmark.workers import FakeProcess, measured

QUICK = ServingPlan.of(ServingOptions(quick=True))


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
