"""Whether segments are spoken at once: what is measured, what is kept of it, and what comes of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator import UniversalOptimizer
from accelerator.cache import ContentCache
from accelerator.engines.base import Bound
from accelerator.pipeline import pooling
from accelerator.pipeline.fallback import Route
from accelerator.pipeline.selection import Choice
from accelerator.pipeline.tuning import known
from accelerator.runtime.options import RunOptions
from tests.doubles import component, part
from tests.pipeline.utterers import RATE, Utterer, segments

TEXT = "".join(segment.text for segment in segments(6))


class Engine:
    """A pooled engine of one part. took: seconds of a segment by how many are spoken at once; calls: of its part."""

    name, sample_rate, cloning, options = "utterer", RATE, None, {}

    def __init__(self) -> None:
        self.utterer = Utterer()
        self.utterer.given = segments(6)
        self.calls: list[bool] = []
        self.engine = object()

    def parts(self) -> Any:
        def load(paths: Any, options: Any) -> Callable[[], float]:
            return lambda: 0.1 * options.threads

        def probe(call: Callable[[], float]) -> float:
            self.calls.append(threading.current_thread().name.startswith("accelerator-probe"))
            return call()

        return (part(original=lambda: 9.0, load=load, probe=probe, components=(component("quick"),)),)

    def bind(self, calls: Any) -> Bound:
        return Bound(self.engine, self.utterer)

    def original(self, request: Any) -> Any:
        raise AssertionError("nothing failed")

    def release(self) -> bool:
        return False


class Measured:
    """What the clock says of a segment, by how many are spoken at once."""

    def __init__(self) -> None:
        self.seconds, self.others, self.asked = {1: 0.067, 2: 0.081}, 0.0, list[int]()

    def of(self, speak: Any, at_once: int) -> float:
        self.asked.append(at_once)
        speak(at_once == 1)
        return self.seconds[at_once]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    told = Measured()
    monkeypatch.setattr(pooling, "_seconds", told.of)
    monkeypatch.setattr("accelerator.hardware.busy.BusyClock.others_cpus", lambda _: told.others)
    return told


def optimizer(root: Path, **options: Any) -> tuple[Engine, UniversalOptimizer]:
    engine = Engine()
    given = {"cache_dir": root, "threads": 2, **options}
    return engine, UniversalOptimizer(None, adapter=engine, **given)  # type: ignore[arg-type]


def spoken(root: Path, **options: Any) -> tuple[np.ndarray, Utterer]:
    engine, made = optimizer(root, **options)
    return made.synthesize(TEXT, seed=5).audio, engine.utterer


def test_where_the_pool_is_slower_segments_have_all_threads_one_after_the_other(
    measured: Measured, tmp_path: Path
) -> None:
    audio, utterer = spoken(tmp_path)
    assert (utterer.most, utterer.exclusive) == (1, [True] * 6)
    assert utterer.said == [f"Text {n}." for n in range(6)]
    measured.seconds[2] = 0.04
    pooled, others = spoken(tmp_path / "another")
    assert (others.most, others.exclusive) == (2, [False] * 6)
    np.testing.assert_array_equal(audio, pooled)


def test_the_choice_is_kept_and_shown(measured: Measured, tmp_path: Path) -> None:
    _, made = optimizer(tmp_path)
    assert made.status()["segments"]["reason"] == "not prepared yet"
    segments = made.prepare().status()["segments"]
    assert segments["backend"] == "one after the other"
    assert segments["reason"] == "its replacement is slower here (81.0 ms against 67.0 ms a unit)"
    assert segments["probe"]["seconds"] == {"pool-2": 0.081, "original": 0.067}
    assert measured.asked == [2, 2, 1, 1]
    assert made.synthesize(TEXT, seed=5).metrics["backends"] == {}
    _, later = optimizer(tmp_path)
    assert later.prepare().status()["segments"]["backend"] == "one after the other"
    assert measured.asked == [2, 2, 1, 1], "known"
    found = known(ContentCache(tmp_path), later._runtime.selector.machine.profile.fingerprint)
    assert sorted(tuning.part for tuning in found) == ["quick", "segments"]


def test_what_a_busy_machine_measured_is_measured_again_and_waits_for_tune(measured: Measured, tmp_path: Path) -> None:
    measured.others = 1.0
    _, made = optimizer(tmp_path)
    assert made.tune()["segments"]["after"]["backend"] == "original"
    measured.others, measured.seconds[2] = 0.0, 0.04
    before, after = made.tune()["segments"].values()
    assert (before["backend"], after["backend"], after["calm"]) == ("original", "pool", True)
    assert made.status()["segments"]["options"]["threads"] == 2
    measured.seconds[2] = 1.0
    assert made.tune()["segments"]["after"] == after, "known"
    assert made.tune(again=True)["segments"]["after"]["backend"] == "original"


def test_it_is_measured_anew_where_a_part_runs_so_that_it_is_heard() -> None:
    def identity(**options: Any) -> str:
        route = Route(part(load=None, original=None, probe=lambda call: 0.0), lambda part: choice)
        choice = Choice(len, "by the test", options=RunOptions(**options)) if options else Choice(None, "slower")
        return pooling._identity([route])

    assert identity(threads=2) == identity(threads=2, spin_us=50)
    assert len({identity(), identity(threads=1), identity(threads=2), identity(backend="onednn", dtype="bf16")}) == 4


def test_it_is_the_parts_that_are_timed_each_as_the_pool_calls_it(tmp_path: Path) -> None:
    engine, made = optimizer(tmp_path)
    made.prepare()
    assert engine.calls.count(True) == 2 * 2 + 2 * 2, "each twice, two segments at a time"
    seen: list[tuple[str, dict[str, Any]]] = []

    class Listening:
        def __init__(self, name: str) -> None:
            self.part = part(original=None, load=None, probe=lambda call: call(), name=name)

        def __call__(self, **given: Any) -> None:
            seen.append((self.part.name, given))

    routes: Any = [Listening("text"), Listening("decoder")]
    pooling._speak(routes, False)
    pooling._speak(routes, True)
    beside = {"exclusive": False}
    assert seen == [("text", beside), ("decoder", beside), ("text", {}), ("decoder", {})]


@pytest.mark.parametrize("at_once", [1, 3])
def test_seconds_are_of_one_segment(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    clock, said = [0.0], list[bool]()

    def speak(exclusive: bool) -> None:
        said.append(exclusive)
        clock[0] += 6.0

    monkeypatch.setattr(pooling.time, "perf_counter", lambda: clock[0])
    assert pooling._seconds(speak, at_once) == 6.0
    assert said == [at_once == 1] * max(2, at_once)


def test_without_a_probe_it_is_the_pool_and_with_one_thread_there_is_none(measured: Measured, tmp_path: Path) -> None:
    _, utterer = spoken(tmp_path, probe=False)
    assert utterer.exclusive == [False] * 6
    _, utterer = spoken(tmp_path, threads=1)
    assert utterer.exclusive == [True] * 6
    assert measured.asked == []


def test_a_text_of_one_segment_asks_nobody(measured: Measured, tmp_path: Path) -> None:
    engine, made = optimizer(tmp_path)
    engine.utterer.given = segments(1)
    made.synthesize("Text 0.", seed=5)
    assert engine.utterer.threads == [threading.current_thread().name]
    assert measured.asked == []
