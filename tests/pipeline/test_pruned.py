"""Who asks for pruning gets an answer: what is used and what it brings, or why nothing is."""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator import UniversalOptimizer
from accelerator.cache import ContentCache
from accelerator.export.calibration import Calibration
from accelerator.hardware import choose_tier, detect
from accelerator.parts.backends import onnx_runtime
from accelerator.parts.backends import pruned as prunable
from accelerator.parts.onnx_file import digest, onnx_file, run_session
from accelerator.parts.part import Machine, Part
from accelerator.pipeline.pruned import chosen
from accelerator.pipeline.selection import Choice, Selector
from accelerator.runtime.onnx import Session
from tests.export.convolutions import chain, feed, residual, with_small_channels
from tests.skeletons import Skeleton

SPARE, _ = with_small_channels(1, 4, 7)  # three channels of ten do nothing
SECONDS = {"whole": 2.0, "pruned": 1.0, "original": 3.0}


def part(model: bytes, at_least: float = 20.0, **changed: float) -> Part:
    """A part whose calls only say what they are."""
    taken = {**SECONDS, **changed}

    def spoken() -> Iterator[tuple[dict[str, np.ndarray], Sequence[np.ndarray]]]:
        for seed in range(3):
            yield feed(seed), Session(model).run(feed(seed))

    def load(paths: Any, options: Any) -> Any:
        kind = "pruned" if (paths["graph"] / "brings.json").exists() else "whole"
        return lambda: kind

    component = onnx_file("graph", lambda: model, lambda: digest(model), {}, examples=spoken)
    return Part(
        "graph",
        "decode",
        original=lambda: "original",
        probe=lambda call: taken[call()],
        backends=(onnx_runtime((component,), load),),
        pruned=prunable(component, load, Calibration(spoken, at_least)),
    )


def asked(folder: Path, own: Part, share: float = 0.3, *, probe: bool = True) -> Choice:
    machine = Machine(detect(), replace(choose_tier(detect()), threads=1), threads=1, precision="fp32")
    selector = Selector(ContentCache(folder), machine, probe=probe)
    return chosen(own, share, selector.exported, selector.load)


def test_what_is_faster_and_as_good_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    choice = asked(tmp_path, part(SPARE))
    assert choice.call is not None
    assert (choice.call(), list(choice.exports)) == ("pruned", ["graph-without-channels"])
    assert (choice.pruned["share"], choice.pruned["used"]) == (0.3, True)
    reason = str(choice.pruned["reason"])
    assert reason.startswith("channels: ")
    assert reason.endswith(" dB are left, 20 dB are asked, and it is 2.00 times as fast")
    assert f"pruning 0.3 of graph is used: {reason}" in caplog.messages
    again = asked(tmp_path, part(SPARE))
    assert (again.pruned, again.reason) == (choice.pruned, "fastest when probed before")


@pytest.mark.parametrize(
    ("pruned", "why"), [(1.9, "it is only 1.05 times as fast"), (2.5, "it is not the fastest here")]
)
def test_what_is_hardly_faster_is_not_used(tmp_path: Path, pruned: float, why: str) -> None:
    for _ in range(2):
        choice = asked(tmp_path, part(SPARE, pruned=pruned))
        assert (choice.call(), choice.pruned["used"]) == ("whole", False)  # type: ignore[misc]
        assert str(choice.pruned["reason"]).endswith(f"20 dB are asked, but {why}")


def test_where_even_the_original_is_faster_it_stays(tmp_path: Path) -> None:
    choice = asked(tmp_path, part(SPARE, original=0.5))
    assert (choice.call, choice.pruned["used"]) == (None, False)
    assert str(choice.pruned["reason"]).endswith("but it is not the fastest here")


def test_without_a_probe_nothing_says_that_it_is_faster(tmp_path: Path) -> None:
    choice = asked(tmp_path, part(SPARE), probe=False)
    assert (choice.call(), choice.pruned["used"]) == ("whole", False)  # type: ignore[misc]
    assert str(choice.pruned["reason"]).endswith("but only a probe could say whether it is faster")


def test_what_costs_too_much_is_refused_with_what_it_would_bring(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):  # the second one is told from the notes
        caplog.clear()
        choice = asked(tmp_path, part(chain(2)))
        assert (choice.call(), list(choice.exports)) == ("whole", ["graph"])  # type: ignore[misc]
        figures = r"-?\d+\.\d dB are left, 20 dB are asked"
        assert choice.pruned["used"] is False
        (said,) = caplog.messages
        assert_matches(said, rf"pruning 0\.3 of graph is not used: channels: {figures}; weights: {figures}")


