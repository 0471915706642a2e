"""Channels cut out of pairs of convolutions, and weights set to zero: which ones stay, and what it brings."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from accelerator.errors import ExportError
from accelerator.export.pruning import (
    module_without_heads,
    module_without_weights,
    packed_bytes,
    without_channels,
    without_weights,
)
from accelerator.runtime.onnx import Session
from tests.export.convolutions import chain, feed, residual, with_small_channels


def constants(content: bytes) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(content).graph.initializer}


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


class Attention(nn.Module):
    """As transformers writes it: [1, T, D] -> [1, T, D]."""

    def __init__(self, heads: int, head_dim: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.embed_dim = heads, head_dim, heads * head_dim
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(self.embed_dim, self.embed_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def split(layer: nn.Module) -> torch.Tensor:
            return layer(x).view(1, -1, self.num_heads, self.head_dim).transpose(1, 2)

        q, k, v = split(self.q_proj), split(self.k_proj), split(self.v_proj)
        attended = (q @ k.transpose(2, 3)).softmax(-1) @ v
        return self.out_proj(attended.transpose(1, 2).reshape(1, -1, self.embed_dim))


def test_heads_that_add_nothing_are_cut_out_exactly_and_of_a_copy() -> None:
    """One whose projection is zero, and one whose values are: weights alone would not show that."""
    torch.manual_seed(0)
    attention, x = Attention(10), torch.randn(1, 7, 40)
    with torch.no_grad():
        attention.out_proj.weight[:, 4 * 6 : 4 * 7] = 0
        attention.v_proj.weight[4 * 2 : 4 * 3] = 0
        attention.v_proj.bias[4 * 2 : 4 * 3] = 0
        attention.out_proj.weight[:, 4 * 2 : 4 * 3] *= 100
    module = nn.Sequential(attention, attention)
    before = module(x)
    pruned = module_without_heads(module, 0.2, lambda copied: copied(x))
    assert (pruned[0].num_heads, pruned[0].embed_dim) == (8, 32)  # type: ignore[index]
    kept = [n for n in range(40) if n // 4 not in (2, 6)]
    torch.testing.assert_close(pruned[0].q_proj.weight, attention.q_proj.weight[kept], rtol=0, atol=0)  # type: ignore[index]
    torch.testing.assert_close(pruned(x), before, rtol=1e-5, atol=1e-5)
    assert (attention.num_heads, attention.q_proj.weight.shape) == (10, (40, 40))
    torch.testing.assert_close(module(x), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("module", "why"),
    [(Attention(2), "of 2 heads, 0.3 is less than one"), (nn.Linear(4, 4), "it has no attention that is known here")],
    ids=["few", "none"],
)
def test_where_no_head_can_be_spared_that_is_said(module: nn.Module, why: str) -> None:
    with pytest.raises(ExportError, match=f"{why}: no head can be cut out"):
        module_without_heads(module, 0.3, lambda copied: None)
