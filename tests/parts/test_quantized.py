"""A part's graph in int8 as a component: built from the float32 one, proven on inputs it was not calibrated with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from accelerator.cache import ContentCache
from accelerator.errors import ExportError, ProofFailed
from accelerator.export.calibration import Calibration
from accelerator.export.component import Component, export_component
from accelerator.parts.onnx_file import digest, onnx_file, run_session
from accelerator.parts.quantized import in_int8
from accelerator.parts.traced import traced
from accelerator.runtime.onnx import Session
from accelerator.runtime.options import RunOptions
from tests.export.convolutions import chain, feed

MODEL = chain(4)


def spoken(*, loud: float = 1.0) -> Iterator[tuple[dict[str, np.ndarray], list[np.ndarray]]]:
    """loud: how much louder the engine's own answers are than the graph's."""
    session = Session(MODEL)
    for seed in range(6):
        (answer,) = session.run(feed(seed))
        yield feed(seed), [answer * np.float32(loud)]


def of_a_file() -> Component:
    return onnx_file("graph", lambda: MODEL, lambda: digest(MODEL), {}, examples=spoken)


def test_it_is_published_with_what_was_found(tmp_path: Path) -> None:
    component = in_int8(of_a_file(), Calibration(spoken, method="minmax"))
    assert (component.name, component.precisions) == ("graph-int8", ("int8",))
    export = export_component(component, "int8", ContentCache(tmp_path))
    proof = export.proof
    assert (proof["passed"], proof["bar"], proof["layers"], proof["kept"]) == (True, {"snr_db": 20.0}, 4, 2)
    assert proof["method"] == "minmax"
    assert 20.0 < proof["snr_db"] < 60.0
    assert 0.0 < proof["max_error"] < 0.2
    assert {file.name for file in export.path.iterdir()} == {"graph.onnx", "manifest.json", "sweep.json"}
    sweep = json.loads((export.path / "sweep.json").read_text())
    assert set(sweep["noise"]) == set(sweep["quantized"])
    (given, (expected,)) = next(spoken())
    (answer,) = run_session("graph", {"graph": export.path}, RunOptions())(given)
    assert 0.0 < np.abs(answer - expected).max() < 0.2


def test_the_proof_is_against_the_engines_own_answers(tmp_path: Path) -> None:
    """Not the float32 graph's, which the sweep compares with: a tenth louder is 20.8 dB."""
    component = in_int8(of_a_file(), Calibration(lambda: spoken(loud=1.1), at_least=22.0))
    with pytest.raises(ProofFailed, match="graph-int8 as int8 is not faithful") as caught:
        export_component(component, "int8", ContentCache(tmp_path))
    assert 18.0 < caught.value.report["snr_db"] < 21.0


def test_a_bar_that_nothing_passes_is_an_export_error(tmp_path: Path) -> None:
    component = in_int8(of_a_file(), Calibration(spoken, at_least=90.0))
    with pytest.raises(ExportError, match="no layer can be int8 within 90 dB"):
        export_component(component, "int8", ContentCache(tmp_path))


def test_what_decides_is_in_the_key() -> None:
    made = [in_int8(of_a_file(), Calibration(spoken, **each)).recipes["int8"] for each in ({}, {"method": "entropy"})]
    common = {"at_least": 20.0, "among": ""}
    assert made == [{"method": "percentile", **common}, {"method": "entropy", **common}]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 16, 16, 1)
        self.layers = nn.ModuleList(nn.Conv1d(a, b, 3, padding=1) for a, b in pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def test_a_traced_part_is_quantized_from_its_own_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Net().eval()

    def answered(*seeds: int) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]:
        for seed in seeds:
            x = feed(seed, 64 + seed)["x"]
            with torch.inference_mode():
                yield (x,), net(torch.from_numpy(x)).numpy()

    def named() -> Iterator[tuple[dict[str, np.ndarray], list[np.ndarray]]]:
        return (({"x": x}, [y]) for (x,), y in answered(*range(6)))

    component = traced(
        "net",
        lambda: net,
        lambda: "weights",
        {},
        inputs={"x": {2: "n"}},
        outputs=("y",),
        examples=lambda: answered(1, 2),
    )
    export = export_component(in_int8(component, Calibration(named)), "int8", ContentCache(tmp_path))
    assert (export.proof["layers"], export.proof["kept"]) == (2, 2)
    assert 20.0 < export.proof["snr_db"] < 60.0
