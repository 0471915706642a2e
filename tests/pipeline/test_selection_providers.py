"""Execution providers: used where they are installed, proven and faster, on this device."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator.cache import ContentCache
from accelerator.export import component as components
from accelerator.hardware import choose_tier, detect
from accelerator.parts.backends import onnx_runtime
from accelerator.parts.onnx_file import digest, onnx_file, run_session
from accelerator.parts.part import Machine, Part
from accelerator.pipeline import context, selection
from accelerator.pipeline.selection import Choice, Selector
from accelerator.runtime.onnx import Session
from accelerator.runtime.options import RunOptions
from accelerator.runtime.providers import chains
from tests.doubles import component as quick_component
from tests.export.convolutions import chain, feed
from tests.runtime.providers import CPU, CUDA, TENSORRT, Providers
from tests.skeletons import Tokens, opened

MODEL = chain(2)
SECONDS = {CPU: 2.0, CUDA: 1.0, TENSORRT: 0.5}


def examples() -> Iterator[tuple[dict[str, np.ndarray], list[np.ndarray]]]:
    for seed in range(3):
        yield feed(seed), EXPECTED[seed]


EXPECTED = [Session(MODEL).run(feed(seed)) for seed in range(3)]


def part(seconds: dict[str, float], made: Any = None) -> Part:
    component = made or onnx_file("graph", lambda: MODEL, lambda: digest(MODEL), {}, examples=examples)

    def load(paths: Any, options: RunOptions) -> Any:
        call = run_session("graph", paths, options) if made is None else lambda given: None
        return lambda given: (options.providers[0], call(given))

    def probe(call: Any) -> float:
        answer = call(feed(0))
        return seconds[answer[0]] if isinstance(answer, tuple) else 3.0

    backends = (onnx_runtime((component,), load),)
    return Part("graph", "decode", original=lambda given: EXPECTED[0], probe=probe, backends=backends)


def chosen(folder: Path, runtime: Providers, *asked: str, made: Any = None, **changed: Any) -> Choice:
    tier = replace(choose_tier(detect()), threads=1)
    on = chains(asked or (CUDA, TENSORRT), runtime.get_available_providers())
    machine = Machine(detect(), tier, threads=1, precision="fp32", providers=on, engines=str(folder / "engines"))
    return Selector(ContentCache(folder), machine, **changed).load(part(SECONDS, made))


def provider(choice: Choice) -> str:
    assert choice.options is not None
    return choice.options.providers[0]


def test_the_fastest_one_is_used_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Providers(TENSORRT, CUDA).use(monkeypatch)
    choice = chosen(tmp_path, runtime)
    assert (provider(choice), choice.backend) == (TENSORRT, "onnxruntime")
    assert choice.probe["seconds"] == {
        "onnxruntime-1": 2.0,
        "onnxruntime-cuda-1": 1.0,
        "onnxruntime-tensorrt-1": 0.5,
        "original": 3.0,
    }
    assert runtime.elsewhere.count(TENSORRT) == 2, "once proven, once timed"
    again = Providers(TENSORRT, CUDA).use(monkeypatch)
    assert provider(chosen(tmp_path, again)) == TENSORRT
    assert again.elsewhere == [TENSORRT], "neither proven nor timed again"
    (name, settings), *rest = again.asked[-1]
    assert (name, rest) == (TENSORRT, [CUDA, CPU])
    assert Path(settings["trt_engine_cache_path"]).parent == tmp_path / "engines"


def test_one_that_answers_wrongly_is_not_used_nor_proven_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    runtime = Providers(CUDA, wrong=1.01).use(monkeypatch)
    choice = chosen(tmp_path, runtime, CUDA)
    assert provider(choice) == CPU
    assert "onnxruntime-cuda-1" not in choice.probe["seconds"]
    assert f"does not run on {CUDA}" in caplog.text
    assert runtime.elsewhere == [CUDA]
    caplog.clear()
    again = Providers(CUDA).use(monkeypatch)
    assert provider(chosen(tmp_path, again, CUDA)) == CPU
    assert again.elsewhere == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_one_that_is_slower_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Providers(CUDA).use(monkeypatch)
    monkeypatch.setitem(SECONDS, CUDA, 2.5)
    choice = chosen(tmp_path, runtime)
    assert provider(choice) == CPU
    assert choice.probe["seconds"]["onnxruntime-cuda-1"] == 2.5


@pytest.mark.parametrize("runtime", [Providers(), Providers(CUDA, started=False)], ids=["missing", "does not start"])
def test_one_that_is_not_there_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Providers
) -> None:
    choice = chosen(tmp_path, runtime.use(monkeypatch))
    assert provider(choice) == CPU
    assert set(choice.probe["seconds"]) == {"onnxruntime-1", "original"}


def test_without_being_asked_for_it_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Providers(TENSORRT, CUDA).use(monkeypatch)
    machine = Machine(detect(), replace(choose_tier(detect()), threads=1), threads=1, precision="fp32")
    assert provider(Selector(ContentCache(tmp_path), machine).load(part(SECONDS))) == CPU
    assert runtime.elsewhere == []
    assert provider(chosen(tmp_path, runtime)) == TENSORRT, "a tuning of its own"
    assert provider(Selector(ContentCache(tmp_path), machine).load(part(SECONDS))) == CPU


def test_without_a_probe_nobody_knows_that_it_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Providers(CUDA).use(monkeypatch)
    assert provider(chosen(tmp_path, runtime, probe=False)) == CPU
    assert runtime.elsewhere == []


def test_another_device_is_proven_and_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def on(device: str, runtime: Providers) -> Choice:
        for module in (components, selection):
            monkeypatch.setattr(module, "accelerators", lambda: (device,))
        return chosen(tmp_path, runtime.use(monkeypatch), CUDA)

    assert provider(on("Model: one", Providers(CUDA))) == CUDA
    wrong = Providers(CUDA, wrong=2.0)
    assert provider(on("Model: other", wrong)) == CPU
    assert wrong.elsewhere == [CUDA]
    assert provider(on("Model: one", known := Providers(CUDA))) == CUDA
    assert known.elsewhere == [CUDA]


def test_what_is_proven_on_the_cpu_only_is_not_used_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by an adapter of a third party, whose proof opens sessions of its own."""
    runtime = Providers(CUDA).use(monkeypatch)
    choice = chosen(tmp_path, runtime, CUDA, made=quick_component("graph"))
    assert provider(choice) == CPU
    assert "onnxruntime-cuda-1" not in choice.probe["seconds"]


def test_an_optimizer_passes_them_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "available_providers", lambda: [TENSORRT, CUDA, CPU])
    with opened(Tokens, tmp_path, providers="auto") as optimizer:
        machine = optimizer._runtime.selector.machine
    assert machine.providers == ((CUDA, CPU), (TENSORRT, CUDA, CPU))
    assert machine.engines == str(tmp_path / "engines")
    with opened(Tokens, tmp_path) as optimizer:
        assert optimizer._runtime.selector.machine.providers == ()
