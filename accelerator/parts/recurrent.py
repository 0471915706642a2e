"""Recurrent layers that `torch.export` can follow at any length.

With torch 2.13 the exporter gives what follows an `nn.GRU` or `nn.LSTM` the length of the example, without a word. Here
the layer is ONNX's own operator, whose answer has the length that its input has; outside an export it is PyTorch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GRU", "LSTM"]

_GRU_ORDER, _LSTM_ORDER = (1, 0, 2), (0, 3, 1, 2)  # PyTorch's gates (r z n; i f g o) in ONNX's order (z r n; i o f g)


class _Recurrent(nn.Module):
    """Stands for `own`, whose inputs are [B, T, C] and begin without a state; several layers follow each other."""

    def __init__(self, own: Any, operator: str, order: tuple[int, ...], attributes: dict[str, Any]) -> None:
        super().__init__()
        if not own.batch_first or own.proj_size or not own.bias:
            raise ValueError(f"no {type(own).__name__} like this: batches come first, with biases and no projection")
        self.own, self.operator = own, operator
        self.attributes = {"hidden_size": own.hidden_size, **attributes}
        ends = ("", "_reverse")[: 1 + own.bidirectional]
        if own.bidirectional:
            self.attributes["direction"] = "bidirectional"

        def ordered(name: str) -> Tensor:
            gates = getattr(own, name).detach().chunk(len(order))
            return torch.cat([gates[i] for i in order])

        for i in range(own.num_layers):
            both = [[ordered(f"{kind}_l{i}{end}") for end in ends] for kind in _KINDS]
            self.register_buffer(f"w{i}", torch.stack(both[0]))
            self.register_buffer(f"r{i}", torch.stack(both[1]))
            self.register_buffer(f"b{i}", torch.stack([torch.cat(pair) for pair in zip(both[2], both[3], strict=True)]))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """[B, T, C] -> ([B, T, H or 2H], nothing): what all states were, and not the last one apart."""
        if not torch.compiler.is_exporting():
            return self.own(x)[0], None
        x = x.transpose(0, 1)
        for i in range(self.own.num_layers):
            weights = [getattr(self, f"{name}{i}") for name in "wrb"]
            shape = [x.shape[0], len(weights[0]), x.shape[1], self.own.hidden_size]
            x = torch.onnx.ops.symbolic(self.operator, [x, *weights], attrs=self.attributes, dtype=x.dtype, shape=shape)
            x = x.permute(0, 2, 1, 3).flatten(2)
        return x.transpose(0, 1), None

    def flatten_parameters(self) -> None:
        """Engines ask for it."""


_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class GRU(_Recurrent):
    """An `nn.GRU` without a state to begin with."""

    def __init__(self, own: nn.GRU) -> None:
        """Raises ValueError for one that has no biases, or whose batches come second."""
        super().__init__(own, "GRU", _GRU_ORDER, {"linear_before_reset": 1})


class LSTM(_Recurrent):
    """An `nn.LSTM` without a state to begin with."""

    def __init__(self, own: nn.LSTM) -> None:
        """Raises ValueError for one that has no biases or has a projection, or whose batches come second."""
        super().__init__(own, "LSTM", _LSTM_ORDER, {})
