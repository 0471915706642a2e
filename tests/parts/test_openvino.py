"""OpenVINO beside ONNX Runtime: proven for itself, in each precision, where it is installed; chosen where faster."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator.cache import ContentCache
from accelerator.hardware import choose_tier, detect
from accelerator.parts.backends import onnx_runtime, openvino
from accelerator.parts.onnx_file import digest, onnx_file, run_session
from accelerator.parts.part import Machine, Part
from accelerator.pipeline.selection import Choice, Selector
from accelerator.runtime.onnx import Session
from accelerator.runtime.openvino import Compiled, version
from accelerator.runtime.options import RunOptions
from tests.export.convolutions import chain, feed
from tests.runtime import openvino_double as double

MODEL = chain(3)
PROFILE = detect()
WITH_BF16 = replace(PROFILE, isa=tuple({*PROFILE.isa, "avx512_bf16"}))
SECONDS = {"onnxruntime": 2.0, "fp32": 1.5, "bf16": 1.0, "original": 3.0}


@pytest.fixture(autouse=True)
def _with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that has it."""
    monkeypatch.setattr("accelerator.parts.openvino.detect", lambda: WITH_BF16)


def answered(*, loud: float = 1.0) -> Iterator[tuple[Mapping[str, np.ndarray], list[np.ndarray]]]:
    """loud: how much louder the engine's own answers are than the graph's."""
    session = Session(MODEL)
    for seed, length in enumerate((200, 31)):
        (answer,) = session.run(feed(seed, length))
        yield feed(seed, length), [answer * np.float32(loud)]


def machine(precision: str = "auto") -> Machine:
    return Machine(WITH_BF16, replace(choose_tier(PROFILE), threads=1), threads=1, precision=precision)


def part(seconds: Mapping[str, float] = SECONDS, *, loud: float = 1.0, lower: bool = True) -> Part:
    component = onnx_file("graph", lambda: MODEL, lambda: digest(MODEL), {}, examples=answered)
    load = partial(run_session, "graph")

    def probe(call: Any) -> float:
        (session,) = getattr(call, "args", (None,))
        kind = session.options.dtype if isinstance(session, Compiled) else "onnxruntime" if session else "original"
        return seconds[kind]

    return Part(
        "graph",
        "decode",
        original=lambda given: Session(MODEL).run(given),
        probe=probe,
        backends=(
            onnx_runtime((component,), load),
            openvino(component, load, partial(answered, loud=loud), lower=lower),
        ),
    )


def chosen(folder: Path, *, precision: str = "auto", **given: Any) -> Choice:
    return Selector(ContentCache(folder), machine(precision)).load(part(**given))


def test_it_is_offered_where_it_is_installed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    double.install(monkeypatch, version=None)
    assert list(part().backends[1].offers(machine())) == []
    assert [component.name for component in part().components] == ["graph"]
    double.install(monkeypatch)
    assert [component.name for component in part().components] == ["graph", "graph-openvino"]
    backend = part().backends[1]
    assert backend.probed
    assert [(o.backend, o.threads, o.dtype) for o in backend.offers(machine())] == [
        ("openvino", 1, "fp32"),
        ("openvino", 1, "bf16"),
    ]
    assert [o.dtype for o in backend.offers(machine("fp32"))] == ["fp32"]
    assert [o.dtype for o in part(lower=False).backends[1].offers(machine())] == ["fp32"]
    without = replace(machine(), profile=replace(PROFILE, isa=("avx2",)))
    assert [o.dtype for o in backend.offers(without)] == ["fp32"]


@pytest.mark.parametrize(
    "installed",
    [False, pytest.param(True, marks=pytest.mark.skipif(version() is None, reason="openvino is not installed"))],
)
def test_the_probe_chooses_it_where_it_is_fastest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    if not installed:
        double.install(monkeypatch)
    choice = chosen(tmp_path, precision="fp32")
    assert (choice.backend, choice.precision) == ("openvino", "fp32")
    assert choice.probe["seconds"] == {"onnxruntime-1": 2.0, "openvino-fp32-1": 1.5, "original": 3.0}
    proof = choice.exports["graph-openvino"].proof
    assert (proof["passed"], proof["bar"]) == (True, {"max_error": 1e-4})
    assert proof["max_error"] < 1e-5
    assert {file.name for file in choice.exports["graph-openvino"].path.iterdir()} == {"openvino.json", "manifest.json"}
    assert choice.call is not None
    (expected,) = Session(MODEL).run(feed(7))
    np.testing.assert_allclose(choice.call(feed(7))[0], expected, atol=1e-5)
    again = chosen(tmp_path, precision="fp32")
    assert (again.backend, again.reason) == ("openvino", "fastest when probed before")


