"""A float32 model in int8, as far as it sounds the same: calibrated on real inputs, its sensitive layers kept in float.

    sweep   each convolution and matrix product is quantized alone, and the noise at the output is measured
    choice  first and last layers stay in float, and those that cost most noise for the work that they save, until all
            the others together pass the bar

The noises of layers add up about as those of independent sources do: that says how many layers to begin with, and the
model that results is measured. The bar is a signal-to-noise ratio, which stands in for hearing and does not replace it:
what a ratio sounds like differs from model to model.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ..errors import ExportError, SessionError
from ..runtime.onnx import Session
from ..runtime.options import RunOptions
from ..runtime.quantization import KINDS, Method, Quantizer
from .proof import SNR_DB, compare_signals

__all__ = ["UNHEARD_DB", "Calibration", "Quantized", "one_file", "quantize", "sweep_of"]

UNHEARD_DB = 20.0  # the bar of an int8 part that nobody has listened to; only for those who ask for int8
_SWEEP = "sweep.json"
_ENDS = 1  # layers kept in float at each end: the first sees the engine's own inputs, the last makes the sound
_LEAST = 1e-3  # of all products: what saves less stays in float, and is not swept
_LESS = 10**-0.1  # of the noise that was allowed, when the layers' noises add up to more than their sum
_MARGIN = 1.0  # dB above the bar for the calibration's own inputs: the proof has others
_JUDGED = 3  # feeds that a choice is measured with; each layer alone with the shortest of them, or a sweep takes long

Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Calibration:
    """How a part becomes int8.

    examples: inputs by name, and the engine's own answers, as real text leads to them. Two thirds calibrate, the
    last third is for the proof. at_least: the bar, in dB. heard: people or a recogniser have found audio at this bar as
    good. Without that, and below `proof.SNR_DB`, the part runs in int8 only for those who ask for it. among: how the
    names of the layers' nodes begin: a sweep of a large graph takes long, and what says how long sounds last cannot be
    int8.
    """

    examples: Callable[[], Iterator[tuple[Feed, Sequence[Any]]]]
    at_least: float = UNHEARD_DB
    method: Method = "percentile"
    heard: bool = False
    among: str = ""

    @property
    def unasked(self) -> bool:
        """Whether it may be used where nobody asked for int8."""
        return self.heard or self.at_least >= SNR_DB

    @property
    def recipe(self) -> dict[str, Any]:
        """What a key must cover."""
        return {"method": self.method, "at_least": self.at_least, "among": self.among}

    def calibrating(self) -> list[tuple[Feed, Sequence[Any]]]:
        every = list(self.examples())
        return every[: _calibrating(len(every))]

    def judging(self) -> list[tuple[Feed, Sequence[Any]]]:
        """Those that the calibration has not seen, if there are several."""
        every = list(self.examples())
        return every[_calibrating(len(every)) :] or every


@dataclass(frozen=True)
class Quantized:
    """A model, and what was found on the way.

    snr_db: with the calibration's own inputs. noise: of each layer's being quantized alone, relative to the signal.
    """

    content: bytes
    method: str
    snr_db: float
    quantized: tuple[str, ...]
    kept: tuple[str, ...]
    noise: Mapping[str, float]

    def write(self, path: Path) -> None:
        """The model, and the sweep beside it."""
        path.write_bytes(self.content)
        found = {k: v for k, v in vars(self).items() if k != "content"}
        (path.parent / _SWEEP).write_text(json.dumps(found))


def sweep_of(directory: Path) -> dict[str, Any]:
    """What `Quantized.write` says of the model in a directory, in figures."""
    found = json.loads((directory / _SWEEP).read_text())
    return {"method": found["method"], "layers": len(found["quantized"]), "kept": len(found["kept"])}


def one_file(path: Path) -> bytes:
    """The content of a model, its weights within."""
    return bytes(onnx.load(str(path)).SerializeToString())


def quantize(
    model: bytes | Path,
    feeds: Sequence[Feed],
    *,
    method: Method = "percentile",
    at_least: float = UNHEARD_DB,
    among: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Quantized:
    """The model with as many layers in int8 as pass the bar. model: a file's content, or a file with its weights.

    Raises ExportError where none do.
    """
    if not feeds:
        raise ExportError("int8 needs inputs to calibrate with: give the part's `calibration` some examples")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        layers = [name for name in _prepared(model, path) if name.partition(":")[2].startswith(among)]
        try:
            sweep = _Sweep(path, Quantizer(path, feeds, method), feeds[:_JUDGED])
            return _chosen(sweep, layers, method, at_least, progress)
        except SessionError as error:
            raise ExportError(str(error)) from error


def _chosen(
    sweep: _Sweep, layers: Sequence[str], method: str, at_least: float, progress: Callable[[int, int], None]
) -> Quantized:
    noise, inner = {}, layers[_ENDS : len(layers) - _ENDS]
    work = sweep.work(inner)
    inner = [layer for layer in inner if work[layer] >= _LEAST * sum(work.values())]
    for done, layer in enumerate(inner):
        progress(done, len(inner))
        noise[layer] = sweep.noise([layer], alone=True)[0]
    allowed = 10 ** (-(at_least + _MARGIN) / 10)
    while chosen := _worthwhile(noise, work, allowed):
        found, content = sweep.noise(chosen)
        if (snr := _decibels(found)) >= at_least + _MARGIN:
            kept = tuple(layer for layer in layers if layer not in chosen)
            return Quantized(content, method, snr, tuple(chosen), kept, noise)
        allowed *= _LESS
    raise ExportError(f"no layer can be int8 within {at_least:g} dB of the float32 answer: use fp32")


def _worthwhile(noise: Mapping[str, float], work: Mapping[str, int], allowed: float) -> list[str]:
    """The layers that save most for the noise that is allowed in all, in the order of the graph: a knapsack, greedily.

    The quietest layers alone would be the smallest ones, which save nothing.
    """
    chosen, total = set[str](), 0.0
    for layer in sorted(noise, key=lambda name: noise[name] / work[name]):
        if total + noise[layer] <= allowed:
            chosen.add(layer)
            total += noise[layer]
    return [layer for layer in noise if layer in chosen]


class _Sweep:
    """Measures a model with some nodes in int8 against the same model in float32."""

    def __init__(self, model: Path, quantizer: Quantizer, feeds: Sequence[Feed]) -> None:
        self._path, self._quantizer = model, quantizer
        exact = Session(model, RunOptions())
        expected = [exact.run(feed) for feed in feeds]
        self._answered = sorted(zip(feeds, expected, strict=True), key=lambda each: sum(a.size for a in each[1]))

    def noise(self, nodes: Sequence[str], *, alone: bool = False) -> tuple[float, bytes]:
        """The noise of the worst output and feed, relative to the signal; infinite if a shape differs. The model.

        alone: of the feed with the shortest answer.
        """
        content = self._quantizer.quantized(nodes)
        session = Session(content, RunOptions())
        pairs = [
            pair
            for feed, expected in self._answered[: 1 if alone else None]
            for pair in zip(expected, session.run(feed), strict=True)
        ]
        snr = compare_signals(pairs, 0.0)["snr_db"]
        return (10 ** (-snr / 10) if snr > 0 else np.inf), content

    def work(self, nodes: Sequence[str]) -> dict[str, int]:
        """How many products each of these nodes sums up, for the shortest answer."""
        proto = onnx.load(str(self._path))
        graph, own = proto.graph, len(proto.graph.output)
        found = {node.name: node for node in graph.node if node.name in set(nodes)}
        graph.output.extend(onnx.ValueInfoProto(name=found[name].output[0]) for name in nodes)
        answers = Session(bytes(proto.SerializeToString()), RunOptions(optimize=False)).run(self._answered[0][0])[own:]
        constants = _constants(graph)
        return {
            name: answer.size * _summed(found[name], constants[found[name].input[1]])
            for name, answer in zip(nodes, answers, strict=True)
        }


def _summed(node: onnx.NodeProto, weight: np.ndarray) -> int:
    """Products in one value of a layer's answer."""
    return weight[0].size if node.op_type == "Conv" else weight.shape[-2]


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and (value := {a.name: a for a in node.attribute}.get("value")) is not None:
            found[node.output[0]] = onnx.numpy_helper.to_array(value.t)
    return found


def _prepared(model: bytes | Path, path: Path) -> list[str]:
    """Write the model as one file, every node with a name of its own; the layers that can be int8, in order."""
    proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
    graph = proto.graph
    del graph.value_info[:]  # an exporter's guesses, which the shapes that are inferred would contradict
    for index, node in enumerate(graph.node):
        node.name = f"{index}:{node.name or node.op_type}"
    shapes = {name: array.ndim for name, array in _constants(graph).items()}
    layers = [node for node in graph.node if node.op_type in KINDS and shapes.get(node.input[1], 0) > 1]
    # Types are not inferred behind an operator that ONNX does not know, and what has no type is not calibrated.
    ends = {node.input[0] for node in layers} | {node.output[0] for node in layers}
    for name in sorted(ends - {value.name for value in (*graph.input, *graph.output)}):
        graph.value_info.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    onnx.save(proto, str(path))
    return [node.name for node in layers]


def _calibrating(count: int) -> int:
    return -(-2 * count // 3)


def _decibels(noise: float) -> float:
    return float(-10 * np.log10(max(noise, 1e-20)))
