"""How a part runs, whichever backend it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["BF16_FLAGS", "ON_CPU", "SHORT_SPIN_US", "Dtype", "RunOptions"]

SHORT_SPIN_US = 50
Dtype = Literal["fp32", "bf16", "int16"]
BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")  # processors that multiply bfloat16 faster than float32


@dataclass(frozen=True)
class RunOptions:
    """How a part runs. The defaults suit a shared machine; the probe picks `threads`.

    spin_us: how long idle threads spin before they sleep, in microseconds. By default ONNX Runtime spins long enough to
    halve the speed of everything else in the process, and collapses when another process needs the core; without
    spinning, every operator pays for a wake-up. Some tens of microseconds bridge the gaps within one run. arena: keep
    freed memory for the next run; off for graphs whose lengths vary a lot, since arenas never shrink. prepack: keep a
    copy of the weights in the kernels' own order; if off, they stay in the mapped file and runs are slow. backend,
    dtype: "onednn" is the part rewritten in PyTorch (on PyTorch's threads), which multiplies in `dtype`: "fp32", or
    where accurate enough "bf16", or "int16" on processors without bfloat16; "native" is this package's compiled
    kernels, for which only `threads` applies, and `dtype` where they multiply in less; so it does for "openvino"; the
    other fields are for "onnxruntime". providers: execution providers, the one that is meant first. engines: where
    those keep what they make of a graph, which is no part of how it runs.
    """

    threads: int = 1
    spin_us: int = 0
    arena: bool = True
    prepack: bool = True
    optimize: bool = True
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    backend: str = "onnxruntime"
    dtype: Dtype = "fp32"
    engines: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, Any]:
        found = {**asdict(self), "providers": list(self.providers)}
        del found["engines"]
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunOptions:
        return cls(**{**data, "providers": tuple(data["providers"])})


ON_CPU = RunOptions()
