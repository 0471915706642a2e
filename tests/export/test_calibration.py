"""Int8 as far as it sounds the same: what is quantized, what stays in float, and what is refused."""

from __future__ import annotations

import collections
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from accelerator.errors import ExportError
from accelerator.export.calibration import Calibration, Quantized, quantize, sweep_of
from accelerator.export.proof import compare_signals
from accelerator.runtime.onnx import Session
from tests.export.convolutions import chain, feed

FEEDS = [feed(seed) for seed in range(4)]
UNSEEN = [feed(seed, 333) for seed in (50, 51)]


def snr(model: bytes, quantized: bytes) -> float:
    """Over inputs of another length than those of the calibration."""
    exact, other = Session(model), Session(quantized)
    pairs = [(exact.run(each)[0], other.run(each)[0]) for each in UNSEEN]
    return float(compare_signals(pairs, 0.0)["snr_db"])


def kinds(model: bytes) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in onnx.load_from_string(model).graph.node)


@pytest.fixture(scope="module")
def plain() -> bytes:
    return chain(4)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_a_chain_of_convolutions_is_int8_but_for_its_ends(plain: bytes, method: str) -> None:
    made = quantize(plain, FEEDS, method=method, at_least=20.0)
    assert [name.split(":")[1] for name in made.quantized] == ["conv_1", "conv_2", "conv_3", "conv_4"]
    assert [name.split(":")[1] for name in made.kept] == ["conv_0", "conv_5"]
    assert set(made.noise) == set(made.quantized)
    assert made.snr_db >= 21.0
    assert snr(plain, made.content) > 20.0
    assert kinds(made.content)["Conv"] == 6  # ONNX Runtime fuses those between its nodes
    weights = {tensor.data_type for tensor in onnx.load_from_string(made.content).graph.initializer}
    assert onnx.TensorProto.INT8 in weights


def test_dynamic_weights_are_unsigned(plain: bytes) -> None:
    """Signed ones multiply four times slower than float32."""
    made = quantize(plain, FEEDS, method="dynamic", at_least=20.0)
    graph = onnx.load_from_string(made.content).graph
    products = [node for node in graph.node if node.op_type == "ConvInteger"]
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert [types[node.input[1]] for node in products] == [onnx.TensorProto.UINT8] * 4
    assert snr(plain, made.content) > 20.0


def test_the_sensitive_layer_is_found_and_stays_in_float() -> None:
    model = chain(4, spiky=2)
    made = quantize(model, FEEDS, method="minmax", at_least=20.0)
    noise = {name.split(":")[1]: found for name, found in made.noise.items()}
    assert max(noise, key=noise.__getitem__) == "conv_3"
    assert noise["conv_3"] > 0.1  # 10 dB alone
    assert [name.split(":")[1] for name in made.kept] == ["conv_0", "conv_3", "conv_5"]
    assert snr(model, made.content) > 20.0


def test_a_higher_bar_keeps_more_in_float(plain: bytes) -> None:
    low, high = (quantize(plain, FEEDS, method="minmax", at_least=bar) for bar in (20.0, 36.0))
    assert set(high.quantized) < set(low.quantized)
    assert snr(plain, high.content) > snr(plain, low.content)


def test_only_layers_of_the_place_named_are_tried(plain: bytes) -> None:
    model = onnx.load_from_string(plain)
    for node in model.graph.node[4:]:
        node.name = f"/decoder/{node.name}"
    made = quantize(bytes(model.SerializeToString()), FEEDS, among="/decoder")
    assert list(made.noise) == list(made.quantized)
    assert [name.split("/")[-1] for name in made.quantized] == [
        "conv_3",
        "conv_4",
    ]  # of conv_2 to conv_5, the inner ones


def test_what_cannot_pass_is_refused(plain: bytes) -> None:
    with pytest.raises(ExportError, match="no layer can be int8 within 90 dB"):
        quantize(plain, FEEDS, at_least=90.0)
    with pytest.raises(ExportError, match="inputs to calibrate with"):
        quantize(plain, [])


