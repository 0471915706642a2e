"""Recurrent layers in an export: at any length, several exports in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from accelerator.export.tracing import trace
from accelerator.parts.recurrent import GRU, LSTM
from accelerator.runtime.onnx import Session

LAYERS = {
    "a GRU both ways": lambda: GRU(nn.GRU(6, 4, batch_first=True, bidirectional=True)),
    "a GRU of two layers": lambda: GRU(nn.GRU(6, 8, 2, batch_first=True)),
    "an LSTM of three layers": lambda: LSTM(nn.LSTM(6, 8, 3, batch_first=True)),
    "an LSTM of two layers both ways": lambda: LSTM(nn.LSTM(6, 4, 2, batch_first=True, bidirectional=True)),
}


class Followed(nn.Module):
    """What follows is what the exporter gives the example's length."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.linear = layer, nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.linear(self.layer(x)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_an_export_has_the_length_of_its_input(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Followed(LAYERS[name]()).eval()
    axes = {"x": {0: "rows", 1: "frames"}}
    for number in range(2):  # a second one of the process, too
        path = tmp_path / f"{number}.onnx"
        trace(module, [torch.randn(2, 9, 6)], path, inputs=["x"], outputs=["y"], dynamic=axes)
        session = Session(path)
        for shape in ((2, 9, 6), (1, 4, 6), (3, 30, 6)):
            x = torch.randn(shape)
            with torch.no_grad():
                expected = module(x).numpy()
            np.testing.assert_allclose(session.run({"x": x.numpy()})[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: GRU(nn.GRU(6, 4)),
        lambda: GRU(nn.GRU(6, 4, batch_first=True, bias=False)),
        lambda: LSTM(nn.LSTM(6, 4, batch_first=True, proj_size=2)),
    ],
)
def test_other_layers_are_refused(layer: Any) -> None:
    with pytest.raises(ValueError, match="batches come first, with biases and no projection"):
        layer()


def test_an_engine_may_ask_it_to_flatten_its_parameters() -> None:
    assert GRU(nn.GRU(6, 4, batch_first=True)).flatten_parameters() is None
