"""Tracing: dynamic in every named axis, equal at lengths never seen, and the module handed back as it was."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from accelerator.errors import ExportError
from accelerator.export.tracing import trace
from accelerator.runtime.onnx import Session


class Net(nn.Module):
    """[B, n] -> [B, 3, ceil(n / 2)], with a part that is only active in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 5, stride=2, padding=2)
        self.drop = nn.Dropout(0.9)
        self.frozen = nn.BatchNorm1d(3).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.drop(torch.tanh(self.conv(x[:, None]))))


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, Path, list[bool], list[bool], int]:
    torch.manual_seed(0)
    net, path = Net(), tmp_path_factory.mktemp("traced") / "net.onnx"
    before = [module.training for module in net.modules()]
    logging.getLogger("torch.onnx").setLevel(logging.INFO)
    try:
        trace(
            net,
            [torch.randn(1, 21)],
            path,
            inputs=["x"],
            outputs=["y"],
            dynamic={"x": {0: "batch", 1: "samples"}},
        )
        level = logging.getLogger("torch.onnx").level
    finally:
        logging.getLogger("torch.onnx").setLevel(logging.NOTSET)
    return net, path, before, [module.training for module in net.modules()], level


def test_equal_at_lengths_and_batches_never_traced(traced: tuple) -> None:
    net, path = traced[:2]
    session = Session(path)
    net.eval()
    for batch, samples in ((1, 21), (1, 5), (3, 64), (2, 1001)):
        x = np.random.default_rng(samples).standard_normal((batch, samples)).astype(np.float32)
        with torch.inference_mode():
            expected = net(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(session.run({"x": x})[0], expected, atol=1e-5)


def test_the_module_and_the_logger_come_back_as_they_were(traced: tuple) -> None:
    """Part for part: a frozen norm within a module in training stays frozen, an engine in evaluation stays there."""
    _, _, before, after, level = traced
    assert before == [True, True, True, False]
    assert after == before
    assert level == logging.INFO


def test_weights_lie_beside_the_graph(traced: tuple) -> None:
    path = traced[1]
    assert {file.name for file in path.parent.iterdir()} <= {"net.onnx", "net.onnx.data"}
    (value,) = onnx.load(str(path), load_external_data=False).graph.input
    assert all(dim.dim_param for dim in value.type.tensor_type.shape.dim)


class Fixed(nn.Module):
    """Its length is baked in: [1, n] only as traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(6)


class Undecided(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if bool(x.sum() > 0) else -x


@pytest.mark.parametrize("module", [Fixed(), Undecided()], ids=lambda m: type(m).__name__)
def test_what_cannot_be_traced_is_an_export_error(module: nn.Module, tmp_path: Path) -> None:
    module.eval()
    with pytest.raises(ExportError, match="bad"):
        trace(
            module,
            [torch.zeros(1, 6)],
            tmp_path / "bad.onnx",
            inputs=["x"],
            outputs=["y"],
            dynamic={"x": {1: "samples"}},
        )
    assert not module.training
