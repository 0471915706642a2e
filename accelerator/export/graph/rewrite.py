"""Exact rewrites of traced convolutional graphs into forms that ONNX Runtime's CPU kernels run faster.

    transposed convolution   -> convolution over the input's own steps, `stride` outputs per step, then interleaved
    snake x + sin(ax)^2 / a  -> (z + sin(z)^2) / a with z = ax, both factors folded into the neighbouring convolutions,
                                the first one perhaps into an instance norm
    instance norms           -> see `norms`

Weights change in place in the data file where their size stays, otherwise they are appended. Whatever does not match a
pattern exactly is left as it is; the proof compares the result with PyTorch as it does any other export.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from .norms import rewrite_norms
from .saved import SavedModel, attribute

__all__ = ["rewrite_activations", "rewrite_convolutions"]


def rewrite_convolutions(path: Path) -> dict[str, int]:
    """Rewrite the model at `path`, whose weights lie beside it; returns how often each rewrite applied."""
    model = SavedModel(Path(path))
    counts = {"snake": _rewrite_snakes(model), "transposed": _rewrite_transposed(model)}
    if any(counts.values()):
        model.save()
    return counts


def rewrite_activations(path: Path, among: str = "") -> dict[str, int]:
    """As `rewrite_convolutions`, but of norms and snakes only, and with the weights of convolutions as they are.

    For a graph that is quantized afterwards: a snake's factors in weights and activations cost Kokoro's 5 dB. among:
    how the names of the nodes begin: what is rounded further on must not differ in a single bit.
    """
    model = SavedModel(Path(path))
    counts = {
        "norm": rewrite_norms(model, among),
        "snake": _rewrite_snakes(model, among, into_weights=False),
    }
    if any(counts.values()):
        model.save()
    return counts


# Snake (Ziyin et al. 2020, arXiv:2006.08195)


def _rewrite_snakes(model: SavedModel, among: str = "", *, into_weights: bool = True) -> int:
    """into_weights: whether factors may vanish into convolutions."""
    count = 0
    while (found := next(_snakes(model, among), None)) is not None:
        _rewrite_snake(model, *found, into_weights)
        count += 1
    return count


def _snakes(
    model: SavedModel, among: str
) -> Iterator[tuple[list[onnx.NodeProto], str, str, str, np.ndarray, np.ndarray]]:
    """Nodes, x, output, a name for new values, a and the factor 1/a, of every x + factor * sin(a x)^2."""
    for sine in model.graph.node:
        if sine.op_type != "Sin" or not sine.name.startswith(among):
            continue
        scale, power = model.producer.get(sine.input[0]), model.only_consumer(sine.output[0])
        if scale is None or power is None or scale.op_type != "Mul" or not model.only_consumer(scale.output[0]):
            continue
        a, x = _constant_and_value(model, scale)
        exponent = model.value(power.input[1]) if power.op_type == "Pow" else None
        if a is None or exponent is None or exponent.size != 1 or float(exponent.reshape(-1)[0]) != 2.0:
            continue
        divide = model.only_consumer(power.output[0])
        if divide is None or divide.op_type not in ("Div", "Mul"):
            continue
        if divide.op_type == "Div":
            divisor = model.value(divide.input[1]) if divide.input[0] == power.output[0] else None
            factor = None if divisor is None else 1.0 / divisor
        else:
            factor, _ = _constant_and_value(model, divide)
        add = model.only_consumer(divide.output[0])
        if factor is None or add is None or add.op_type != "Add" or x not in add.input:
            continue
        if (
            a.ndim != 3
            or a.shape[0] != 1
            or a.shape[2] != 1
            or factor.shape != a.shape
            or not np.isfinite(factor).all()
        ):
            continue
        if not np.allclose(a.astype(np.float64) * factor, 1.0, rtol=1e-5):
            continue
        yield [scale, sine, power, divide, add], x, add.output[0], sine.output[0], a, factor


def _rewrite_snake(
    model: SavedModel,
    nodes: list[onnx.NodeProto],
    x: str,
    out: str,
    name: str,
    a: np.ndarray,
    factor: np.ndarray,
    into_weights: bool,
) -> None:
    """z = a x; y = (z + sin(z)^2) * factor; multiplications vanish into neighbours wherever they can."""
    z, total = f"{name}/z", out
    before = model.producer.get(x)
    own = {n.output[0] for n in model.consumers[x]} <= {n.output[0] for n in nodes} and x not in model.outputs
    new: list[onnx.NodeProto] = []
    if before is not None and own and _scale_outputs(model, before, a.reshape(-1), into_weights):
        z = x
    else:
        new.append(helper.make_node("Mul", [x, model.constant(a)], [z], name=z))
    after = _convolution_behind(model, out) if into_weights else None
    if after is None or not _scale_inputs(model, after, factor.reshape(-1)):
        total = f"{name}/sum"
    new.append(helper.make_node("Sin", [z], [f"{name}/sin"], name=f"{name}/sin"))
    new.append(helper.make_node("Mul", [f"{name}/sin", f"{name}/sin"], [f"{name}/square"], name=f"{name}/square"))
    new.append(helper.make_node("Add", [z, f"{name}/square"], [total], name=f"{name}/sum"))
    if total != out:
        new.append(helper.make_node("Mul", [total, model.constant(factor)], [out], name=f"{name}/scaled"))
    model.replace(nodes, new)


def _constant_and_value(model: SavedModel, node: onnx.NodeProto) -> tuple[np.ndarray | None, str]:
    """The constant operand of a binary node, and the other operand's name."""
    for constant, other in ((0, 1), (1, 0)):
        if (array := model.value(node.input[constant])) is not None:
            return array, node.input[other]
    return None, ""


