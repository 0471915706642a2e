"""One kernel against numpy, on fixed random inputs, in about a second: what to run while changing it.

    python -m accelerator.kernels.check              lists the kernels
    python -m accelerator.kernels.check mix          compiles its unit if its source has changed, and checks it
    python -m accelerator.kernels.check all

Each function below answers by the kernel and by numpy in float64. The tests have more cases; here are a usual size's
error and pace, on one thread. It stands above all other rooms, since a step is run as `inference` runs it.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SessionError
from ..export.component import telling
from ..export.graph.causal import build_causal
from ..export.graph.quantize import Recipe, dequantize_blocks
from ..export.graph.rope import rope_tables
from ..export.graph.specs import CausalSpec, TransformerSpec
from ..export.graph.stored import stored
from ..inference.compiled import NativeSession
from ..inference.frame_loop import draw as compiled_draw
from ..inference.sampling import Draws, draw
from . import tiles
from .compiler import Unit, function, require
from .conv import layers
from .conv.chains import chain as run_chain
from .conv.chains import chain_unit
from .conv.elementwise import gelu as compiled_gelu
from .conv.elementwise import snake as compiled_snake
from .descriptors import Dense, Link
from .features import missing, multiplies_chains
from .llm.team import Team
from .units.dense import DENSE
from .units.filter import FILTER
from .units.gelu import GELU
from .units.mix import MIX
from .units.order import ORDER
from .units.pack import PACK
from .units.quantize import QUANTIZE
from .units.single import SINGLE
from .units.snake import SNAKE
from .units.step import STEP

__all__ = ["CHECKS", "Answer", "main"]

_SECONDS = 0.1  # for which a kernel is run to learn its pace


@dataclass(frozen=True)
class Answer:
    """What a kernel answered.

    error: the largest difference from numpy, as a share of the largest value. run: does the work once more, and keeps
    the memory that it works in. work: of a run, in `unit`s.
    """

    shape: str
    error: float
    bar: float
    run: Callable[[], object]
    work: float
    unit: str


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _error(got: np.ndarray, expected: np.ndarray) -> float:
    """NaN if anything is none."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def _convolved(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, dilation: int = 1) -> np.ndarray:
    """[rows, in] by [out, taps, in], in float64."""
    rows = len(x) - (kernel.shape[1] - 1) * dilation
    windows = (x[tap * dilation :][:rows].astype(np.float64) @ kernel[:, tap].T for tap in range(kernel.shape[1]))
    return np.asarray(sum(windows) + bias)


def _products(rows: int, *shape: int) -> float:
    """GFLOP of that many rows by weights of this shape, as a plain convolution has them."""
    return 2e-9 * rows * math.prod(shape)


# A codec's layers


def filtering() -> Answer:
    out, taps, channels, dilation, given = 192, 7, 192, 3, 1018
    kernel, bias, x = _random(out, taps, channels) / math.sqrt(taps * channels), _random(out), _random(given, channels)
    rows = given - (taps - 1) * dilation
    y = np.empty((rows, out), np.float32)
    layer = layers.Filter(kernel.shape, lambda: kernel, bias, dilation)

    def run() -> None:
        layer(x.ctypes.data, given, y.ctypes.data, threads=1)

    run()
    shape = f"[{given}, {channels}] by {list(kernel.shape)}, every {dilation}rd row"
    error = _error(y, _convolved(x, kernel, bias, dilation))
    return Answer(shape, error, 2e-4, run, _products(rows, *kernel.shape), "GFLOP")


