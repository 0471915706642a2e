"""A graph in an older operator set than PyTorch's exporter writes, where its operators allow that.

The exporter writes operator set 18 at least, and leaves a graph in it when its own conversion to an older one fails,
which it does for most. Between 13 and 18 what it uses differs in two kinds of operators only: reductions, whose axes
were an attribute, and Split, which had no `num_outputs`. All others are unchanged, or need the newer set.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper, numpy_helper

from ...errors import ExportError

__all__ = ["NEWEST_COMMON", "lower"]

NEWEST_COMMON = 18  # what the exporter's own operators are written for
_SINCE_13 = "ReduceSum"  # its axes have been an input since then; of the other reductions, since 18


def lower(path: Path, opset: int) -> None:
    """Make the model at `path` one of operator set `opset`; weights in a file of their own stay there.

    Raises ExportError, which names the lowest set that works where this one does not.
    """
    model = onnx.load(str(path), load_external_data=False)
    written = next(each for each in model.opset_import if each.domain in ("", "ai.onnx"))
    if opset < written.version:
        lowest = _lowest(model, written.version)
        if opset < lowest:
            raise ExportError(
                f"{path.stem} cannot be written in operator set {opset}: the lowest that works is {lowest}"
            )
        _rewrite(model, path.parent)
        written.version = opset
    elif opset > written.version:
        raise ExportError(
            f"{path.stem} cannot be written in operator set {opset}: PyTorch's exporter stays at {written.version}"
        )
    path.write_bytes(model.SerializeToString())
    try:
        onnx.checker.check_model(str(path))  # by its name, since its weights may lie beside it
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{path.stem} is no valid graph of operator set {opset}: {error}") from error


def _lowest(model: onnx.ModelProto, version: int) -> int:
    """The lowest operator set that has all of a graph's operators as they are, or as `_rewrite` leaves them."""
    constants = _constants(model)
    needed = [1]
    for node in model.graph.node:
        since = int(onnx.defs.get_schema(node.op_type, version, node.domain).since_version)
        needed.append(13 if _rewritable(node, constants) and version <= NEWEST_COMMON else since)
    return max(needed)


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    return found | {n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"}


def _rewritable(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type == "Split":  # in equal parts, which is what older sets do by themselves
        return len(node.input) == 1
    if node.op_type.startswith("Reduce") and node.op_type != _SINCE_13:
        return not any(node.input[1:]) or node.input[1] in constants
    return False


def _rewrite(model: onnx.ModelProto, place: Path) -> None:
    constants = _constants(model)
    for node in model.graph.node:
        if not _rewritable(node, constants):
            continue
        if node.op_type == "Split":
            _drop(node, "num_outputs")
            continue
        _drop(node, "noop_with_empty_axes")
        if any(node.input[1:]):
            axes = numpy_helper.to_array(constants[node.input[1]], str(place)).reshape(-1).tolist()
            del node.input[1:]
            node.attribute.append(helper.make_attribute("axes", axes))


def _drop(node: onnx.NodeProto, name: str) -> None:
    kept = [each for each in node.attribute if each.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