def _convolution_behind(model: SavedModel, name: str) -> onnx.NodeProto | None:
    """The one convolution that `name` flows into, perhaps through zero padding."""
    node = model.only_consumer(name)
    if node is not None and node.op_type == "Pad" and _pads_zeros(model, node):
        node = model.only_consumer(node.output[0])
    ungrouped = node is not None and attribute(node, "group", 1) == 1
    return node if node is not None and node.op_type in ("Conv", "ConvTranspose") and ungrouped else None


def _pads_zeros(model: SavedModel, node: onnx.NodeProto) -> bool:
    mode = attribute(node, "mode", b"constant")
    value = model.value(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    return mode == b"constant" and value is not None and not value.any()


def _scale_outputs(model: SavedModel, node: onnx.NodeProto, factor: np.ndarray, into_weights: bool) -> bool:
    """Multiply the output channels of an instance norm or, if allowed, of a convolution; whether that was possible."""
    if node.op_type == "InstanceNormalization":
        return _scale_norm(model, node, factor)
    return node.op_type == "Conv" and into_weights and _scale_convolution(model, node, factor)


def _scale_norm(model: SavedModel, norm: onnx.NodeProto, factor: np.ndarray) -> bool:
    """By its scale and bias, which may be computed."""
    x, *ends = norm.input
    constant = model.constant(factor.astype(np.float32))
    scaled = [f"{norm.output[0]}/{name}" for name in ("scaled", "biased")]
    factors = [
        helper.make_node("Mul", [end, constant], [name], name=name) for end, name in zip(ends, scaled, strict=True)
    ]
    epsilon = attribute(norm, "epsilon", 1e-5)
    made = helper.make_node(norm.op_type, [x, *scaled], list(norm.output), name=norm.name, epsilon=epsilon)
    model.replace([norm], [*factors, made])
    return True


def _scale_convolution(model: SavedModel, conv: onnx.NodeProto, factor: np.ndarray) -> bool:
    if not all(model.unshared(name) for name in conv.input[1:]):
        return False
    weight = model.value(conv.input[1])
    assert weight is not None
    if len(weight) != len(factor):
        return False
    model.set_value(conv.input[1], weight * factor.reshape(-1, *[1] * (weight.ndim - 1)))
    if len(conv.input) > 2:
        bias = model.value(conv.input[2])
        assert bias is not None
        model.set_value(conv.input[2], bias * factor)
    return True


def _scale_inputs(model: SavedModel, conv: onnx.NodeProto, factor: np.ndarray) -> bool:
    """Multiply a convolution's input channels."""
    axis = 1 if conv.op_type == "Conv" else 0
    if not model.unshared(conv.input[1]):
        return False
    weight = model.value(conv.input[1])
    assert weight is not None
    if weight.shape[axis] != len(factor):
        return False
    shape = [1] * weight.ndim
    shape[axis] = -1
    model.set_value(conv.input[1], weight * factor.reshape(shape))
    return True


# Transposed convolution


def _rewrite_transposed(model: SavedModel) -> int:
    count = 0
    for name in [n.output[0] for n in model.graph.node if n.op_type == "ConvTranspose"]:
        count += _rewrite_one_transposed(model, model.producer[name])
    return count


def _rewrite_one_transposed(model: SavedModel, node: onnx.NodeProto) -> int:
    """y[s n + r] = sum_j x[n - j] W[:, :, s j + r]: each r is a convolution of its own, all of them are one.

    Returns 1 if the node was of this kind (one dimension, one group, no dilation) and is replaced.
    """
    weight = model.value(node.input[1]) if model.unshared(node.input[1]) else None
    if weight is None or weight.ndim != 3 or attribute(node, "group", 1) != 1:
        return 0
    if attribute(node, "dilations", [1]) != [1] or attribute(node, "auto_pad", b"NOTSET") != b"NOTSET":
        return 0
    if attribute(node, "output_shape", None) is not None:
        return 0
    (stride,), pads = attribute(node, "strides", [1]), attribute(node, "pads", [0, 0])
    (extra,) = attribute(node, "output_padding", [0])
    channels_in, channels_out, kernel = weight.shape
    taps = -(-kernel // stride)
    surplus = taps * stride - kernel  # samples beyond the transposed convolution's own end
    cut = surplus + pads[1] - extra
    if stride == 1 or cut < 0:
        return 0
    padded = np.zeros((channels_in, channels_out, taps * stride), np.float32)
    padded[:, :, :kernel] = weight
    phases = padded.reshape(channels_in, channels_out, taps, stride)[:, :, ::-1]  # [Ci, Co, J, s], latest tap first
    phases = phases.transpose(1, 3, 0, 2).reshape(channels_out * stride, channels_in, taps)
    inputs = [node.input[0], node.input[1]]
    if len(node.input) > 2 and node.input[2]:
        bias = model.value(node.input[2])
        if bias is None:
            return 0
        inputs.append(model.constant(np.repeat(bias, stride).astype(np.float32)))
    model.set_value(node.input[1], phases)
    out = node.output[0]
    conv, split, turned, flat = (f"{out}/{step}" for step in ("conv", "phases", "turned", "flat"))
    last = flat if pads[0] or cut else out
    new = [
        helper.make_node("Conv", inputs, [conv], name=conv, kernel_shape=[taps], pads=[taps - 1, taps - 1]),
        helper.make_node(
            "Reshape", [conv, model.constant(np.array([0, channels_out, stride, -1]))], [split], name=split
        ),
        helper.make_node("Transpose", [split], [turned], name=turned, perm=[0, 1, 3, 2]),
        helper.make_node("Reshape", [turned, model.constant(np.array([0, channels_out, -1]))], [last], name=flat),
    ]
    if last != out:
        end = -cut if cut else np.iinfo(np.int64).max
        bounds = [model.constant(np.array([v], np.int64)) for v in (pads[0], end, 2)]
        new.append(helper.make_node("Slice", [flat, *bounds], [out], name=f"{out}/cut"))
    model.replace([node], new)
    return 1
