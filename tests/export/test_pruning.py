"""Channels cut out of pairs of convolutions, and weights set to zero: which ones stay, and what it brings."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from accelerator.errors import ExportError
from accelerator.export.pruning import module_without_weights, packed_bytes, without_channels, without_weights
from accelerator.runtime.onnx import Session
from tests.export.convolutions import chain, feed, model, weights


def constants(content: bytes) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(content).graph.initializer}


def with_small_channels(*small: int) -> tuple[bytes, bytes]:
    """A pair of convolutions with some channels at zero between them, and the same without these."""
    content = onnx.load_from_string(chain(0, channels=10))
    arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in content.graph.initializer}
    for name in ("conv_0.w", "conv_0.b"):
        arrays[name][list(small)] = 0
    kept = [n for n in range(10) if n not in small]
    less = {name: arrays[name][kept] for name in ("conv_0.w", "conv_0.b")} | {"conv_1.w": arrays["conv_1.w"][:, kept]}
    made = []
    for given in (arrays, arrays | less):
        for tensor in content.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(given[tensor.name], tensor.name))
        made.append(bytes(content.SerializeToString()))
    return made[0], made[1]


def test_the_channels_with_the_largest_weights_stay() -> None:
    whole, less = with_small_channels(1, 4, 7)
    pruned = without_channels(whole, 0.3)
    assert {name: array.shape for name, array in constants(pruned).items()} == {
        "conv_0.w": (7, 1, 3),
        "conv_0.b": (7,),
        "conv_1.w": (1, 7, 3),
        "conv_1.b": (1,),
    }
    for name, array in constants(less).items():
        np.testing.assert_array_equal(constants(pruned)[name], array)
    np.testing.assert_allclose(Session(pruned).run(feed(1))[0], Session(whole).run(feed(1))[0], atol=1e-6)


def test_all_pairs_of_a_chain_are_cut() -> None:
    shapes = [array.shape for name, array in constants(without_channels(chain(2), 0.5)).items() if name.endswith("w")]
    assert shapes == [(8, 1, 3), (8, 8, 3), (8, 8, 3), (1, 8, 3)]


def residual() -> bytes:
    """y = conv_1(tanh(conv_0(x))) + conv_0(x)."""
    tensors = [numpy_helper.from_array(weights(n, 1, 1), f"w{n}") for n in range(2)]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], kernel_shape=[3], pads=[1, 1]),
        helper.make_node("Tanh", ["a"], ["t"]),
        helper.make_node("Conv", ["t", "w1"], ["b"], kernel_shape=[3], pads=[1, 1]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    return model(nodes, tensors, {"x": [1, 1, "n"]}, {"y": [1, 1, "n"]})


def test_a_convolution_that_others_read_is_left() -> None:
    with pytest.raises(ExportError, match="no convolution alone feeds another one"):
        without_channels(residual(), 0.3)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.3, 30])
def test_a_share_is_between_none_and_all(share: float) -> None:
    for prune in (without_channels, without_weights):
        with pytest.raises(ExportError, match="between 0 and 1"):
            prune(chain(0), share)


def test_the_smallest_weights_become_zero_and_the_file_packs_smaller() -> None:
    content = chain(6, channels=32)
    pruned = without_weights(content, 0.3)
    before, after = constants(content), constants(pruned)
    for name in (each for each in before if each.endswith("w")):
        zero = after[name] == 0
        assert zero.sum() == int(0.3 * zero.size)
        assert np.abs(before[name][zero]).max() < np.abs(before[name][~zero]).min()
        np.testing.assert_array_equal(after[name][~zero], before[name][~zero])
    np.testing.assert_array_equal(after["conv_2.b"], before["conv_2.b"])
    assert len(pruned) == len(content)
    assert 0.6 < packed_bytes(pruned) / packed_bytes(content) < 0.9


@pytest.mark.parametrize("norm", [None, torch.nn.utils.parametrizations.weight_norm])
def test_a_module_is_pruned_on_a_copy(norm: object) -> None:
    torch.manual_seed(0)
    layer = nn.Conv1d(4, 6, 3)
    module = nn.Sequential(norm(layer) if callable(norm) else layer)
    before = module[0].weight.detach().clone()
    pruned = module_without_weights(module, 0.5)
    torch.testing.assert_close(module[0].weight, before, rtol=0, atol=0)
    zero = pruned[0].weight == 0  # type: ignore[index]
    assert int(zero.sum()) == before.numel() // 2
    assert before[zero].abs().max() < before[~zero].abs().min()
    x = torch.randn(1, 4, 9)
    torch.testing.assert_close(pruned(x), nn.functional.conv1d(x, before * ~zero, layer.bias))
