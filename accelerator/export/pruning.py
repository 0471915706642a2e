"""Fewer weights, on a copy: whole channels, so that less is computed; or single weights, so that a file packs smaller.

    channels  Conv -> elementwise -> Conv: the channels in between whose weights are smallest (L2 norm) are cut out of
              both convolutions. Less work, in plain dense arithmetic.
    heads     attention's heads that add least to what it answers on real inputs are cut out of its projections.
    weights   the smallest weights become zero. Nothing computes faster for it, and ONNX's sparse tensors take 12 bytes
              a value: only a compressed file is smaller.

Neither knows what a weight is for: the proof, and then hearing, say whether what is left still speaks.
"""

from __future__ import annotations

import copy
import zlib
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from ..errors import ExportError

if TYPE_CHECKING:
    import torch

__all__ = ["module_without_heads", "module_without_weights", "packed_bytes", "without_channels", "without_weights"]

_ELEMENTWISE = frozenset({"Relu", "LeakyRelu", "Elu", "Selu", "Gelu", "Sigmoid", "Tanh", "Softplus", "Mish"})
_LEVEL = 6  # zlib's own default
_ATTENTION = ("num_heads", "head_dim", "embed_dim", "q_proj", "k_proj", "v_proj", "out_proj")  # as transformers names


def without_channels(content: bytes, share: float) -> bytes:
    """The model with this share of channels fewer wherever one convolution alone feeds another one.

    What a channel that is cut out would still have added by its bias is lost. Raises ExportError for a model without
    such a pair.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    _checked(share)
    pairs = _pairs(graph, tensors)
    if not pairs:
        raise ExportError("no convolution alone feeds another one: no channel can be cut out")
    for first, second in pairs:
        weight = numpy_helper.to_array(tensors[first.input[1]])
        kept = _largest(np.square(weight, dtype=np.float64).reshape(len(weight), -1).sum(axis=1), share)
        for name in filter(None, first.input[1:3]):
            _set(tensors[name], numpy_helper.to_array(tensors[name])[kept])
        _set(tensors[second.input[1]], numpy_helper.to_array(tensors[second.input[1]])[:, kept])
    del graph.value_info[:]
    return bytes(model.SerializeToString())


def without_weights(content: bytes, share: float) -> bytes:
    """The model with this share of each weight's values at zero, the smallest ones. Biases and small tables stay."""
    model = onnx.load_from_string(content)
    _checked(share)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            _set(tensor, _zeroed(numpy_helper.to_array(tensor), share))
    return bytes(model.SerializeToString())


