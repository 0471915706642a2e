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
from ..kernels import tiles
from ..kernels.compiler import function
from ..kernels.descriptors import LAYER, PLAN
from ..kernels.llm.team import Team
from ..kernels.tiles import LANES
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
        self.matrices: list[np.ndarray] = []  # in tiles, in the order in which they were made: what a step reads
        try:
            weights = stored(self.path)
            self._plan, self._layers = self._prepare(weights)
        except (OSError, ValueError, KeyError) as error:
            raise SessionError(f"{self.path.name} cannot be run by compiled kernels: {error!r}") from error
        dtype = np.int8 if self._plan["int8_cache"] else np.float32
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

    def records(self) -> tuple[np.ndarray, np.ndarray]:
        """A plan for a binding to fill in, and its layers."""
        plan, layers = self._plan.copy(), self._layers.copy()
        plan["first_layer"] = layers.ctypes.data
        return plan, layers

    def _prepare(self, weights: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The plan, but for what belongs to a run, and its layers."""
        stack, hidden = self.stack, self._hidden
        if any(n % LANES for n in (stack.dim, stack.head_dim, stack.ffn)) or stack.head_dim > 256:
            raise ValueError("sizes that do not divide by 16")
        plan, layers = np.zeros((), PLAN), np.zeros(stack.layers, LAYER)
        for name in ("dim", "heads", "kv_heads", "head_dim", "ffn", "layers", "eps"):
            plan[name] = getattr(stack, name)
        plan["threads"] = self.team.threads
        for name in ("cos", "sin"):
            plan[name] = self._keep(weights[name])
        plan["norm"] = self._keep(weights[f"{self.name}.norm"])
        self._matrix(plan["head"], f"{self.name}.head", weights)
        self.rows = int(plan["head"]["rows"])  # of the head
        if hidden is not None:
            plan["post_norm"], plan["hidden_width"] = hidden.normed, hidden.width
            if hidden.projected:
                plan["is_projected"] = True
                self._matrix(plan["projection"], "fast_in", weights)
        plan["int8_cache"] = f"{self.name}.0.key_scale" in weights
        for i in range(stack.layers):
            self._layer(layers[i : i + 1], f"{self.name}.{i}", weights, bool(plan["int8_cache"]))
        self._workspace(plan)
        return plan, layers

    def _layer(self, layer: np.ndarray, name: str, weights: Mapping[str, np.ndarray], int8_cache: bool) -> None:
        """Fill in the record of a layer."""
        names = ["attention_norm", "ffn_norm", *(["qk_norm"] if self.stack.qk_norm else [])]
        for part in names + (["key_scale", "value_scale"] if int8_cache else []):
            layer[part] = self._keep(weights[f"{name}.{part}"])
        for part in ("qkv", "out", "gate_up", "down"):
            self._matrix(layer[part], f"{name}.{part}", weights)

    def _workspace(self, plan: np.ndarray) -> None:
        """What all threads work in."""
        stack, widest = self.stack, self._widest()
        attended = stack.heads * stack.head_dim
        widths = {
            "x": stack.dim,
            "qkv_out": attended + 2 * stack.kv_heads * stack.head_dim,
            "attended": attended,
            "inner": stack.ffn,
            "last": 2 * stack.dim,
            "shared_scales": widest // 32,
            "shared_sums": widest // 32,
        }
        for name, width in widths.items():
            plan[name] = self._keep(np.zeros((_TOKENS + 8, width), np.float32))
        plan["shared_values"] = self._keep(np.zeros((_TOKENS + 8, widest), np.int8))

    def _widest(self) -> int:
        """Inputs of a matrix at most, with what fills a block up."""
        stack = self.stack
        return -(-max(stack.dim, stack.ffn, stack.heads * stack.head_dim) // _LARGEST_BLOCK) * _LARGEST_BLOCK

    def scratch(self, plan: np.ndarray, capacity: int, length: int) -> np.ndarray:
        """What each thread works in during a run of so many positions over a cache of `capacity`; the plan gets where
        it is."""
        stack, positions = self.stack, -(-capacity // LANES) * LANES
        is_prompt = length >= tiles.PROMPT
        *places, size = tiles.scratch_layout(self._widest(), positions, stack.dim, stack.head_dim, is_prompt)
        for name, place in zip(("scales", "sums", "scores", "keys"), places, strict=True):
            plan[f"scratch_{name}"] = place
        memory = np.zeros(size * self.team.threads, np.uint8)
        plan["scratch"], plan["scratch_size"] = memory.ctypes.data, size
        return memory

    def _matrix(self, matrix: np.ndarray, name: str, weights: Mapping[str, np.ndarray]) -> None:
        """Put a matrix into tiles of 16 rows, and where they are into its record; SwiGLU's two halves by turns, which
        are read together."""
        bits = next((b for b in (4, 8) if f"{name}.q{b}" in weights), 0)
        if not bits or weights[f"{name}.q{bits}"].ndim != 3:
            raise ValueError(f"{name} is not quantized by blocks")
        rows, blocks, size = weights[f"{name}.q{bits}"].shape
        order: Any = slice(None)
        if name.endswith(".gate_up"):
            order = np.arange(rows).reshape(2, -1, LANES).transpose(1, 0, 2).reshape(-1)
        quantized = np.ascontiguousarray(weights[f"{name}.q{bits}"][order])
        block = size * 8 // bits
        if block % 32 or block > _LARGEST_BLOCK:
            raise ValueError(f"{name} has blocks of {block}")
        count = -(-rows // LANES)
        scales_at, zeros_at, end = tiles.block_layout(block, bits)
        packed = np.zeros((count, blocks, end), np.uint8)
        function(PACK)(quantized.ctypes.data, packed.ctypes.data, rows, blocks, block, bits)
        scales = weights[f"{name}.scales"].reshape(rows, blocks)[order]
        factors = np.zeros(count * LANES, np.float32)
        factors[:rows] = np.abs(scales).max(axis=1)  # so that the rest fits float16
        rest = np.divide(scales, factors[:rows, None], out=np.zeros_like(scales), where=factors[:rows, None] > 0)
        packed[:, :, scales_at:zeros_at] = _by_tile(rest.astype(np.float16), count).view(np.uint8)
        packed[:, :, zeros_at:] = _by_tile(_zero_points(name, weights, rows, blocks, bits)[order], count)
        matrix["weights"], matrix["factors"] = self._keep(packed), self._keep(factors)
        self.matrices.append(self._kept[-2])
        bias = weights.get(f"{name}.bias")
        if bias is not None:
            matrix["bias"] = self._keep(np.pad(bias.astype(np.float32).reshape(-1), (0, count * LANES - rows)))
        matrix["bits"], matrix["block"], matrix["blocks"] = bits, block, blocks
        matrix["tiles"], matrix["rows"] = count, rows

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
        assert outputs["logits"].shape[1] == session.rows, "logits have another width than the head"
        self._x, self._ends = inputs["x"], inputs["seqlens_k"]
        self._plan, self._layers = session.records()
        self._batch, self._length = self._x.shape[:2]
        capacity = inputs["past_key.0"].shape[2]
        self._memory = session.scratch(self._plan, capacity, self._length)
        for i, layer in enumerate(self._layers):
            layer["keys"] = inputs[f"past_key.{i}"].ctypes.data
            layer["values"] = inputs[f"past_value.{i}"].ctypes.data
        self._plan["capacity"], self._plan["input_step"] = capacity, self._length * session.stack.dim
        self._bind(0, self._batch, 0, self._length)
        together = self._batch * self._length <= _TOKENS
        rows = [(0, self._batch)] if together else [(b, b + 1) for b in range(self._batch)]
        starts = range(0, self._length, self._length if together else _TOKENS)
        self._parts = [(*r, s, min(self._length, s + _TOKENS)) for r in rows for s in starts]

    def _bind(self, first: int, last: int, start: int, end: int) -> None:
        plan = self._plan
        plan["batch"], plan["row"] = last - first, first
        plan["length"], plan["back"] = end - start, self._length - 1 - start
        plan["input"] = self._x[first, start].ctypes.data
        plan["seqlens"] = self._ends[first:].ctypes.data
        plan["wanted"] = end == self._length
        plan["logits"] = self._arrays["logits"][first:].ctypes.data
        if "hidden" in self._arrays:
            plan["hidden"] = self._arrays["hidden"][first:].ctypes.data

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


def _by_tile(values: np.ndarray, count: int) -> np.ndarray:
    """[rows, blocks] -> [count, blocks, 16], what is missing at the end zero."""
    rows, blocks = values.shape
    padded = np.zeros((count * LANES, blocks), values.dtype)
    padded[:rows] = values
    return np.ascontiguousarray(padded.reshape(count, LANES, blocks).transpose(0, 2, 1))


def _zero_points(name: str, weights: Mapping[str, np.ndarray], rows: int, blocks: int, bits: int) -> np.ndarray:
    points = weights.get(f"{name}.zero_points")
    if points is None:
        return np.full((rows, blocks), 1 << (bits - 1), np.uint8)
    points = points.reshape(rows, -1)
    if bits == 4:
        points = unpack_nibbles(points)
    return points[:, :blocks]
