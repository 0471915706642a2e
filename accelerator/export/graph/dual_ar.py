"""The dual autoregressive language model as two ONNX graphs: `slow` over frames, `fast` over a frame's codebooks.

The architecture is Fish-Speech's (Liao et al. 2024, arXiv:2411.01156): a causal language model (see `causal`), and a
second stack that generates codes from its hidden states.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .graph import Graph
from .quantize import Recipe, linear
from .rope import rope_tables, round_to_bfloat16
from .specs import CausalSpec, CodebookSpec, Hidden, KVRanges, TransformerSpec, Weights
from .transformer import build_stack, norm, transformer

__all__ = [
    "DualARSpec",
    "KVRanges",
    "TransformerSpec",
    "Weights",
    "build_fast",
    "build_slow",
    "rope_tables",
    "round_to_bfloat16",
]


@dataclass(frozen=True)
class DualARSpec:
    """A dual autoregressive model: a causal model over frames, and on top of it one over a frame's codebooks."""

    slow: TransformerSpec
    fast: TransformerSpec
    codebooks: int
    codebook_size: int
    semantic_begin: int  # first vocabulary id that stands for a semantic code
    semantic_end: int  # last such id, inclusive
    end_id: int
    fast_codes: int  # how many of the fast head's rows the engine samples from
    fast_input: Literal["pre_norm", "post_norm"]
    scale_codebook_embeddings: bool
    fast_projection: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DualARSpec:
        return cls(**{**data, "slow": TransformerSpec(**data["slow"]), "fast": TransformerSpec(**data["fast"])})

    @property
    def weight_bytes(self) -> int:
        """Bytes of both graphs' matrices in float32."""
        head, fast_head = len(self.rows) * self.slow.dim, self.fast_codes * self.fast.dim
        return 4 * (self.slow.matrix_weights + self.fast.matrix_weights + head + fast_head)

    @property
    def rows(self) -> np.ndarray:
        """Vocabulary ids that can be sampled, in the order of the exported head: the semantic ids, then the end id."""
        return self.causal.rows

    @property
    def causal(self) -> CausalSpec:
        """The slow model."""
        return CausalSpec(self.slow, ((self.semantic_begin, self.semantic_end + 1),), (self.end_id,))

    @property
    def codebook(self) -> CodebookSpec:
        """The fast model."""
        return CodebookSpec(self.fast, self.codebooks, self.codebook_size, self.fast_codes, self.semantic_begin)

    @property
    def hidden(self) -> Hidden:
        """What the slow model passes to the fast one."""
        return Hidden(self.fast.dim, self.fast_input == "post_norm", self.fast_projection)

    def graph(self, name: str) -> tuple[TransformerSpec, Hidden | None]:
        """The stack of the graph "slow" or "fast", and the hidden state that it outputs."""
        return (self.slow, self.hidden) if name == "slow" else (self.fast, None)


def build_slow(
    directory: Path,
    spec: DualARSpec,
    weights: Weights,
    recipe: Recipe,
    ranges: KVRanges | None = None,
    *,
    name: str = "slow",
) -> None:
    """Write <name>.onnx: embedded frames in, logits of the next main token and the fast model's input out.

    ranges: makes the key-value cache int8 if the recipe asks for that; see `build_stack`.
    """
    build_stack(directory, spec.causal, weights, recipe, ranges, name=name, prefix="slow", hidden=spec.hidden)


def build_fast(directory: Path, spec: DualARSpec, weights: Weights, recipe: Recipe, *, name: str = "fast") -> None:
    """Write <name>.onnx: embedded codes in, logits of the next codebook out (last position only)."""
    stack = spec.fast
    with Graph(directory, name) as graph:
        x = graph.input("x", np.float32, ["batch", "length", stack.dim])
        x, skip = transformer(graph, stack, "fast", x, weights, recipe)
        x = graph.op("Add", x, skip)
        x = graph.op("Gather", x, graph.constant(-1), axis=1)  # [B, D]
        x = norm(graph, x, "fast.norm", weights, stack.eps)
        logits = linear(graph, recipe.head(), x, "fast.head", weights("fast.head")[: spec.fast_codes])
        graph.output(logits, "logits", np.float32, ["batch", spec.fast_codes])