def module_without_weights(module: torch.nn.Module, share: float) -> torch.nn.Module:
    """A copy of a PyTorch module, with this share of each weight's values at zero; the module itself stays as it was.

    A weight that is computed, as by weight norm, is kept as it comes out, and no longer computed.
    """
    from torch.nn.utils import parametrize, remove_weight_norm

    _checked(share)
    copied = copy.deepcopy(module)
    for part in copied.modules():
        if hasattr(part, "weight_g"):  # the old weight norm: pruning `weight` of it raises TypeError
            remove_weight_norm(part)
        if parametrize.is_parametrized(part):
            _own_class(part)
            for name in list(part.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(part, name)
    for name, parameter in copied.named_parameters():
        if parameter.ndim > 1 and name.rpartition(".")[2].startswith("weight"):
            parameter.data.copy_(parameter.data.new_tensor(_zeroed(parameter.detach().numpy(), share)))
    return copied


def module_without_heads(
    module: torch.nn.Module, share: float, run: Callable[[torch.nn.Module], object]
) -> torch.nn.Module:
    """A copy of a PyTorch module, with this share of the heads fewer in each attention (rounded down).

    run: calls the module with real inputs, which say how much each head adds to the answer. What the biases of a head's
    values would still have added is lost. Raises ExportError where no attention has a head to spare.
    """
    _checked(share)
    copied: Any = copy.deepcopy(module)
    found = [part for part in copied.modules() if all(hasattr(part, name) for name in _ATTENTION)]
    spare = [part for part in found if int(part.num_heads * share)]
    if not spare:
        counts = ", ".join(sorted({str(part.num_heads) for part in found}))
        why = f"of {counts} heads, {share:g} is less than one" if found else "it has no attention that is known here"
        raise ExportError(f"{why}: no head can be cut out")
    added: dict[Any, Any] = dict.fromkeys(spare, 0.0)

    def listen(part: Any, given: tuple[torch.Tensor, ...]) -> None:
        added[part] = added[part] + _by_head(part, given[0])

    hooks = [part.out_proj.register_forward_pre_hook(lambda _, given, part=part: listen(part, given)) for part in spare]
    run(copied)
    for part, hook in zip(spare, hooks, strict=True):
        hook.remove()
        _keep_heads(part, _largest(np.asarray(added[part]), share))
    return copied


def _by_head(part: Any, attended: torch.Tensor) -> np.ndarray:
    """How much each head adds to the answer: the energy of its own projection. attended: [..., H * E]."""
    heads = attended.detach().reshape(-1, part.num_heads, part.head_dim).double()
    weight = part.out_proj.weight.detach().reshape(-1, part.num_heads, part.head_dim).double()
    return np.array([float((heads[:, h] @ weight[:, h].T).square().sum()) for h in range(part.num_heads)])


def _keep_heads(part: Any, kept: np.ndarray) -> None:
    import torch

    rows = torch.from_numpy((kept[:, None] * part.head_dim + np.arange(part.head_dim)).reshape(-1))

    def less(layer: Any, axis: int) -> Any:
        weight, bias = layer.weight.detach().index_select(axis, rows), layer.bias
        made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        made.weight = torch.nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            kept_bias = bias.detach()[rows] if axis == 0 else bias.detach().clone()
            made.bias = torch.nn.Parameter(kept_bias, requires_grad=False)
        return made

    for name in ("q_proj", "k_proj", "v_proj"):
        setattr(part, name, less(getattr(part, name), 0))
    part.out_proj = less(part.out_proj, 1)
    part.num_heads, part.embed_dim = len(kept), len(rows)


def _own_class(part: torch.nn.Module) -> None:
    """A copy shares its class with the original, and removing a parametrization takes the weight off that class."""
    kind = type(part)
    own = {name: each for name, each in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    part.__class__ = type(kind.__name__, kind.__bases__, own)


def _zeroed(weight: np.ndarray, share: float) -> np.ndarray:
    """A copy in which this share of the values is zero, the smallest ones."""
    count = int(weight.size * share)
    found = np.array(weight)
    found.reshape(-1)[np.argsort(np.abs(weight), axis=None, kind="stable")[:count]] = 0
    return found


def packed_bytes(content: bytes) -> int:
    """What a file takes when it is compressed."""
    return len(zlib.compress(content, _LEVEL))


def _checked(share: float) -> None:
    if not 0 < share < 1:
        raise ExportError(f"prune must be a share between 0 and 1, not {share}")


def _pairs(graph: onnx.GraphProto, tensors: dict[str, onnx.TensorProto]) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Convolutions of which the first is read by the second alone, through elementwise operators."""
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(each.name for each in graph.output)
    reader = {name: node for node in graph.node for name in node.input}
    found = []
    for first in graph.node:
        if not _is_plain(first, tensors, readers):
            continue
        second = first
        while readers[second.output[0]] == 1:
            second = reader.get(second.output[0], second)
            if second.op_type not in _ELEMENTWISE:
                break
        if second is not first and _is_plain(second, tensors, readers):
            found.append((first, second))
    return found


def _is_plain(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], readers: Counter[str]) -> bool:
    """Whether it is a convolution whose constants nothing else reads, in one group."""
    groups = next((each.i for each in node.attribute if each.name == "group"), 1)
    constant = all(name in tensors and readers[name] == 1 for name in node.input[1:] if name)
    return node.op_type == "Conv" and groups == 1 and constant


def _largest(norms: np.ndarray, share: float) -> np.ndarray:
    """The places of the largest, in order; at least one."""
    count = max(1, len(norms) - int(len(norms) * share))
    return np.sort(np.argsort(-norms, kind="stable")[:count])


def _set(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