def test_an_operator_set_without_scales_for_channels_is_refused(plain: bytes) -> None:
    model = onnx.load_from_string(plain)
    model.opset_import[0].version = 11
    with pytest.raises(ExportError, match="operator set 11 cannot be quantized: convert it to 13"):
        quantize(bytes(model.SerializeToString()), FEEDS)


def test_a_model_with_its_weights_beside_it_is_read(plain: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = onnx.load_from_string(plain)
    onnx.save(model, str(path), save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    before = {file.name for file in tmp_path.iterdir()}
    beside, within = (Session(quantize(each, FEEDS).content).run(UNSEEN[0])[0] for each in (path, plain))
    np.testing.assert_array_equal(beside, within)
    assert {file.name for file in tmp_path.iterdir()} == before


def test_the_library_neither_prints_nor_warns(
    plain: bytes, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    handlers = list(logging.getLogger().handlers)
    for method in ("dynamic", "percentile"):
        quantize(plain, FEEDS, method=method)
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []
    assert (logging.getLogger().handlers, logging.getLogger().disabled) == (handlers, False)


def test_the_sweep_is_kept_beside_the_model(tmp_path: Path) -> None:
    made = Quantized(b"model", "minmax", 21.5, ("1:a", "2:b"), ("0:first",), {"1:a": 0.001, "2:b": 0.002})
    made.write(tmp_path / "part.onnx")
    assert (tmp_path / "part.onnx").read_bytes() == b"model"
    assert sweep_of(tmp_path) == {"method": "minmax", "layers": 2, "kept": 1}


def test_a_third_of_the_examples_is_for_the_proof() -> None:
    given = Calibration(lambda: ((n, -n) for n in range(5)))
    assert given.calibrating() == [(0, 0), (1, -1), (2, -2), (3, -3)]
    assert given.judging() == [(4, -4)]
    assert Calibration(lambda: iter([(1, 1)])).judging() == [(1, 1)]


@pytest.mark.parametrize(
    ("given", "unasked"),
    [({}, False), ({"at_least": 40.0}, True), ({"heard": True}, True), ({"at_least": 39.0}, False)],
)
def test_who_did_not_ask_gets_only_what_was_heard_or_is_exact(given: dict, unasked: bool) -> None:
    assert Calibration(lambda: iter(()), **given).unasked is unasked


def test_what_saves_nothing_stays_in_float(plain: bytes) -> None:
    """One product for each run, of a hundred thousand."""
    proto = onnx.load_from_string(plain)
    last = proto.graph.node[-1]
    last.output[0] = "almost"
    proto.graph.initializer.append(numpy_helper.from_array(np.full((1, 1), 0.1, np.float32), "gain"))
    tiny = (
        helper.make_node("ReduceMax", ["x"], ["loudest"], axes=[2]),
        helper.make_node("MatMul", ["loudest", "gain"], ["level"], name="tiny"),
    )
    for place, node in enumerate(tiny, start=1):
        proto.graph.node.insert(place, node)
    proto.graph.node.append(helper.make_node("Add", ["almost", "level"], ["y"]))
    made = quantize(proto.SerializeToString(), FEEDS, at_least=20.0)
    assert [name.split(":")[1] for name in made.kept] == ["conv_0", "tiny", "conv_5"]
    assert len(made.noise) == 4


def test_layers_behind_an_operator_that_onnx_does_not_know_are_quantized(plain: bytes) -> None:
    """Its inference of types ends there, and ONNX Runtime calibrates only what has a type."""
    proto = onnx.load_from_string(plain)
    for node in proto.graph.node:
        if node.op_type == "Tanh":
            node.op_type, node.domain = "QuickGelu", "com.microsoft"
    made = quantize(proto.SerializeToString(), FEEDS, at_least=20.0)
    assert len(made.quantized) == 4
