"""Copies of a module's structure, and of a function's: made anew, but for what is asked to be the same or another."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ...errors import UnsupportedEngine

__all__ = [
    "computing",
    "describe",
    "digest",
    "on_meta",
    "replica",
    "shared",
    "tensors_of",
    "unloaded",
    "with_globals",
]


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """PyTorch as outside any request: plain tensors, float32. A request may be the one that triggers an export."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        yield


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


def with_globals(function: Any, changes: Mapping[str, Any]) -> Any:
    """The same code, seeing other values for some of its module's names; the module itself is not touched."""
    if not isinstance(function, types.FunctionType):
        raise UnsupportedEngine(
            f"{function!r} is not a plain function: undo what replaced it, or use the engine as it is"
        )
    names = {**function.__globals__, **changes}
    made = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made
