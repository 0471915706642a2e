"""The backends of most parts: ONNX Runtime, OpenVINO, the part rewritten in PyTorch, and compiled kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import kernels
from ..export.calibration import Calibration
from ..export.component import Component, Export
from ..hardware import detect
from ..runtime.onnx import can_bound_spinning
from ..runtime.openvino import NAME
from ..runtime.options import BF16_FLAGS, SHORT_SPIN_US, Dtype, RunOptions
from ..runtime.threads import torch_threads
from .openvino import Answered, Load, dtypes_of, in_openvino
from .part import Backend, Call, Machine, Pruned
from .pruned import without_channels, without_heads, without_weights
from .quantized import in_int8

__all__ = [
    "COMPILED",
    "KERNEL_SLACK",
    "ONNX_RUNTIME",
    "OPENVINO",
    "REWRITTEN",
    "beside_steps",
    "compiled_kernels",
    "is_compiled",
    "nearer",
    "onnx_runtime",
    "onnx_runtime_int8",
    "openvino",
    "over_graphs",
    "pruned",
    "rewritten",
    "wants_prefill",
]

ONNX_RUNTIME, OPENVINO, REWRITTEN, COMPILED = "onnxruntime", NAME, "onednn", "native"  # as metrics and tunings say
KERNEL_SLACK = 1.1  # how much larger the kernels' error may be where the graphs themselves miss the bar
_ASKING = ("int4", "int8")  # int8 is the next better precision where a part has no int4

Proven = Callable[[RunOptions, Mapping[str, Export]], bool]


def onnx_runtime(
    components: tuple[Component, ...], load: Load, *, most_threads: int | None = None, alike: bool = False
) -> Backend:
    """Sessions of one thread, of the tier's guess, and beyond it; several threads also with a short spin.

    alike: several only where the proof says that they answer bit for bit as one does, see `onnx_file`; then callers
    share them, and memory. And those of the tier's guess on each of the execution providers that are asked for.
    """

    def offers(machine: Machine) -> Sequence[RunOptions]:
        spins = (0, SHORT_SPIN_US) if can_bound_spinning() else (0,)
        counts = _threads(machine, most_threads)
        plain = [RunOptions(threads=n, spin_us=spin) for n in counts for spin in (spins if n > 1 else spins[:1])]
        guess = min(counts, key=lambda n: abs(n - machine.tier.threads))  # for what is left to the processor
        on = [RunOptions(threads=guess, providers=each, engines=machine.engines) for each in machine.providers]
        return [*plain, *on]

    def proven(options: RunOptions, exports: Mapping[str, Export]) -> bool:
        return not alike or options.threads == 1 or all(each.proof.get("alike") is True for each in exports.values())

    return Backend(ONNX_RUNTIME, components, offers, load, proven, shared=alike)


def onnx_runtime_int8(component: Component, load: Load, given: Calibration) -> Backend:
    """Sessions of the part in int8, beside those in float32. load: as that of the float32 component's backend.

    Offered to those who ask for int8; to "auto" only where it was heard, or is as exact as other reduced precisions.
    """
    made = in_int8(component, given)
    plain = onnx_runtime((made,), lambda paths, options: load({component.name: paths[made.name]}, options))

    def offers(machine: Machine) -> Sequence[RunOptions]:
        asked = machine.precision in _ASKING or (machine.precision == "auto" and given.unasked)
        return plain.offers(machine) if asked else []

    return replace(plain, name=f"{ONNX_RUNTIME}-int8", offers=offers, probed=True)


def openvino(
    component: Component,
    load: Load,
    answered: Answered,
    *,
    most_threads: int | None = None,
    lower: bool = True,
) -> Backend:
    """OpenVINO over the graph of ONNX Runtime's component, if it was installed when this was called.

    In float32, and in bfloat16 where that is fast and proven, too. answered: the component's examples. load: as that of
    ONNX Runtime's backend, by `runtime.sessions.opened`. lower: whether bfloat16 will do at all.
    """
    judged = in_openvino(component, load, answered, lower=lower)
    installed = judged.config["openvino"] is not None

    def offers(machine: Machine) -> Sequence[RunOptions]:
        dtypes = dtypes_of(machine.profile.isa, lower=lower and machine.precision != "fp32")
        counts = _threads(machine, most_threads) if installed else ()
        return [RunOptions(threads=n, backend=OPENVINO, dtype=dtype) for dtype in dtypes for n in counts]

    def proven(options: RunOptions, exports: Mapping[str, Export]) -> bool:
        export = exports.get(judged.name)  # none where it failed its proof
        return export is not None and (options.dtype == "fp32" or export.proof.get("bf16", {}).get("passed") is True)

    needed = (component, judged) if installed else (component,)
    return Backend(OPENVINO, needed, offers, load, proven, probed=True)


def pruned(
    component: Component,
    load: Load,
    given: Calibration,
    *,
    heads: Callable[[float], Component] | None = None,
    most_threads: int | None = None,
) -> Callable[[float], Sequence[Pruned]]:
    """The ways to prune a component's float32 graph, for `Part.pruned`. load: as that of its own backend.

    heads(share): the component of a module with fewer heads, for a part that has attention and no channels to spare.
    """

    def way(made: Component, share: float, *, faster: bool) -> Pruned:
        less = made.name.removeprefix(f"{component.name}-without-")

        def opened(paths: Mapping[str, Path], options: RunOptions) -> Call:
            return load({component.name: paths[made.name]}, options)

        plain = onnx_runtime((made,), opened, most_threads=most_threads)
        backend = replace(plain, name=f"{ONNX_RUNTIME}-without-{less}-{share:g}", probed=faster)
        return Pruned(backend, less, None if faster else component.name)

    def ways(share: float) -> Sequence[Pruned]:
        fewer = (
            without_channels(component, given, share)
            if heads is None
            else without_heads(component, given, share, heads(share))
        )
        return way(fewer, share, faster=True), way(without_weights(component, given, share), share, faster=False)

    return ways


def compiled_kernels(
    components: tuple[Component, ...],
    load: Load,
    *,
    available: Callable[[], bool],
    proven: Proven,
    dtype: Dtype = "fp32",
) -> Backend:
    """Kernels over the weights of ONNX Runtime's graphs, or others. available: whether there are kernels here.

    dtype: what they multiply in; less than float32 is not for those who ask for that.
    """

    def offers(machine: Machine) -> Sequence[RunOptions]:
        if not available() or (dtype != "fp32" and machine.precision == "fp32"):
            return []
        return [RunOptions(threads=n, backend=COMPILED, dtype=dtype) for n in _threads(machine)]

    return Backend(COMPILED, components, offers, load, proven, probed=dtype != "fp32")


def rewritten(component: Component, load: Load) -> Backend:
    """The part rewritten in PyTorch, on PyTorch's threads: in float32, or in less where that is proven and fast.

    The proof of `component` has the figures of "bf16" or "int16" under that name. One call runs at a time, since two
    would compete for the cores.
    """

    def kinds(machine: Machine) -> Sequence[Dtype]:
        if machine.threads is not None and machine.threads != torch_threads():
            return []
        low: Dtype = "bf16" if any(flag in machine.profile.isa for flag in BF16_FLAGS) else "int16"
        return ["fp32"] if machine.precision == "fp32" else ["fp32", low]

    def offers(machine: Machine) -> Sequence[RunOptions]:
        return [RunOptions(threads=torch_threads(), backend=REWRITTEN, dtype=dtype) for dtype in kinds(machine)]

    def proven(options: RunOptions, exports: Mapping[str, Export]) -> bool:
        report = exports[component.name].proof
        return options.dtype == "fp32" or report.get(options.dtype, {}).get("passed") is True

    return Backend(REWRITTEN, (component,), offers, load, proven, probed=True, concurrent=False, kinds=kinds)


def over_graphs(components: tuple[Component, ...], load: Load, model: str) -> tuple[Backend, ...]:
    """Compiled kernels and ONNX Runtime, over the same exports. model: the component whose proof judges the kernels."""

    def proven(options: RunOptions, exports: Mapping[str, Export]) -> bool:
        return is_compiled(exports[model].proof)

    return (
        compiled_kernels(components, load, available=kernels.available, proven=proven),
        onnx_runtime(components, load),
    )


def is_compiled(proof: Mapping[str, Any]) -> bool:
    """Whether compiled kernels answer as they should over the weights of a language model's graphs: by their proof."""
    return proof.get("compiled", {}).get("usable") is True