def assert_matches(text: str, pattern: str) -> None:
    assert re.fullmatch(pattern, text), text


def test_a_file_that_packs_smaller_stands_for_the_whole_one(tmp_path: Path) -> None:
    """Of a graph without channels to spare, at a bar that its weights can lose a third at; not timed, either."""
    for probe in (True, False):
        choice = asked(tmp_path / str(probe), part(residual(32), 1.0, pruned=2.2), 0.34, probe=probe)
        assert (choice.call(), list(choice.exports)) == ("pruned", ["graph-without-weights"])  # type: ignore[misc]
        assert choice.pruned["used"] is True
        assert_matches(
            str(choice.pruned["reason"]), r"weights: \d+\.\d dB are left, 1 dB are asked, and its file packs to 0\.\d\d"
        )


def test_a_part_that_nobody_can_prune_says_so(tmp_path: Path) -> None:
    own = replace(part(SPARE), pruned=lambda share: ())
    choice = asked(tmp_path, own)
    assert choice.call() == "whole"  # type: ignore[misc]
    assert choice.pruned == {"share": 0.3, "used": False, "reason": "there is no known way to prune it"}


def test_two_shares_are_two_choices(tmp_path: Path) -> None:
    three, two = (asked(tmp_path, part(SPARE), share) for share in (0.3, 0.2))
    assert [c.pruned["used"] for c in (three, two)] == [True, True]
    assert len({c.exports["graph-without-channels"].entry.key for c in (three, two)}) == 2
    assert "onnxruntime-without-channels-0.2-1" in two.probe["seconds"]
    assert "onnxruntime-without-channels-0.3-1" not in two.probe["seconds"]


def test_a_damaged_export_is_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    choice = asked(tmp_path, part(SPARE))
    file = choice.exports["graph-without-channels"].path / "graph.onnx"
    file.chmod(0o644)
    file.write_bytes(b"\0" * file.stat().st_size)
    again = asked(tmp_path, part(SPARE))
    assert (again.call(), again.pruned["used"]) == ("pruned", True)  # type: ignore[misc]


class Spare(Skeleton):
    """An engine of one graph, half of whose channels do nothing."""

    MODEL, _ = with_small_channels(*range(0, 512, 2), channels=512)

    def parts(self) -> Sequence[Part]:
        model = self.MODEL
        load, given = functools.partial(run_session, "graph"), feed(0, 20_000)

        def spoken() -> Iterator[tuple[dict[str, np.ndarray], Sequence[np.ndarray]]]:
            for seed in range(3):
                yield feed(seed), Session(model).run(feed(seed))

        component = onnx_file("graph", lambda: model, lambda: digest(model), {}, examples=spoken)
        return (
            Part(
                "graph",
                "decode",
                original=lambda feed: Session(model).run(feed),
                probe=lambda call: min(processor_time(call, given) for _ in range(4)),
                backends=(onnx_runtime((component,), load),),
                pruned=prunable(component, load, Calibration(spoken)),
            ),
        )


def processor_time(call: Any, given: Any) -> float:
    """Of one thread: what else runs here does not disturb it."""
    start = time.thread_time()
    call(given)
    return time.thread_time() - start


def test_an_engine_with_channels_to_spare_runs_faster_and_says_so(tmp_path: Path) -> None:
    with UniversalOptimizer(None, adapter=Spare(), cache_dir=tmp_path, threads=1, prune=0.5) as optimizer:
        optimizer.prepare()
        found = optimizer.status()["parts"]["graph"]
    assert found["pruned"]["used"] is True, found
    taken = found["probe"]["seconds"]
    assert taken["onnxruntime-without-channels-0.5-1"] * 1.1 < taken["onnxruntime-1"]
    export = found["exports"]["graph-without-channels"]
    assert export["proof"]["snr_db"] > 100.0
    assert export["proof"]["bytes"] < 0.6
    with UniversalOptimizer(None, adapter=Spare(), cache_dir=tmp_path, threads=1) as optimizer:
        optimizer.prepare()
        plain = optimizer.status()["parts"]["graph"]
    assert "pruned" not in plain
    assert list(plain["exports"]) == ["graph"]


def test_tune_answers_as_well(tmp_path: Path) -> None:
    with UniversalOptimizer(None, adapter=Spare(), cache_dir=tmp_path, threads=1, prune=0.5) as optimizer:
        tuned = optimizer.tune()
        assert tuned["graph"]["after"]["backend"] == "onnxruntime-without-channels-0.5"
        assert optimizer.status()["parts"]["graph"]["pruned"]["used"] is True
