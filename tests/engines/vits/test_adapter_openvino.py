"""VITS's decoder in OpenVINO: by a double of it everywhere, by the package itself where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from accelerator.cache import ContentCache
from accelerator.engines.vits import VitsAdapter, examples
from accelerator.export.component import export_beside, export_component
from accelerator.parts.part import Part
from accelerator.runtime.openvino import NAME, version
from accelerator.runtime.options import RunOptions
from tests.runtime import openvino_double as double

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
needs_it = pytest.mark.skipif(version() is None, reason="openvino is not installed")


@pytest.mark.parametrize("installed", [False, pytest.param(True, marks=needs_it)])
@pytest.mark.parametrize("speakers", ["engine", "many"])
def test_it_answers_as_transformers_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, installed: bool, speakers: str
) -> None:
    if not installed:
        double.install(monkeypatch)
    adapter = VitsAdapter(request.getfixturevalue(speakers))
    decoder: Part = adapter.parts()[1]
    (backend,) = [each for each in decoder.backends if each.name == NAME]
    component, judged = backend.components
    cache = ContentCache(tmp_path)
    export = export_component(component, "fp32", cache)
    proven = export_beside(judged, export, cache)
    assert proven is not None
    assert proven.proof["max_error"] < 1e-4
    call = backend.load({component.name: export.path, judged.name: proven.path}, RunOptions(backend=NAME))
    given = examples.decoder_inputs(adapter.model, 50)
    np.testing.assert_allclose(call(*given), decoder.original(*given), atol=1e-4)
