"""Copies of a module's structure: its objects are new, its tensors are whatever is asked for."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["describe", "digest", "on_meta", "replica", "shared", "tensors_of", "unloaded"]


def tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    """Every tensor a module holds: parameters, buffers, and what old-style weight norm keeps as plain attributes."""
    for each in module.modules():
        for value in (*each._parameters.values(), *each._buffers.values(), *vars(each).values()):
            if isinstance(value, torch.Tensor):
                yield value


def replica(
    module: nn.Module, tensor: Callable[[torch.Tensor], torch.Tensor], *, replaced: Iterable[tuple[Any, Any]] = ()
) -> Any:
    """A copy of `module` whose tensors are `tensor(t)`, and in which the objects in `replaced` are exchanged.

    replaced: pairs of an object and what stands in its place. The original does not change; only `tensor` copies.
    """
    memo: dict[int, Any] = {id(old): new for old, new in replaced}
    for each in tensors_of(module):
        if id(each) not in memo:
            memo[id(each)] = tensor(each)
    return copy.deepcopy(module, memo)


def shared(tensor: torch.Tensor) -> torch.Tensor:
    """For `replica`: the very same tensor."""
    return tensor


def on_meta(tensor: torch.Tensor) -> torch.Tensor:
    """For `replica`: the same shape and type, without contents."""
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def unloaded(module: nn.Module) -> list[str]:
    """Names of the parameters that have no contents."""
    return [name for name, parameter in module.named_parameters() if parameter.is_meta]


def describe(module: nn.Module) -> str:
    """Everything but the weights that shapes what a module computes, as text."""
    lines = [repr(module)]
    for name, each in module.named_modules():
        values = {k: v for k, v in vars(each).items() if isinstance(v, (bool, int, float, str)) and k[0] != "_"}
        values.pop("training", None)
        lines.append(f"{name} {sorted(values.items())} {getattr(each, 'config', '')}")
    return "\n".join(lines)


def digest(module: nn.Module) -> str:
    """sha256 of `describe`."""
    return hashlib.sha256(describe(module).encode()).hexdigest()
