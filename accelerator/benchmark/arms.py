"""The arms: an engine under one setting, behind the calls of its adapter's parts.

An adapter may offer hooks; see `Benchmarked`. Everything else is the adapter protocol.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..cache import ContentCache
from ..codec.convolutions import has_bf16
from ..engines import adapter_for, adapter_from_checkpoint
from ..engines.base import Adapter, Call
from ..errors import EngineError, ProofFailed
from ..export.component import ProgressEvent
from ..export.graph.dual_ar import DualARSpec
from ..inference.transformer import StepTimes
from ..optimizer import UniversalOptimizer
from ..parts.language_model import LANGUAGE_MODEL
from ..pipeline.fallback import Route
from ..runtime.options import RunOptions
from ..runtime.threads import torch_threads
from ..speech import SamplingParams, SpeechRequest
from .engines import hooks_of
from .plan import AS_SHIPPED, COMPILED, ONNX, Plan, precision_of

__all__ = ["Arm", "Spoken", "open_adapter", "open_arm", "prepare", "tone"]

KINDS = ("language_model", "codec", "speak")  # what an arm may have its own thread settings for
SHIPPED: Mapping[str, Mapping[str, Any]] = {"fish-speech": {"dtype": "bf16"}}  # options its own tools use on CPUs
PROMPT_TEXT = b"The morning train was late again, so we walked along the river and talked about the weather. "


class Spoken(NamedTuple):
    """One request, end to end."""

    elapsed_s: float
    audio_s: float


@dataclass
class Arm:
    """What is measured. threads: by kind of work, PyTorch's; for ONNX Runtime by part, for the record."""

    name: str
    adapter: Adapter
    calls: Mapping[str, Call]
    speak: Callable[[str, SamplingParams], Spoken]
    threads: dict[str, int]
    notes: list[str] = field(default_factory=list)
    spin_us: dict[str, int] = field(default_factory=dict)  # by part, ONNX Runtime's
    prompts: int = 0  # asked for so far
    seeds: dict[str, int] = field(default_factory=dict)  # measure -> a seed that does not end early

    @property
    def in_torch(self) -> bool:
        return precision_of(self.name) is None

    def call(self, part: str) -> Call:
        """Raises EngineError for a part that the engine or this arm lacks."""
        if part not in self.calls:
            raise EngineError(f"{self.adapter.name} has no {part} that could be called alone as {self.name}")
        return self.calls[part]

    def use_threads(self, kind: str) -> None:
        if self.in_torch:
            torch_threads(self.threads[kind])

    def torch_times(self, times: StepTimes) -> AbstractContextManager[Any]:
        """Time PyTorch's modules where it is known how; `times` stays zero otherwise."""
        hooks = hooks_of(self.adapter)
        if hooks is None or hooks.torch_times is None or not self.in_torch:
            return contextlib.nullcontext()
        return hooks.torch_times(self.adapter, times)

    def prompt(self, positions: int) -> np.ndarray:
        """A synthetic prompt int64 [1+C, positions]: text, a voice of seeded frames, text. Raises EngineError."""
        spec = self.spec
        text = np.frombuffer(PROMPT_TEXT, np.uint8).astype(np.int64)  # bytes are the first ids of every vocabulary
        prompt = np.zeros((1 + spec.codebooks, positions), np.int64)
        prompt[0] = np.resize(text, positions)
        voice = slice(positions // 8, positions - positions // 8)
        frames = voice.stop - voice.start
        self.prompts += 1  # a new voice each time: the beginnings of known ones are not prefilled again
        codes = np.random.default_rng([positions, self.prompts]).integers(0, spec.fast_codes, (spec.codebooks, frames))
        prompt[1:, voice] = codes
        prompt[0, voice] = spec.semantic_begin + codes[0]
        return prompt

    @functools.cached_property
    def codes(self) -> np.ndarray:
        """Codes int64 [C, m] of half a second of sound."""
        if "encoder" in self.calls:  # its codes lie in range, whatever the codebooks' sizes
            return np.asarray(self.calls["encoder"](tone(self.adapter.sample_rate, 0.5)))
        return np.random.default_rng(0).integers(0, self.spec.fast_codes, (self.spec.codebooks, 8))

    @functools.cached_property
    def frame_s(self) -> float:
        """Seconds of audio that one frame is."""
        codes = self.codes[:, :4]
        return len(self.call("decoder")(codes)) / codes.shape[1] / self.adapter.sample_rate

    @functools.cached_property
    def spec(self) -> DualARSpec:
        """The language model's dimensions, from its component. Raises EngineError if it is not a dual-AR model."""
        for part in self.adapter.parts():
            for component in part.components:
                if part.name == LANGUAGE_MODEL and component.name == LANGUAGE_MODEL:
                    known = {f.name for f in dataclasses.fields(DualARSpec)}
                    return DualARSpec.from_dict({k: v for k, v in component.config.items() if k in known})
        raise EngineError(f"{self.adapter.name} has no dual autoregressive language model to measure alone")


def tone(sample_rate: int, seconds: float) -> np.ndarray:
    """A tone under seeded noise, float32 [n]."""
    n = round(seconds * sample_rate)
    noise = np.random.default_rng(n).standard_normal(n) * 0.05
    return (0.3 * np.sin(2 * np.pi * 220 * np.arange(n) / sample_rate) + noise).astype(np.float32)


def prepare(plan: Plan, scratch: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the weights that all arms load, export every precision, and say what there is to compare."""
    weights = plan.options.checkpoint
    if plan.options.engine == "reference" and weights is None:
        from ..reference import load

        say(f"making random weights of size {plan.size}")
        weights = scratch / "reference.safetensors"
        load(plan.size).save(weights)
    adapter = open_adapter(plan, weights)
    rejected: dict[str, str] = {}
    for precision in plan.options.precisions:
        try:
            with _optimizer(plan, adapter, precision, progress=_told(say)) as optimizer:
                _check(optimizer.prepare(), precision)
        except Exception as error:  # whatever an export raises: this precision cannot be compared, the others can
            rejected[ONNX + precision] = f"{type(error).__name__}: {error}"
    hooks = hooks_of(adapter)
    shipped = "end to end only" if hooks is None else "same" if hooks.as_shipped is None else "separate"
    return {
        "engine": adapter.name,
        "sample_rate": adapter.sample_rate,
        "as_shipped": shipped,
        "weights": str(weights) if weights else None,
        "rejected": rejected,
    }


def open_arm(plan: Plan, name: str, weights: Path | None) -> Arm:
    """The arm, ready to be measured; its exports come from the cache."""
    precision = precision_of(name)
    return _torch_arm(plan, name, weights) if precision is None else _onnx_arm(plan, name, precision, weights)


def open_adapter(plan: Plan, weights: Path | None, **options: Any) -> Adapter:
    """The engine that the plan is about; without `weights` the reference engine's are random."""
    if plan.options.engine == "reference":
        from ..reference import ReferenceEngineError, load

        try:
            return adapter_for(load(plan.size) if weights is None else load(path=weights))
        except ReferenceEngineError as error:
            raise EngineError(str(error)) from error
    cache = ContentCache(plan.options.cache_dir)  # digests of the checkpoint's files go where the exports are
    given = {**options, **plan.options.engine_options}
    return adapter_from_checkpoint(plan.options.engine, weights, cache=cache, **given)


def _usual(engine: str) -> tuple[dict[str, Any], list[str]]:
    """The options that an engine's own tools use on CPUs, and what is to be said of them.

    Where PyTorch has no convolutions in bfloat16 for the processor, as with AVX2, they need minutes for a second of
    sound: float32 is what is compared with then, which is many times faster.
    """
    options = dict(SHIPPED.get(engine, {}))
    notes = [f"opened with {k} {v}, as the engine's own tools do on CPUs" for k, v in options.items()]
    if options.get("dtype") == "bf16" and not has_bf16():
        options["dtype"] = "fp32"
        notes = [
            "opened with dtype fp32: the engine's own tools use bf16, for which PyTorch has no convolutions on this "
            "processor; it would take minutes for a second of audio"
        ]
    return options, notes


def _shipped_adapter(plan: Plan, weights: Path | None, **usual: Any) -> Adapter:
    """The engine as its own loaders open it. Raises EngineError if the adapter does not know how."""
    adapter = open_adapter(plan, weights)
    if plan.options.engine == "reference":
        return adapter
    hooks = hooks_of(adapter)
    if hooks is None or hooks.open_as_shipped is None:
        raise EngineError(f"it is not known how {adapter.name} itself opens a checkpoint")
    return hooks.open_as_shipped(weights, **{**usual, **plan.options.engine_options})


def _torch_arm(plan: Plan, name: str, weights: Path | None) -> Arm:
    usual, notes = _usual(plan.options.engine)
    adapter = _shipped_adapter(plan, weights, **usual) if name == AS_SHIPPED else open_adapter(plan, weights, **usual)
    hooks = hooks_of(adapter)
    if name == COMPILED:
        if hooks is None or hooks.compile_torch is None:
            raise EngineError(f"it is not known what of {adapter.name} torch.compile could be given")
        hooks.compile_torch(adapter)
    calls = {part.name: part.original for part in adapter.parts()}
    same = hooks is not None and hooks.as_shipped is None
    if name == AS_SHIPPED:
        if hooks is not None and hooks.as_shipped is not None:
            calls |= hooks.as_shipped(adapter)
        else:
            calls.pop(LANGUAGE_MODEL, None)  # the part's own may have a smaller cache than the engine's
            notes.append("the language model is measured end to end only: it is not known how it is called as it ships")
    bound = None if name == AS_SHIPPED or same else adapter.bind(calls)

    def speak(text: str, params: SamplingParams) -> Spoken:
        request = SpeechRequest(text, None, params)
        start = time.perf_counter()
        own = bound is None or bound.stream is None
        chunks = list(adapter.original(request) if own else bound.stream(request, None))  # type: ignore[union-attr, misc]
        elapsed = time.perf_counter() - start
        return Spoken(elapsed, sum(len(c.audio) / c.sample_rate for c in chunks))

    threads = plan.options.threads or torch_threads()
    torch_threads(threads)
    return Arm(name, adapter, calls, speak, dict.fromkeys(KINDS, threads), notes)


def _onnx_arm(plan: Plan, name: str, precision: str, weights: Path | None) -> Arm:
    if plan.options.engine == "reference":
        optimizer = _optimizer(plan, open_adapter(plan, weights), precision)
    else:
        assert weights is not None
        settings = {**_settings(plan, precision), **plan.options.engine_options}
        optimizer = UniversalOptimizer.from_checkpoint(weights, plan.options.engine, **settings)
    _check(optimizer.prepare(), precision)
    calls, threads, spin_us, notes = {}, {}, {}, []
    for name_of_part, route in optimizer._routes.items():
        calls[name_of_part], options, note = _onnx_call(route, optimizer)
        threads[name_of_part], spin_us[name_of_part] = options.threads, options.spin_us
        notes += note

    def speak(text: str, params: SamplingParams) -> Spoken:
        given = {k: v for k, v in vars(params).items() if v is not None}
        metrics = optimizer.synthesize(text, **given).metrics
        if metrics["fallback"]:
            raise EngineError(f"PyTorch had to take over: {metrics['fallback'][0]}")
        return Spoken(metrics["elapsed_s"], metrics["audio_s"])

    return Arm(name, optimizer.adapter, calls, speak, threads, notes, spin_us)


def _onnx_call(route: Route, optimizer: UniversalOptimizer) -> tuple[Call, RunOptions, list[str]]:
    """What the part runs on, or what it would run on, where the probe prefers PyTorch: it is that which is measured."""
    choice, part = route.choice, route.part
    assert choice is not None
    if choice.call is not None and choice.options is not None:
        return choice.call, choice.options, []
    if choice.cause != "Slower":
        raise EngineError(f"{part.name} has no export: {choice.reason}")
    opened = dataclasses.replace(optimizer._runtime.selector, probe=False).load(part)
    assert opened.call is not None
    assert opened.options is not None
    note = f"{part.name}: users get PyTorch here, also in the end-to-end figures ({choice.reason})"
    return opened.call, opened.options, [note]


def _optimizer(plan: Plan, adapter: Adapter, precision: str, **options: Any) -> UniversalOptimizer:
    return UniversalOptimizer(None, adapter=adapter, **_settings(plan, precision), **options)


def _settings(plan: Plan, precision: str) -> dict[str, Any]:
    options = plan.options
    return {
        "precision": precision,
        "proof": options.proof,
        "cache_dir": options.cache_dir,
        "threads": options.threads,
        "providers": "auto" if options.providers == ("auto",) else options.providers,
    }


def _check(optimizer: UniversalOptimizer, precision: str) -> None:
    """Raises if the language model has no export in this very precision."""
    part = optimizer.status()["parts"].get(LANGUAGE_MODEL)
    if part is None:
        return
    export = part.get("exports", {}).get(LANGUAGE_MODEL)
    if export is None:
        raise EngineError(part["reason"])
    if export["precision"] != precision:
        report: Mapping[str, Any] = next((r for r in export["rejected"] if r["precision"] == precision), {})
        figures = ", ".join(f"{k} {v:.3g}" for k, v in report.items() if isinstance(v, float))
        raise ProofFailed(
            f"{precision} is not faithful to PyTorch on these weights ({figures}; bar {report.get('bar')}), users get "
            f"{export['precision']}: --proof warn (proof='warn') times it all the same",
            report,
        )


def _told(say: Callable[[str], None]) -> Callable[[ProgressEvent], None]:
    """Progress events as text, one line per component and stage."""
    last: tuple[str, str, str] | None = None

    def tell(event: ProgressEvent) -> None:
        nonlocal last
        what = (event.component, event.stage, event.precision)
        if what != last:
            last = what
            say(f"{event.stage} {event.component} {event.precision}".rstrip())

    return tell
