"""A graph of `export.graph` run by the compiled kernels instead of ONNX Runtime, from the weights of its export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SessionError
from ..export.graph.dual_ar import DualARSpec
from ..export.graph.quantize import unpack_nibbles
from ..export.graph.specs import CausalSpec
from ..export.graph.stored import stored
from ..kernels import descriptors as at
from ..kernels.compiler import function
from ..kernels.llm.team import Team
from ..kernels.units.pack import PACK

__all__ = ["NativeBinding", "NativeSession", "open_graphs"]

_TOKENS = 128  # that are run through the layers together
_LARGEST_BLOCK = 256


class NativeSession:
    """The graph `causal`, `slow` or `fast`, with the inputs and outputs of the ONNX graph; see `onnx.Session`."""

    invariant = True

    def __init__(self, path: Path, spec: DualARSpec | CausalSpec, team: Team) -> None:
        """Load <path>, an export in 4 or 8 bits by blocks. Raises SessionError if it is of another kind."""
        self.path, self.team = Path(path), team
        self.name = self.path.stem
        self.stack, self._hidden = spec.graph(self.name)
        self._kept: list[np.ndarray] = []
        try:
            weights = stored(self.path)
            self._plan = self._prepare(weights)
        except (OSError, ValueError, KeyError) as error:
            raise SessionError(f"{self.path.name} cannot be run by compiled kernels: {error!r}") from error
        dtype = np.int8 if self._plan[at.INT8_CACHE] else np.float32
        shape = ["batch", self.stack.kv_heads, "capacity", self.stack.head_dim]
        names = [f"{kind}.{i}" for i in range(self.stack.layers) for kind in ("key", "value")]
        self.inputs: dict[str, tuple[Any, Any]] = {
            "x": (np.float32, ["batch", "length", self.stack.dim]),
            "seqlens_k": (np.int32, ["batch"]),
            **{f"past_{name}": (dtype, shape) for name in names},
        }
        self.outputs = ["logits", *(["hidden"] if self._hidden else []), *(f"present_{n}" for n in names)]

    def bind(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> NativeBinding:
        return NativeBinding(self, inputs, outputs)

    def _prepare(self, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        """The plan but for what belongs to a run."""
        stack, hidden = self.stack, self._hidden
        if any(n % at.LANES for n in (stack.dim, stack.head_dim, stack.ffn)) or stack.head_dim > 256:
            raise ValueError("sizes that do not divide by 16")
        p = np.zeros(at.SIZE + at.LAYER * stack.layers, np.int64)
        sizes = (stack.dim, stack.layers, stack.heads, stack.kv_heads, stack.head_dim, stack.ffn)
        p[at.DIM : at.DIM + 6] = sizes
        p[at.THREADS] = self.team.threads
        p[at.EPS] = np.array(stack.eps, np.float32).view(np.int32)
        p[at.COS], p[at.SIN] = (self._keep(weights[name]) for name in ("cos", "sin"))
        p[at.NORM] = self._keep(weights[f"{self.name}.norm"])
        self._matrix(p, at.HEAD, f"{self.name}.head", weights)
        if hidden is not None:
            p[at.POST_NORM], p[at.HIDDEN_WIDTH] = hidden.normed, hidden.width
            if hidden.projected:
                p[at.PROJECTION_GIVEN] = 1
                self._matrix(p, at.PROJECTION, "fast_in", weights)
        p[at.INT8_CACHE] = f"{self.name}.0.key_scale" in weights
        for i in range(stack.layers):
            name, layer = f"{self.name}.{i}", at.SIZE + at.LAYER * i
            p[layer + at.ATTENTION_NORM] = self._keep(weights[f"{name}.attention_norm"])
            p[layer + at.FFN_NORM] = self._keep(weights[f"{name}.ffn_norm"])
            if stack.qk_norm:
                p[layer + at.QK_NORM] = self._keep(weights[f"{name}.qk_norm"])
            if p[at.INT8_CACHE]:
                p[layer + at.KEY_SCALE] = self._keep(weights[f"{name}.key_scale"])
                p[layer + at.VALUE_SCALE] = self._keep(weights[f"{name}.value_scale"])
            for which, part in ((at.QKV, "qkv"), (at.OUT, "out"), (at.GATE_UP, "gate_up"), (at.DOWN, "down")):
                self._matrix(p, layer + which, f"{name}.{part}", weights)
        self._workspace(p)
        return p

    def _workspace(self, p: np.ndarray) -> None:
        stack, widest = self.stack, self._widest()
        inner, attended = stack.ffn, stack.heads * stack.head_dim
        qkv = attended + 2 * stack.kv_heads * stack.head_dim
        for place, width in (
            (at.X, stack.dim),
            (at.QKV_OUT, qkv),
            (at.ATTENDED, attended),
            (at.INNER, inner),
            (at.TOGETHER, 2 * stack.dim),
            (at.SHARED_SCALES, widest // 32),
            (at.SHARED_SUMS, widest // 32),
        ):
            p[place] = self._keep(np.zeros((_TOKENS + 8, width), np.float32))
        p[at.SHARED_VALUES] = self._keep(np.zeros((_TOKENS + 8, widest), np.int8))

    def _widest(self) -> int:
        """Inputs of a matrix at most, with what fills a block up."""
        stack = self.stack
        return -(-max(stack.dim, stack.ffn, stack.heads * stack.head_dim) // _LARGEST_BLOCK) * _LARGEST_BLOCK

    def scratch(self, p: np.ndarray, capacity: int, length: int) -> np.ndarray:
        """A workspace for each thread of a run of so many positions over a cache of `capacity`; its places go into the
        at."""
        stack, widest = self.stack, self._widest()
        sizes = 1024 + at.QUERY_BYTES, 8 * widest, 8 * widest // 8, 8 * widest // 8
        begins = np.cumsum(sizes)
        p[at.SCRATCH_SCALES], p[at.SCRATCH_SUMS], p[at.SCRATCH_SCORES] = begins[1:]
        prompt, positions = length >= at.PROMPT, -(-capacity // at.LANES) * at.LANES
        p[at.SCRATCH_KEYS] = begins[-1] + 4 * max((8 if prompt else 2) * positions, stack.dim)
        last = p[at.SCRATCH_KEYS] + (4 * positions * stack.head_dim if prompt else 0)
        p[at.SCRATCH_SIZE] = size = -(-last // 4096) * 4096
        memory = np.zeros(size * self.team.threads, np.uint8)
        p[at.SCRATCH] = memory.ctypes.data
        return memory

    def _matrix(self, p: np.ndarray, start: int, name: str, weights: Mapping[str, np.ndarray]) -> None:
        """Put a matrix into tiles of 16 rows; SwiGLU's two halves by turns, which are read together."""
        bits = next((b for b in (4, 8) if f"{name}.q{b}" in weights), 0)
        if not bits or weights[f"{name}.q{bits}"].ndim != 3:
            raise ValueError(f"{name} is not quantized by blocks")
        rows, blocks, size = weights[f"{name}.q{bits}"].shape
        order: Any = slice(None)
        if name.endswith(".gate_up"):
            order = np.arange(rows).reshape(2, -1, at.LANES).transpose(1, 0, 2).reshape(-1)
        levels = np.ascontiguousarray(weights[f"{name}.q{bits}"][order])
        block = size * 8 // bits
        if block % 32 or block > _LARGEST_BLOCK:
            raise ValueError(f"{name} has blocks of {block}")
        tiles, width = -(-rows // at.LANES), block * 2 * bits
        packed = np.zeros((tiles, blocks, width + 3 * at.LANES), np.uint8)
        function(PACK)(levels.ctypes.data, packed.ctypes.data, rows, blocks, block, bits)
        scales = weights[f"{name}.scales"].reshape(rows, blocks)[order]
        factor = np.zeros(tiles * at.LANES, np.float32)
        factor[:rows] = np.abs(scales).max(axis=1)  # so that the rest fits float16
        rest = np.divide(scales, factor[:rows, None], out=np.zeros_like(scales), where=factor[:rows, None] > 0)
        packed[:, :, width : width + 2 * at.LANES] = _by_tile(rest.astype(np.float16), tiles).view(np.uint8)
        packed[:, :, width + 2 * at.LANES :] = _by_tile(_zero_points(name, weights, rows, blocks, bits)[order], tiles)
        bias = weights.get(f"{name}.bias")
        if bias is not None:
            bias = np.pad(bias.astype(np.float32).reshape(-1), (0, tiles * at.LANES - rows))
        places = self._keep(packed), self._keep(factor), 0 if bias is None else self._keep(bias)
        p[start : start + at.MATRIX] = (*places, bits, block, blocks, tiles, rows)

    def _keep(self, array: np.ndarray) -> int:
        """The address of an array that stays with the session."""
        kept = np.array(array) if isinstance(array, np.memmap) else np.ascontiguousarray(array)
        self._kept.append(kept)
        return int(kept.ctypes.data)


def open_graphs(
    directory: Path, spec: DualARSpec | CausalSpec, names: Sequence[str], threads: int
) -> list[NativeSession]:
    """Sessions over graphs of an export, which share their threads. Raises SessionError."""
    team = Team(threads)
    return [NativeSession(directory / f"{name}.onnx", spec, team) for name in names]


class NativeBinding:
    """A run over fixed arrays; see `onnx.Binding`."""

    def __init__(
        self, session: NativeSession, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> None:
        self._session, self._arrays = session, {**inputs, **outputs}
        self.team = session.team
        self._x, self._ends = inputs["x"], inputs["seqlens_k"]
        self._plan = p = session._plan.copy()
        self._batch, self._length = self._x.shape[:2]
        cache = inputs["past_key.0"]
        p[at.CAPACITY] = cache.shape[2]
        self._memory = session.scratch(p, cache.shape[2], self._length)
        for i in range(session.stack.layers):
            layer = at.SIZE + at.LAYER * i
            p[layer + at.KEYS] = inputs[f"past_key.{i}"].ctypes.data
            p[layer + at.VALUES] = inputs[f"past_value.{i}"].ctypes.data
        p[at.INPUT_STEP] = self._length * session.stack.dim
        self._bind(0, self._batch, 0, self._length)
        together = self._batch * self._length <= _TOKENS
        rows = [(0, self._batch)] if together else [(b, b + 1) for b in range(self._batch)]
        starts = range(0, self._length, self._length if together else _TOKENS)
        self._parts = [(*r, s, min(self._length, s + _TOKENS)) for r in rows for s in starts]

    def _bind(self, first: int, last: int, start: int, end: int) -> None:
        p, length = self._plan, self._length
        p[at.BATCH], p[at.LENGTH], p[at.ROW], p[at.BACK] = (
            last - first,
            end - start,
            first,
            length - 1 - start,
        )
        p[at.INPUT] = self._x[first, start].ctypes.data
        p[at.SEQLENS] = self._ends[first:].ctypes.data
        p[at.WANTED] = end == length
        p[at.LOGITS] = self._arrays["logits"][first:].ctypes.data
        if "hidden" in self._arrays:
            p[at.HIDDEN] = self._arrays["hidden"][first:].ctypes.data

    @property
    def plan(self) -> np.ndarray:
        """What the compiled code reads."""
        return self._plan

    def run(self) -> None:
        if len(self._parts) > 1:
            for part in self._parts:
                self._bind(*part)
                self._session.team.run(self._plan)
        else:
            self._session.team.run(self._plan)


def _by_tile(values: np.ndarray, tiles: int) -> np.ndarray:
    """[rows, blocks] -> [tiles, blocks, 16], what is missing at the end zero."""
    rows, blocks = values.shape
    padded = np.zeros((tiles * at.LANES, blocks), values.dtype)
    padded[:rows] = values
    return np.ascontiguousarray(padded.reshape(tiles, at.LANES, blocks).transpose(0, 2, 1))


def _zero_points(name: str, weights: Mapping[str, np.ndarray], rows: int, blocks: int, bits: int) -> np.ndarray:
    points = weights.get(f"{name}.zero_points")
    if points is None:
        return np.full((rows, blocks), 1 << (bits - 1), np.uint8)
    points = points.reshape(rows, -1)
    if bits == 4:
        points = unpack_nibbles(points)
    return points[:, :blocks]