def mixing() -> Answer:
    rows, out, channels = 1000, 192, 192
    kernel, bias, x = _random(out, channels) / math.sqrt(channels), _random(out), _random(rows, out, seed=1)
    layer = layers.Mix(kernel.shape, lambda: kernel, bias, "fp32")
    values = np.zeros((channels // tiles.CHUNK, layer.room(rows), tiles.CHUNK), np.float32)
    values[:] = _random(*values.shape, seed=2)
    y = x.copy()

    def run() -> None:
        layer(values.ctypes.data, rows, y.ctypes.data, threads=1)

    run()
    given = values.transpose(1, 0, 2).reshape(-1, channels)[:rows].astype(np.float64)
    error = _error(y, x + given @ kernel.T + bias)
    return Answer(
        f"[{rows}, {channels}] by {list(kernel.shape)}", error, 1e-5, run, _products(rows, out, channels), "GFLOP"
    )


def dense() -> Answer:
    out, taps, channels, given = 512, 2, 512, 65
    kernel, bias, x = _random(out, taps, channels) / math.sqrt(taps * channels), _random(out), _random(given, channels)
    y = np.empty((given - taps + 1, out), np.float32)
    layer = layers.Dense(kernel.shape, lambda: kernel, bias, 1)

    def run() -> None:
        layer(x.ctypes.data, given, y.ctypes.data, threads=1)

    run()
    error = _error(y, _convolved(x, kernel, bias))
    return Answer(
        f"[{given}, {channels}] by {list(kernel.shape)}", error, 5e-4, run, _products(len(y), *kernel.shape), "GFLOP"
    )


def quantize() -> Answer:
    """In units of the rows' own scales: a value is rounded to the nearest integer."""
    rows, channels = 500, 512
    x, chunks = _random(rows, channels), channels // tiles.CHUNK
    values, scales = np.zeros((chunks, rows, 2 * tiles.CHUNK), np.int16), np.zeros(rows, np.float32)
    unused = dict.fromkeys(("rows", "taps", "dilation", "columns", "weights", "weight_scales", "bias", "y"), 0)
    call = function(QUANTIZE)

    def run() -> None:  # the arrays live as long as this does
        places = {"values": values.ctypes.data, "value_scales": scales.ctypes.data}
        plan = np.array(Dense(room=rows, channels=channels, **places, **unused), np.int64)
        call(plan.ctypes.data, x.ctypes.data, rows)

    run()
    halves = values[:, :, : tiles.CHUNK].reshape(chunks, rows, tiles.CHUNK // 2, 2)  # j beside j + 16
    got = halves.transpose(1, 0, 3, 2).reshape(rows, channels)
    error = np.abs(got - x.astype(np.float64) / scales[:, None]).max()
    return Answer(f"[{rows}, {channels}]", float(error), 0.51, run, 1e-9 * x.nbytes, "GB")


def single() -> Answer:
    taps, channels, given = 7, 96, 20_006
    kernel, bias, x = _random(1, taps, channels), _random(1), _random(given, channels)
    y = np.empty((given - taps + 1, 1), np.float32)
    layer = layers.Single(kernel, bias)

    def run() -> None:
        layer(x.ctypes.data, given, y.ctypes.data, threads=1)

    run()
    error = _error(y, _convolved(x, kernel, bias))
    return Answer(f"[{given}, {channels}] by {list(kernel.shape)}", error, 1e-5, run, 1e-9 * x.nbytes, "GB")


def snake() -> Answer:
    rows, channels = 2000, 192
    x, alpha, y = 9 * _random(rows, channels), np.abs(_random(channels)) + 0.5, np.empty((rows, channels), np.float32)

    def run() -> None:
        found = compiled_snake(
            x.ctypes.data, alpha.ctypes.data, y.ctypes.data, rows, channels, low=False, low_out=False, threads=1
        )
        assert found, "the kernel was there a moment ago"

    run()
    z = (x * alpha).astype(np.float64)
    return Answer(f"[{rows}, {channels}]", _error(y, z + np.sin(z) ** 2), 1e-6, run, 2e-9 * x.nbytes, "GB")


def gelu() -> Answer:
    rows, channels = 2000, 192
    x, y = 3 * _random(rows, channels), np.empty((rows, channels), np.float32)

    def run() -> None:
        compiled_gelu(x.ctypes.data, y.ctypes.data, rows, channels, threads=1)

    run()
    expected = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return Answer(f"[{rows}, {channels}]", _error(y, expected), 1e-6, run, 2e-9 * x.nbytes, "GB")


def order() -> Answer:
    columns, taps, channels, points = 192, 7, 192, 14
    kernel, factors = _random(columns, taps, channels), _random(points, taps, seed=1).astype(np.float64)

    def run() -> np.ndarray:
        answer, _ = layers._ordered(kernel, kernel.shape, 0, 1, factors)
        return answer

    expected = np.einsum("pt,oti->poi", factors, kernel.astype(np.float64))
    expected = expected.reshape(points, -1, tiles.CHUNK, channels).transpose(0, 1, 3, 2)
    error = _error(run().reshape(expected.shape), expected)
    return Answer(f"{list(kernel.shape)} at {points} points", error, 1e-6, run, 4e-9 * expected.size, "GB")


def chain() -> Answer:
    """Of whole numbers, which bfloat16 holds."""
    rows, out, taps, channels = 2000, 64, 3, 64
    x, kernel, bias = (
        np.round(_random(rows + 2 + tiles.CHUNK, channels)),
        np.round(_random(out, taps, channels)),
        _random(out),
    )
    given, weights = (np.ascontiguousarray(each.view(np.uint32) >> 16).astype(np.uint16) for each in (x, kernel))
    squares = weights.reshape(out // 32, 2, 16, taps, channels // 32, 16, 2).transpose(0, 3, 4, 1, 5, 2, 6)
    squares = layers.aligned(squares)
    pairs = [(2 * (tap * channels + 32 * c), 2 * tiles.SQUARE * (tap * 2 + c)) for tap in range(taps) for c in range(2)]
    places, y = np.array(pairs, np.int64), np.empty((rows, out), np.float32)
    numbers = dict.fromkeys(Link._fields, 0) | {"x": given.ctypes.data, "y": y.ctypes.data, "bias": bias.ctypes.data}
    numbers |= {"step": 2 * channels, "places": places.ctypes.data, "terms": len(places), "columns": out, "rate": 1}
    numbers |= {"weights": squares.ctypes.data, "panel": squares[0].nbytes, "slope": int(np.float32(1).view(np.int32))}

    kept = given, squares, places, bias, y  # which the addresses are of

    def run() -> object:
        run_chain([Link(**numbers)], rows, 512, 0, 0, threads=1)
        return kept

    run()
    error, shape = _error(y, _convolved(x[: rows + 2], kernel, bias)), f"[{rows}, {channels}] by {list(kernel.shape)}"
    return Answer(shape, error, 1e-6, run, _products(rows, *kernel.shape), "GFLOP")


# A language model


def pack() -> Answer:
    """Bit for bit."""
    rows, blocks, block = 512, 16, 64
    given = np.random.default_rng(0).integers(0, 256, (rows, blocks, block // 2), np.uint8)
    size = 8 * block
    packed = np.zeros((rows // 16, blocks, size + 48), np.uint8)
    call = function(PACK)

    def run() -> None:
        call(given.ctypes.data, packed.ctypes.data, rows, blocks, block, 4)

    run()
    four = np.stack([given & 15, given >> 4], axis=-1).reshape(rows // 16, 16, blocks, block // 8, 2, 4)
    bytes_ = four[..., 0, :] | four[..., 1, :] << 4  # of eight values, the first four in the lower halves
    expected = bytes_.transpose(0, 2, 3, 1, 4).reshape(rows // 16, blocks, size)
    error = float(np.abs(packed[..., :size].astype(np.int64) - expected).max())
    return Answer(f"[{rows}, {blocks * block}] of 4 bits", error, 0, run, 1e-9 * given.nbytes, "GB")


def drawing() -> Answer:
    """The share of draws that are not numpy's."""

    class Given:
        def __init__(self, number: float) -> None:
            self.random = lambda: number

    logits, numbers = 3 * _random(50, 1024), (np.arange(50) + 0.5) / 50
    options: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "top_k": 30}
    none = np.zeros((1, 0), np.int64)
    described = [Draws(none, np.array([n]), penalty=1.0, rows=None, **options) for n in numbers]

    def run() -> list[int]:
        return [compiled_draw(row, each) for row, each in zip(logits, described, strict=True)]

    expected: Any = [draw(row, Given(n), **options) for row, n in zip(logits, numbers, strict=True)]  # type: ignore[arg-type]
    wrong = float(np.mean(np.array(run()) != expected))
    return Answer(f"{len(logits)} of {logits.shape[1]} logits", wrong, 0, run, 1e-9 * logits.nbytes, "GB")


_STACK = TransformerSpec(
    dim=512, layers=2, heads=8, kv_heads=2, head_dim=64, ffn=1536, eps=1e-5, rope_base=1e4, positions=16
)
_VOCABULARY, _LENGTH, _BLOCK = 1024, 3, 128


def step() -> Answer:
    """A model of two layers, int8 by blocks: the logits behind three positions."""
    spec, x = CausalSpec(_STACK, ((0, _VOCABULARY),), ()), _random(1, _LENGTH, _STACK.dim)
    cache = (1, _STACK.kv_heads, 16, _STACK.head_dim)
    names = [f"{kind}.{i}" for i in range(_STACK.layers) for kind in ("key", "value")]
    inputs = {"x": x, "seqlens_k": np.array([_LENGTH - 1], np.int32)}
    inputs |= {f"past_{name}": np.zeros(cache, np.float32) for name in names}
    outputs = {"logits": np.zeros((1, _VOCABULARY), np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        build_causal(Path(folder), spec, _weight, Recipe(bits=8, block=_BLOCK, head_bits=8, head_block=_BLOCK))
        session = NativeSession(Path(folder) / "causal.onnx", spec, Team(1))
        binding = session.bind(inputs, outputs)
        binding.run()
        expected = _Plain(session.path).logits(x[0])
    weights = _STACK.matrix_weights + _VOCABULARY * _STACK.dim
    shape = f"{_LENGTH} positions of {_STACK.dim}, {_STACK.layers} layers"
    return Answer(shape, _error(outputs["logits"][0], expected), 1e-3, binding.run, 1e-9 * weights, "GB")


def _weight(name: str) -> np.ndarray:
    """A model's random weights by the graph's names."""
    part, qkv = name.rpartition(".")[2], (_STACK.heads + 2 * _STACK.kv_heads) * _STACK.head_dim
    shapes = {"qkv": (qkv, _STACK.dim), "out": (_STACK.dim, _STACK.heads * _STACK.head_dim)}
    shapes |= {"gate": (_STACK.ffn, _STACK.dim), "up": (_STACK.ffn, _STACK.dim), "down": (_STACK.dim, _STACK.ffn)}
    shapes["head"] = _VOCABULARY, _STACK.dim
    if part not in shapes:  # a norm's
        return np.ones(_STACK.dim, np.float32)
    return _random(*shapes[part], seed=zlib.crc32(name.encode())) / np.float32(math.sqrt(shapes[part][1]))


class _Plain:
    """The same model in float64, but for the quantized values that the kernels round to."""

    def __init__(self, path: Path) -> None:
        self._w = {name: np.array(array) for name, array in stored(path).items()}

    def logits(self, x: np.ndarray) -> np.ndarray:
        """[positions, dim] -> of the last one."""
        heads, kv_heads, size = _STACK.heads, _STACK.kv_heads, _STACK.head_dim
        for i in range(_STACK.layers):
            name = f"causal.{i}"
            qkv = self._product(self._norm(x, f"{name}.attention_norm"), f"{name}.qkv").reshape(len(x), -1, size)
            q, k, v = np.split(qkv, [heads, heads + kv_heads], axis=1)
            q, k, v = _rotated(q), *(np.repeat(each, heads // kv_heads, axis=1) for each in (_rotated(k), v))
            scores = np.einsum("shd,thd->hst", q, k) / math.sqrt(size)
            shares = np.exp(scores) * np.tril(np.ones((len(x), len(x))))
            attended = np.einsum("hst,thd->shd", shares / shares.sum(axis=-1, keepdims=True), v)
            x = x + self._product(attended.reshape(len(x), -1), f"{name}.out")
            both = self._product(self._norm(x, f"{name}.ffn_norm"), f"{name}.gate_up")
            gate, up = np.split(both, 2, axis=1)
            x = x + self._product(gate / (1 + np.exp(-gate)) * up, f"{name}.down")
        return self._product(self._norm(x[-1:], "causal.norm"), "causal.head")[0]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return np.asarray(x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + _STACK.eps) * self._w[name])

    def _product(self, x: np.ndarray, name: str) -> np.ndarray:
        values, scales = self._w[f"{name}.q8"], self._w[f"{name}.scales"].reshape(-1, x.shape[1] // _BLOCK)
        largest = np.abs(scales).max(axis=1, keepdims=True)
        scales = (scales / largest).astype(np.float16) * largest  # as tiles have them
        weight = dequantize_blocks(values, scales, None, 8, x.shape[1]).astype(np.float64)
        blocks = x.reshape(len(x), -1, _BLOCK)
        scale = np.abs(blocks).max(axis=2, keepdims=True) / 127
        return np.asarray((np.floor(blocks / scale + 0.5) * scale).reshape(x.shape) @ weight.T)


def _rotated(x: np.ndarray) -> np.ndarray:
    cos, sin = (table[: len(x), None] for table in rope_tables(_STACK))
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape)


CHECKS: dict[str, tuple[Callable[[], Answer], tuple[Unit, ...]]] = {
    "step": (step, (STEP, PACK)),
    "draw": (drawing, (STEP,)),
    "pack": (pack, (PACK,)),
    "filter": (filtering, (FILTER, ORDER)),
    "mix": (mixing, (MIX, ORDER)),
    "dense": (dense, (DENSE, QUANTIZE, ORDER)),
    "quantize": (quantize, (QUANTIZE,)),
    "single": (single, (SINGLE,)),
    "snake": (snake, (SNAKE,)),
    "gelu": (gelu, (GELU,)),
    "order": (order, (ORDER,)),
    **({"chain": (chain, (chain_unit(),))} if multiplies_chains() else {}),  # with AMX or AVX512_BF16 only
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 where all kernels that are named are right, 1 where one is not or cannot be compiled."""
    parser = argparse.ArgumentParser(prog="python -m accelerator.kernels.check", description="A kernel against numpy.")
    parser.add_argument("name", nargs="?", choices=[*CHECKS, "all"], help="of a kernel; none: list them")
    name = parser.parse_args(arguments).name
    if name is None:
        print("\n".join(CHECKS))
        return 0
    if reason := missing():
        print(f"there are no compiled kernels here: {reason}", file=sys.stderr)
        return 1
    right = [_checked(each) for each in (CHECKS if name == "all" else [name])]
    return 0 if all(right) else 1


def _checked(name: str) -> bool:
    check, units = CHECKS[name]
    compiled: list[str] = []
    start = time.perf_counter()
    try:
        with telling(lambda event: compiled.append(event.component)):
            require(*units)
        took = time.perf_counter() - start
        answer = check()
    except SessionError as error:
        print(f"{name:8} {error}", file=sys.stderr)
        return False
    right = answer.error <= answer.bar  # NaN is not
    ready = f"{', '.join(compiled)} compiled in {took:.1f} s" if compiled else f"loaded in {1000 * took:.0f} ms"
    pace = f"{answer.work / _seconds(answer.run):.3g} {answer.unit}/s"
    verdict = "ok" if right else "WRONG"
    print(f"{name:8} {verdict:5}  error {answer.error:.1e} of {answer.bar:<6.2g} {pace:12}  {ready}  {answer.shape}")
    return right


def _seconds(run: Callable[[], object]) -> float:
    """The least that a run takes: others use the machine as well."""
    least, end = math.inf, time.perf_counter() + _SECONDS
    while (start := time.perf_counter()) < end:
        run()
        least = min(least, time.perf_counter() - start)
    return least


if __name__ == "__main__":
    sys.exit(main())
