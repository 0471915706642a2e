"""Copies of modules and functions, which leave the originals alone."""

from __future__ import annotations

import functools
import types
import warnings

import pytest
import torch
from torch import nn

from accelerator.engines.fish_speech.structure import on_meta, replica, shared, with_globals
from accelerator.errors import UnsupportedEngine


def test_a_function_sees_other_globals_while_its_module_does_not() -> None:
    module = types.ModuleType("m")
    exec("factor = 2\ndef times(x, *, plus=1): return x * factor + plus", vars(module))
    twin = with_globals(module.times, {"factor": 10})
    assert (twin(3), twin(3, plus=0), module.times(3), module.factor) == (31, 30, 7, 2)
    with pytest.raises(UnsupportedEngine, match="not a plain function"):
        with_globals(functools.partial(module.times), {})


def test_a_replica_shares_weights_or_has_none() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.b = nn.utils.weight_norm(nn.Conv1d(3, 3, 1))  # keeps a tensor that is no parameter
            self.c = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 3, 1))
            self.register_buffer("d", torch.ones(2), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.b(self.a(x)[:, :, None]))[..., 0]

    module, x = Nested(), torch.randn(2, 3)
    expected = module(x)
    twin = replica(module, shared)
    assert twin.a is not module.a
    assert all(a is b for a, b in zip(twin.parameters(), module.parameters(), strict=True))
    torch.testing.assert_close(twin(x), expected)
    shell = replica(module, on_meta)
    assert all(p.is_meta for p in shell.parameters())
    assert shell.d.is_meta
    torch.testing.assert_close(module(x), expected)
    other = nn.Identity()
    assert replica(module, shared, replaced=[(module.a, other)]).a is other
