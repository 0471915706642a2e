"""A part's graph with less in it as a component: built from the whole one, proven, refused with what it would bring."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator.cache import ContentCache
from accelerator.errors import ProofFailed
from accelerator.export.calibration import Calibration
from accelerator.export.component import Component, export_component, key_fields
from accelerator.export.pruning import without_weights as without_weights_of
from accelerator.parts.backends import pruned
from accelerator.parts.onnx_file import digest, onnx_file, run_session
from accelerator.parts.pruned import without_channels, without_heads, without_weights
from accelerator.runtime.onnx import Session
from accelerator.runtime.options import RunOptions
from tests.export.convolutions import chain, feed, residual, with_small_channels

MODEL = chain(4)


def spoken(model: bytes = MODEL) -> Iterator[tuple[dict[str, np.ndarray], list[np.ndarray]]]:
    session = Session(model)
    for seed in range(6):
        yield feed(seed), session.run(feed(seed))


def of_a_file(model: bytes = MODEL) -> Component:
    return onnx_file("graph", lambda: model, lambda: digest(model), {}, examples=lambda: spoken(model))


def test_channels_are_pruned_where_little_is_lost(tmp_path: Path) -> None:
    export = export_component(
        without_channels(of_a_file(), Calibration(spoken, at_least=1.0), 0.1), "fp32", ContentCache(tmp_path)
    )
    assert {file.name for file in export.path.iterdir()} == {"graph.onnx", "manifest.json", "brings.json"}
    assert export.proof["passed"] is True
    assert 1.0 < export.proof["snr_db"] < 20.0  # of random weights, none of which is less needed than another
    assert 0.7 < export.proof["bytes"] < 0.95  # 15 of 16 channels


def test_what_is_pruned_too_far_is_refused(tmp_path: Path) -> None:
    component = without_channels(of_a_file(), Calibration(spoken), 0.5)
    with pytest.raises(ProofFailed, match="graph-without-channels as fp32 is not faithful"):
        export_component(component, "fp32", ContentCache(tmp_path))


def test_weights_at_zero_must_pack_as_small_as_promised(tmp_path: Path) -> None:
    component = without_weights(of_a_file(), Calibration(spoken, at_least=3.0), 0.3)
    export = export_component(component, "fp32", ContentCache(tmp_path))
    assert (export.proof["passed"], export.proof["bytes"]) == (True, 1.0)
    assert 0.6 < export.proof["packed"] < 0.85


def test_weights_that_do_not_pack_smaller_are_refused(tmp_path: Path) -> None:
    """Of weights that are zero already nothing becomes smaller."""
    model = without_weights_of(MODEL, 0.3)
    component = onnx_file("graph", lambda: model, lambda: digest(model), {}, examples=spoken)
    with pytest.raises(ProofFailed, match=r"it packs to 1\.00, more than 0\.85"):
        export_component(
            without_weights(component, Calibration(spoken, at_least=3.0), 0.3), "fp32", ContentCache(tmp_path)
        )


def test_a_share_is_in_the_key(tmp_path: Path) -> None:
    given = Calibration(spoken)
    keys = [
        key_fields(made, "fp32")
        for made in (
            without_channels(of_a_file(), given, 0.1),
            without_channels(of_a_file(), given, 0.3),
            without_weights(of_a_file(), given, 0.3),
        )
    ]
    assert [(key["component"], key["recipe"]) for key in keys] == [
        ("graph-without-channels", {"prune": 0.1, "at_least": 20.0}),
        ("graph-without-channels", {"prune": 0.3, "at_least": 20.0}),
        ("graph-without-weights", {"prune": 0.3, "at_least": 20.0}),
    ]


def test_a_graph_with_nothing_to_spare_is_looked_at_once(tmp_path: Path) -> None:
    built = []
    whole = of_a_file(residual())

    def build(*given: Any) -> None:
        built.append(given)
        whole.build(*given)

    counted = Component(**{**vars(whole), "build": build})
    for _ in range(2):
        component = without_channels(counted, Calibration(lambda: spoken(residual())), 0.3)
        with pytest.raises(ProofFailed) as caught:
            export_component(component, "fp32", ContentCache(tmp_path))
        assert caught.value.report["error"] == "no convolution alone feeds another one: no channel can be cut out"
    assert len(built) == 1


def test_channels_that_do_nothing_are_cut_out_for_nothing(tmp_path: Path) -> None:
    model, _ = with_small_channels(1, 4, 7)
    component = without_channels(of_a_file(model), Calibration(lambda: spoken(model)), 0.3)
    export = export_component(component, "fp32", ContentCache(tmp_path))
    assert export.proof["snr_db"] > 100.0
    assert export.proof["bytes"] < 0.95


def test_fewer_heads_are_another_components_graph(tmp_path: Path) -> None:
    """What that component makes is what is proven against the engine's own answers."""
    whole, less = with_small_channels(1, 4, 7)
    fewer = of_a_file(less)
    component = without_heads(of_a_file(whole), Calibration(lambda: spoken(whole), 60.0), 0.3, fewer)
    export = export_component(component, "fp32", ContentCache(tmp_path))
    (answer,) = run_session("graph", {"graph": export.path}, RunOptions())(feed(1))
    np.testing.assert_array_equal(answer, Session(less).run(feed(1))[0])
    assert (component.name, export.proof["bar"]) == ("graph-without-heads", {"snr_db": 60.0})
    assert export.proof["snr_db"] > 100.0


def test_the_ways_of_a_part_and_what_they_promise() -> None:
    """What is to be faster is probed; what is only smaller stands for the whole graph."""

    def load(paths: Any, options: Any) -> Any:
        return lambda: paths

    ways = pruned(of_a_file(), load, Calibration(spoken))(0.3)
    assert [(way.less, way.instead, way.backend.probed) for way in ways] == [
        ("channels", None, True),
        ("weights", "graph", False),
    ]
    assert [way.backend.name for way in ways] == [
        "onnxruntime-without-channels-0.3",
        "onnxruntime-without-weights-0.3",
    ]
    assert ways[0].backend.load({"graph-without-channels": Path("there")}, RunOptions())() == {"graph": Path("there")}
    heads = pruned(of_a_file(), load, Calibration(spoken), heads=lambda share: of_a_file())(0.5)
    assert [way.component.name for way in heads] == ["graph-without-heads", "graph-without-weights"]
