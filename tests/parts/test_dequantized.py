"""The graph of an engine that ships it dynamically quantized: its proof, and what would not pass."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from accelerator import kernels
from accelerator.cache import ContentCache
from accelerator.errors import ProofFailed
from accelerator.export.component import Component, export_component
from accelerator.export.graph import adaptive, dequantize
from accelerator.hardware import choose_tier, detect
from accelerator.parts.dequantized import dequantized
from accelerator.parts.part import Backend, Machine
from accelerator.parts.whole_graph import Speak
from accelerator.runtime.options import RunOptions
from tests.engines import graph_double as graph
from tests.engines import kokoro_double as double
from tests.export import residual


@pytest.fixture(scope="module")
def session() -> Any:
    return graph.session(double.rounded())


def saying(length: int) -> Speak:
    random = np.random.default_rng(length)
    feed = {
        "tokens": random.integers(1, graph.IDS, (1, length)),
        "style": random.standard_normal((1, graph.STYLE)).astype(np.float32),
        "speed": np.ones(1, np.float32),
    }
    return lambda session: session.run(None, feed)


SPEECHES = tuple(map(saying, (9, 4)))


def sentences() -> Sequence[Speak]:
    return tuple(map(saying, (12, 5, 8, 20, 7, 16)))


def backends(session: Any) -> tuple[Any, ...]:
    return dequantized(session, SPEECHES, sentences, "/decoder")


def kinds(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node}


def proof(component: Component, cache: Path, precision: str = "fp32") -> Any:
    return export_component(component, precision, ContentCache(cache)).proof


def test_every_product_is_the_files_own(session: Any, tmp_path: Path) -> None:
    (component,) = backends(session)[0].components
    export = export_component(component, "fp32", ContentCache(tmp_path))
    assert {file.name for file in export.path.iterdir()} >= {"graph-float.onnx", "graph-float.onnx.data"}
    assert "Conv" in kinds(export.path / "graph-float.onnx")
    assert "ConvInteger" not in kinds(export.path / "graph-float.onnx")
    assert export.proof["bar"] == {"product_db": 100.0, "rewritten_db": 60.0, "snr_db": 10.0}
    assert export.proof["product_db"] > 100.0
    assert export.proof["rewritten_db"] > 100.0
    assert 20.0 < export.proof["snr_db"] < 60.0  # what the file's own rounding makes


def test_a_weight_that_is_not_the_files_is_refused(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its product: the answer as a whole is as near as its rounding allows."""
    exact = dequantize._exact

    def larger(*given: np.ndarray) -> np.ndarray:
        return exact(*given) * np.float32(1.001)

    monkeypatch.setattr(dequantize, "_exact", larger)
    (component,) = backends(session)[0].components
    with pytest.raises(ProofFailed, match="graph-float as fp32 is not faithful") as caught:
        proof(component, tmp_path)
    report = caught.value.report
    assert 59.0 < report["product_db"] < 61.0
    assert report["snr_db"] > 20.0


def test_a_graph_that_was_rewritten_wrongly_is_refused(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(path: Path, among: str) -> None:
        proto = onnx.load(str(path))
        tensor = next(each for each in proto.graph.initializer if each.name == "half")
        tensor.CopyFrom(numpy_helper.from_array(np.array(0.51, np.float32), "half"))
        onnx.save(proto, str(path))

    monkeypatch.setattr("accelerator.parts.dequantized.rewrite_activations", spoilt)
    with pytest.raises(ProofFailed) as caught:
        proof(backends(session)[0].components[0], tmp_path)
    assert caught.value.report["product_db"] > 100.0
    assert 20.0 < caught.value.report["rewritten_db"] < 60.0


def test_int8_is_judged_by_the_graph_without_rounding(session: Any, tmp_path: Path) -> None:
    (component,) = backends(session)[1].components
    export = export_component(component, "int8", ContentCache(tmp_path))
    assert (export.proof["passed"], export.proof["bar"], export.proof["layers"]) == (True, {"snr_db": 20.0}, 3)
    assert export.proof["snr_db"] > 20.0
    assert "QuantizeLinear" in kinds(export.path / "graph-float.onnx")


def test_what_is_not_rounded_has_no_such_graphs() -> None:
    profile = detect()
    machine = Machine(profile, choose_tier(profile), precision="int8")
    made = backends(graph.session(double.model()))
    assert [list(backend.offers(machine)) for backend in made] == [[], [], []]
    fp32 = replace(machine, precision="fp32")
    made = backends(graph.session(double.rounded()))
    assert [bool(backend.offers(fp32)) for backend in made] == [True, False, False]


# Residual blocks by compiled kernels

tiled = pytest.mark.skipif(not kernels.multiplies_chains(), reason="needs AMX or AVX512_BF16, and numba")


@pytest.fixture(scope="module")
def styled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return graph.session(residual.quantized(tmp_path_factory.mktemp("styled") / "m.onnx"))


def by_blocks(session: Any) -> Backend:
    spoken = tuple(
        functools.partial(lambda length, session: session.run(None, residual.feed(length)), n) for n in (900, 300)
    )
    return dequantized(session, spoken, sentences, "/decoder")[2]


@tiled
def test_blocks_are_proven_as_audio_from_bfloat16_is(styled: Any, tmp_path: Path) -> None:
    backend, feed = by_blocks(styled), residual.feed(700)
    export = export_component(backend.components[0], "fp32", ContentCache(tmp_path))
    assert export.proof["bar"] == {"product_db": 100.0, "rewritten_db": 40.0, "snr_db": 10.0}
    assert export.proof["product_db"] > 100.0
    assert 40.0 < export.proof["rewritten_db"] < 70.0
    assert {"blocks.safetensors", "piece-0.onnx", "piece-2.onnx"} < {file.name for file in export.path.iterdir()}
    audio, shape = backend.load({"graph-blocks": export.path}, RunOptions(threads=2, backend="native", dtype="bf16"))(
        feed
    )
    own, expected = styled.run(None, feed)
    np.testing.assert_array_equal(shape, expected)
    assert 10.0 < 10 * np.log10(np.square(own).sum() / np.square(audio - own).sum()) < 40.0  # what rounding makes


@tiled
def test_blocks_with_a_weight_that_is_not_the_graphs_are_refused(
    styled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = adaptive._weights

    def larger(*given: Any) -> dict[str, np.ndarray]:
        return {name: array * np.float32(1.05) for name, array in weights(*given).items()}

    monkeypatch.setattr(adaptive, "_weights", larger)
    with pytest.raises(ProofFailed, match="graph-blocks as fp32 is not faithful") as caught:
        proof(by_blocks(styled).components[0], tmp_path)
    assert caught.value.report["rewritten_db"] < 40.0
    assert caught.value.report["product_db"] > 100.0


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_blocks_are_offered_where_chains_are_and_rounding_is_allowed(
    styled: Any, session: Any, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    profile = detect()
    machine = Machine(profile, choose_tier(profile), precision=precision)
    for here in (True, False):
        monkeypatch.setattr(kernels, "multiplies_chains", lambda here=here: here)
        offered = by_blocks(styled).offers(machine)
        assert bool(offered) is (here and precision == "auto")
        assert {options.dtype for options in offered} <= {"bf16"}
    assert backends(session)[2].offers(machine) == []  # it has no sines
