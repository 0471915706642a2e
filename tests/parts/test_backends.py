"""Who is offered int8, and several threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from accelerator.cache import ContentCache
from accelerator.export.calibration import Calibration
from accelerator.hardware import choose_tier, detect
from accelerator.parts.backends import onnx_runtime, onnx_runtime_int8
from accelerator.parts.onnx_file import digest, onnx_file
from accelerator.parts.part import Machine, Part
from accelerator.pipeline.selection import Choice, Selector, _calls
from accelerator.runtime.onnx import Session
from accelerator.runtime.options import RunOptions
from tests.export.convolutions import chain, feed

MODEL = chain(3)
SECONDS = {"fp32": 2.0, "int8": 1.0, "original": 3.0}


def spoken() -> Iterator[tuple[dict[str, np.ndarray], list[np.ndarray]]]:
    for seed in range(4):
        yield feed(seed), Session(MODEL).run(feed(seed))


def machine(precision: str) -> Machine:
    return Machine(detect(), replace(choose_tier(detect()), threads=1), threads=1, precision=precision)


def part(given: Calibration, seconds: dict[str, float] = SECONDS) -> Part:
    component = onnx_file("graph", lambda: MODEL, lambda: digest(MODEL), {}, examples=spoken)

    def load(paths: Any, options: Any) -> Any:
        kind = "int8" if (paths["graph"] / "sweep.json").exists() else "fp32"
        return lambda: kind

    return Part(
        "graph",
        "decode",
        original=lambda: "original",
        probe=lambda call: seconds[call()],
        backends=(onnx_runtime((component,), load), onnx_runtime_int8(component, load, given)),
    )


def chosen(folder: Path, precision: str, given: Calibration, **seconds: float) -> Choice:
    return Selector(ContentCache(folder), machine(precision)).load(part(given, {**SECONDS, **seconds}))


@pytest.mark.parametrize(
    ("precision", "given", "offered"),
    [
        ("int8", {}, True),
        ("int4", {}, True),
        ("fp32", {}, False),
        ("fp32", {"heard": True}, False),
        ("auto", {}, False),
        ("auto", {"heard": True}, True),
        ("auto", {"at_least": 40.0}, True),
    ],
)
def test_int8_is_for_those_who_ask_or_where_nobody_is_worse_off(precision: str, given: dict, offered: bool) -> None:
    backend = part(Calibration(spoken, **given)).backends[1]
    assert backend.name == "onnxruntime-int8"
    assert bool(backend.offers(machine(precision))) is offered


def test_the_probe_chooses_int8_where_it_is_faster(tmp_path: Path) -> None:
    choice = chosen(tmp_path, "int8", Calibration(spoken))
    assert choice.call is not None
    assert (choice.call(), choice.precision, choice.backend) == ("int8", "int8", "onnxruntime")
    assert list(choice.exports) == ["graph-int8"]
    assert choice.probe["seconds"] == {"onnxruntime-1": 2.0, "onnxruntime-int8-1": 1.0, "original": 3.0}
    again = chosen(tmp_path, "int8", Calibration(spoken))
    assert (again.precision, again.reason) == ("int8", "fastest when probed before")


def test_float32_stays_where_int8_is_slower(tmp_path: Path) -> None:
    choice = chosen(tmp_path, "int8", Calibration(spoken), int8=2.5)
    assert (choice.call(), choice.precision) == ("fp32", "fp32")  # type: ignore[misc]


def test_float32_stays_where_int8_fails_its_proof(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    choice = chosen(tmp_path, "int8", Calibration(spoken, at_least=90.0))
    assert (choice.call(), choice.precision) == ("fp32", "fp32")  # type: ignore[misc]
    assert "graph cannot run on onnxruntime-int8: no layer can be int8 within 90 dB" in caplog.text


@pytest.mark.parametrize("alike", [True, False])
def test_two_threads_that_answer_as_one_serve_all_callers(alike: bool) -> None:
    """Others are not offered, and several callers of a session on two threads have one of their own."""

    def load(paths: Any, options: RunOptions) -> Any:
        return lambda feed: options.threads

    plain = onnx_runtime((), load, most_threads=2, alike=True)
    export = SimpleNamespace(proof={"alike": alike})
    several = replace(machine("auto"), threads=None, tier=replace(choose_tier(detect()), threads=2))
    offered = [each.threads for each in plain.offers(several) if plain.proven(each, {"part": export})]
    assert set(offered) == ({1, 2} if alike else {1})
    for backend, expected in ((plain, 2), (onnx_runtime((), load), 1)):
        options = RunOptions(threads=2)
        _, shared = _calls(backend, backend.load({}, options), {}, options)
        assert shared({}) == expected
