"""ONNX Runtime's own quantization, for chosen nodes: calibrated once, applied as often as a search needs.

onnxruntime.quantization's front doors calibrate at each call, talk to the root logger and print; so its quantizers are
called directly, with what its front doors would give them. Convolutions and matrix products only: transposed
convolutions and GRUs are never fused into integer operators, and cost more than they save.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import SessionError
from .onnx import Session, library
from .options import RunOptions

__all__ = ["KINDS", "METHODS", "Method", "Quantizer"]

KINDS = ("Conv", "MatMul")
Method = Literal["dynamic", "minmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = ("dynamic", "minmax", "percentile", "entropy")
_SMALLEST_OPSET = 13  # from which on scales may differ between channels


class Quantizer:
    """A float32 model, and how to quantize nodes of it.

    Static methods store 8-bit weights with a scale for each channel, and unsigned activations whose ranges were seen in
    calibration. "dynamic" measures activations as they come; its weights are unsigned, since signed ones have no fast
    convolution (four times slower than float32).
    """

    def __init__(self, model: Path, feeds: Iterable[Mapping[str, np.ndarray]], method: Method) -> None:
        """model: a file whose nodes have names, in a folder where others may be written. feeds: real inputs.

        Raises SessionError.
        """
        library()
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        self._ranges = None
        with _quiet(), _translated(model):
            self._model = load_model_with_shape_infer(model)
            opset = next(each.version for each in self._model.opset_import if each.domain in ("", "ai.onnx"))
            if opset < _SMALLEST_OPSET:
                raise SessionError(
                    f"operator set {opset} cannot be quantized: convert it to {_SMALLEST_OPSET} or later"
                )
            if method != "dynamic":
                self._ranges = _ranges(model, feeds, method)

    def quantized(self, nodes: Sequence[str]) -> bytes:
        """The model with these nodes in int8. Raises SessionError."""
        with _quiet(), _translated(Path("the model")):
            made = (self._dynamic if self._ranges is None else self._static)(copy.deepcopy(self._model), list(nodes))
            made.quantize_model()
            return bytes(made.model.model.SerializeToString())

    def _static(self, model: Any, nodes: list[str]) -> Any:
        from onnxruntime.quantization import QDQQuantizer, QuantType

        types = QuantType.QInt8, QuantType.QUInt8  # of weights, of activations: U8S8, the fastest here
        return QDQQuantizer(model, True, False, *types, self._ranges, nodes, [], list(KINDS), {})

    def _dynamic(self, model: Any, nodes: list[str]) -> Any:
        from onnxruntime.quantization import QuantizationMode, QuantType
        from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer

        types, options = (QuantType.QUInt8, QuantType.QUInt8), {"MatMulConstBOnly": True}
        mode = QuantizationMode.IntegerOps
        return ONNXQuantizer(model, False, False, mode, False, *types, None, nodes, [], list(KINDS), options)


def _ranges(model: Path, feeds: Iterable[Mapping[str, np.ndarray]], method: str) -> Any:
    """The range of each value that a node of `KINDS` reads or writes, over all feeds."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        looking = Path(folder) / "looking.onnx"
        # Percentiles are symmetric by default, which wastes half of an unsigned range on activations without a sign.
        calibrator = create_calibrator(
            model, list(KINDS), str(looking), methods[method], extra_options={"symmetric": False}
        )
        # On one thread, so that a key means one content; and without the spinning of its own session.
        calibrator.infer_session = Session(looking, RunOptions(optimize=False)).opened()
        for feed in feeds:  # one at a time: it keeps all values of what it is given
            calibrator.collect_data(_Once(feed))
        return calibrator.compute_data()


class _Once:
    """One feed, in the form in which a calibrator reads."""

    def __init__(self, feed: Mapping[str, np.ndarray]) -> None:
        self._feeds = iter([dict(feed)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """It prints, and warns through functions of `logging` that set up the root logger if nobody else has."""
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)
    before, root.disabled = root.disabled, True
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.disabled = before
        root.removeHandler(silent)


@contextlib.contextmanager
def _translated(model: Path) -> Iterator[None]:
    try:
        yield
    except (SessionError, MemoryError):
        raise
    except Exception as error:  # it raises ValueError, AttributeError, KeyError and protobuf's own types
        raise SessionError(f"ONNX Runtime cannot quantize {model.name}: {error}") from error
