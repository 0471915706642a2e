"""Faults before a part ever runs: they need a cache and an adapter whose exports are broken on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from accelerator import UniversalOptimizer
from accelerator.errors import BadOutput, SessionError
from tests.doubles import QuickAdapter, component, probe, voice
from tests.pipeline.greedy import GREEDY, TEXT, same, speak


def raising(error: BaseException) -> Any:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


PREPARATION_FAULTS: dict[str, tuple[Callable[[str], dict[str, Any]], str, str]] = {
    "export": (lambda n: {"components": (component(n, build=raising(KeyError("op"))),)}, "ExportError", "op"),
    "export out of memory": (
        lambda n: {"components": (component(n, build=raising(MemoryError("2 GB"))),)},
        "MemoryError",
        "2 GB",
    ),
    "unfaithful": (
        lambda n: {"components": (component(n, prove=lambda *_: {"passed": False, "bar": {"kl": 1}, "kl": 2.0}),)},
        "ProofFailed",
        "kl 2",
    ),
    "NaN in the proof": (
        lambda n: {"components": (component(n, prove=lambda *_: {"passed": False, "kl": float("nan")}),)},
        "ProofFailed",
        "kl: nan",
    ),
    "bad output in the proof": (
        lambda n: {"components": (component(n, prove=raising(BadOutput("non-finite logits"))),)},
        "ProofFailed",
        "non-finite logits",
    ),
    "load": (lambda n: {"load": raising(SessionError("bad graph"))}, "SessionError", "bad graph"),
    "identity": (
        lambda n: {"components": (replace(component(n), identity=raising(OSError("unreadable"))),)},
        "OSError",
        "unreadable",
    ),
    "probe": (lambda n: {"probe": raising(StopIteration())}, "StopIteration", ""),
    "slower": (lambda n: {"probe": probe(slow="onnx")}, "Slower", "slower here"),
}


@pytest.mark.parametrize("part", ["encoder", "text2semantic", "decoder"])
@pytest.mark.parametrize("fault", PREPARATION_FAULTS)
def test_a_part_that_cannot_be_prepared_stays_in_pytorch(tiny: Any, tmp_path: Any, part: str, fault: str) -> None:
    faults, reason, message = PREPARATION_FAULTS[fault]
    adapter = QuickAdapter(tiny, **{part: faults(part)})
    optimizer = UniversalOptimizer(tiny, adapter=adapter, precision="fp32", threads=1, cache_dir=tmp_path)
    audio, rate = voice(tiny)
    expected = np.concatenate(list(tiny.stream(TEXT, audio, "a", **GREEDY)))
    answer, metrics = speak(optimizer, "blocking", reference_audio=(audio, rate), reference_text="a")
    same(answer, expected)
    assert [(f["part"], f["reason"]) for f in metrics["fallback"]] == [(part, reason)]
    assert message in metrics["fallback"][0]["message"]
    assert metrics["backends"][part] == "pytorch"
    status = optimizer.status()["parts"][part]
    assert status["backend"] == "pytorch"
    assert message in status["reason"]
    json.dumps(optimizer.status())
    again = speak(optimizer, "blocking", reference_audio=(audio, rate), reference_text="a")[1]
    known = part == "encoder" and fault != "identity"  # a voice that is remembered needs no encoder
    said = [] if known else [(part, reason)]
    assert [(f["part"], f["reason"]) for f in again["fallback"]] == said, "each request says so"