def test_bfloat16_has_a_proof_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    double.install(monkeypatch)
    choice = chosen(tmp_path)
    assert (choice.backend, choice.precision) == ("openvino", "bf16")
    proof = choice.exports["graph-openvino"].proof
    assert proof["bf16"]["bar"] == {"snr_db": 40.0}
    assert 40.0 < proof["bf16"]["snr_db"] < 60.0


def test_what_cannot_be_compiled_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    double.install(monkeypatch, refuses=lambda precision: precision == "bf16")
    with caplog.at_level(logging.WARNING):
        choice = chosen(tmp_path)
    assert (choice.backend, choice.precision) == ("openvino", "fp32")
    assert [record.message for record in caplog.records] == [
        "graph does not run in OpenVINO in bfloat16: OpenVINO cannot load graph.onnx: '/Range' is not finite"
    ]


def test_bfloat16_that_fails_its_proof_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    double.install(monkeypatch)
    monkeypatch.setattr("accelerator.parts.openvino.SNR_DB", 60.0)
    choice = chosen(tmp_path)
    assert (choice.backend, choice.precision) == ("openvino", "fp32")
    assert re.search(r"in OpenVINO in bfloat16: [45]\d\.\d dB, of which 60 are needed", caplog.text)


def test_where_it_fails_its_proof_onnx_runtime_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = double.install(monkeypatch)
    with caplog.at_level(logging.WARNING):
        choice = chosen(tmp_path, loud=1.02)
    assert (choice.backend, choice.precision) == ("onnxruntime", "fp32")
    (record,) = caplog.records
    assert "graph-openvino as fp32 is not faithful" in record.message
    assert "max_error 0.0196" in record.message
    before = len(compiled)
    assert before == 1, "nobody asks for bfloat16 then"
    assert chosen(tmp_path, loud=1.02, precision="fp32").backend == "onnxruntime"  # probed anew for other wishes
    assert len(compiled) == before, "what failed its proof is not tried again"


def test_another_version_is_proven_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = double.install(monkeypatch)
    chosen(tmp_path)
    proven = len(first)
    again = double.install(monkeypatch, version="2027.1.0")
    choice = chosen(tmp_path)
    assert (choice.backend, choice.reason) == ("openvino", "fastest when probed before")
    assert len(again) == 3 < proven  # two to be proven, one to run; nothing is timed
    assert choice.exports["graph-openvino"].entry.manifest["fields"]["config"] == {"openvino": "2027.1.0"}


def test_a_package_that_is_gone_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    double.install(monkeypatch)
    assert chosen(tmp_path).backend == "openvino"
    double.install(monkeypatch, version=None)
    choice = chosen(tmp_path)
    assert (choice.backend, choice.reason) == ("onnxruntime", "fastest when probed")
    assert list(choice.exports) == ["graph"]
    assert caplog.records == []
    double.install(monkeypatch)
    assert chosen(tmp_path).reason == "fastest when probed before"


def test_one_that_cannot_be_imported_is_no_failure_and_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    double.install(monkeypatch, version=None)
    monkeypatch.setattr("accelerator.runtime.openvino.version", lambda: "2026.4.1")
    assert chosen(tmp_path).backend == "onnxruntime"
    assert "graph-openvino could not be exported as fp32" in caplog.text
    double.install(monkeypatch)
    assert chosen(tmp_path, precision="fp32").backend == "openvino"


def test_without_a_probe_it_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = double.install(monkeypatch)
    choice = Selector(ContentCache(tmp_path), machine(), probe=False).load(part())
    assert (choice.backend, compiled) == ("onnxruntime", [])


def test_threads_and_precision_are_what_its_sound_depends_on() -> None:
    from accelerator.pipeline.tuning import Way

    def way(**options: Any) -> Way:
        return Way("openvino", RunOptions(backend="openvino", **options))

    assert len({way(threads=n, dtype=d).sound for n in (1, 2) for d in ("fp32", "bf16")}) == 4
    assert way(threads=2, dtype="bf16").name == "openvino-bf16-2"
