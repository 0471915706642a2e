"""Convolutional parts: traced by `torch.onnx.export`, dynamic in batch and length, always float32."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ExportError
from ..hardware.forks import Lock
from .graph.rewrite import rewrite_convolutions
from .graph.specs import OPSET

if TYPE_CHECKING:
    import torch

__all__ = ["on_one_thread", "trace"]

_lock = Lock()  # torch's exporter is not thread-safe


def trace(
    module: torch.nn.Module,
    examples: Sequence[Any],
    path: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
    opset: int = OPSET,
) -> None:
    """Write `module` as ONNX to `path`, its weights beside it in `<path>.data`, in the forms that run fastest here.

    dynamic: input name -> axis -> the axis' name; equal names mean equal sizes. Raises ExportError, also when the
    exporter silently fixed an axis that should be dynamic.
    """
    import onnx
    import torch

    dims: dict[str, Any] = {name: torch.export.Dim.DYNAMIC for axes in dynamic.values() for name in axes.values()}
    shapes = tuple({axis: dims[n] for axis, n in dynamic.get(name, {}).items()} for name in inputs)
    quiet = contextlib.redirect_stdout(io.StringIO())
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    # An export may be triggered from within an engine's request, whose modes must not reach the graph.
    plain = torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False)
    with _lock, warnings.catch_warnings(), quiet, plain[0], plain[1], plain[2]:
        warnings.simplefilter("ignore")
        exporter_log.setLevel(logging.ERROR)
        training = [part for part in module.modules() if part.training]  # the engine's own modules are among them
        module.eval()
        try:
            program = torch.onnx.export(
                module,
                tuple(example.clone() for example in examples),  # a request's tensors may be inference tensors
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=[f"out_{name}" for name in outputs],  # an output must not share an inner value's name
                dynamic_shapes=shapes,
                optimize=True,
                verbose=False,
            )
            assert program is not None
            program.save(str(path), external_data=True)
        except Exception as error:  # the exporter raises dozens of types
            raise ExportError(f"torch.onnx.export failed for {path.stem}: {error}") from error
        finally:
            for part in training:
                part.training = True
            exporter_log.setLevel(level)
    model = onnx.load(str(path), load_external_data=False)
    _forget_origin(model)
    path.write_bytes(model.SerializeToString())
    for value in model.graph.input:
        for axis in dynamic.get(value.name, {}):
            if not value.type.tensor_type.shape.dim[axis].dim_param:
                raise ExportError(
                    f"{path.stem}: axis {axis} of {value.name} came out fixed; the module must be rewritten"
                )
    rewrite_convolutions(path)


def _forget_origin(message: Any) -> None:
    """Drop what the exporter records about the traced code, at any depth: paths, line numbers, stacks.

    It is most of the file, and differs wherever the same code is installed elsewhere.
    """
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in (value,) if hasattr(value, "ListFields") else value:
                _forget_origin(part)


@contextlib.contextmanager
def on_one_thread() -> Iterator[None]:
    """Within the block PyTorch runs its operators on the calling thread only, so that results are the same everywhere.

    The last bits of a sum shared by threads depend on their number. Other threads are not affected: PyTorch keeps the
    number per thread, and the default for new threads, which setting it also changes, is restored at once.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(1) as another:
            another.submit(torch.set_num_threads, before).result()
        yield
    finally:
        torch.set_num_threads(before)