def nearer(report: Mapping[str, Any], rejected: Mapping[str, Any], slack: float = 1.0) -> bool:
    """Whether figures that miss the bar are no worse than the main graphs', which miss it too (proof="warn")."""
    figures = rejected["bar"]
    return not rejected["passed"] and all(report[each] <= slack * float(rejected[each]) for each in figures)


def beside_steps(options: RunOptions) -> tuple[RunOptions, bool] | None:
    """How graphs for prefill run beside a backend, and whether they are for its steps, too; None if they do not.

    With AMX, whose matrix instructions compiled kernels do not use, they run prompts for both backends; and steps, too,
    in ONNX Runtime. Elsewhere they are the faster ones for its prompts only.
    """
    compiled, amx = options.backend == COMPILED, "amx_int8" in detect().isa
    if not compiled:
        return options, amx
    return (replace(options, backend=ONNX_RUNTIME, spin_us=SHORT_SPIN_US), False) if amx else None


def wants_prefill() -> bool:
    """Whether prefill graphs are worth it here: with AMX, or with VNNI where there are no compiled kernels."""
    return not {"amx_int8", *(() if kernels.available() else ("avx512_vnni",))}.isdisjoint(detect().isa)


def _threads(machine: Machine, most: int | None = None) -> list[int]:
    guess = machine.tier.threads
    counts = [1, guess, min(machine.profile.usable_cores, 2 * guess)] if machine.threads is None else [machine.threads]
    return sorted({min(n, most or n) for n in counts})
