"""What the serving benchmark measures, with which texts and voices, in which order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator.benchmark.serving import ServingOptions
from accelerator.benchmark.serving_plan import SCENARIOS, ServingPlan
from accelerator.benchmark.serving_scenarios import voice
from accelerator.benchmark.serving_text import SENTENCES, text_of
from accelerator.errors import InvalidOption

QUICK = ServingPlan.of(ServingOptions(quick=True))


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
