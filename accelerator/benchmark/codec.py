"""A codec's decoder, alone: `accelerator bench feed-forward --engine spark-tts --checkpoint DIR`.

    result = run(CodecOptions(checkpoint), report=print)    # JSON-able
    print(to_markdown(result))

The engine's own PyTorch, with the better number of threads, and each backend that was proven here, under the setting
that its probe finds fastest: utterances of several lengths at once, and one in the windows of a stream. Everything
happens in this process; of the engine only its codec is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError, InvalidOption
from ..parts.part import Call, Part
from ..runtime.options import RunOptions
from ..runtime.threads import torch_threads
from .record import Record
from .report import _cell, _table, document
from .statistics import ratio, summarize

__all__ = ["ENGINES", "SCHEMA", "CodecOptions", "figures", "run", "title", "to_markdown"]

SCHEMA = 1
ENGINES = ("spark-tts",)
PYTORCH = "pytorch"
_SECONDS = (1.0, 3.0, 8.0)  # of audio at once
_STREAMED = 8.0


@dataclass(frozen=True)
class CodecOptions:
    """engine, checkpoint: whose codec. rounds: of which medians are taken. threads: of every arm; None: what is
    fastest. cache_dir: of the exports. quick: short audio. Raises InvalidOption."""

    checkpoint: Path
    engine: str = ENGINES[0]
    rounds: int = 5
    threads: int | None = None
    cache_dir: Path | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise InvalidOption("rounds must be at least 1")
        if self.engine not in ENGINES:
            raise InvalidOption(f"of {self.engine} no codec is measured alone: choose from {', '.join(ENGINES)}")


@dataclass(frozen=True)
class _Arm:
    """threads: PyTorch's; 0 for what brings its own."""

    call: Call
    threads: int
    about: str


def run(options: CodecOptions, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure, which takes minutes. report: told each step in one line. Raises EngineError."""
    from ..optimizer import UniversalOptimizer

    record, before = Record("accelerator-codec-benchmark", SCHEMA, report), torch_threads()
    settings = {"cache_dir": options.cache_dir, "threads": options.threads}
    with UniversalOptimizer.from_checkpoint(options.checkpoint, options.engine, **settings) as optimizer:
        adapter: Any = optimizer.adapter
        part = next(part for part in adapter.parts() if part.name == "decoder")
        report("exporting, unless it is in the cache")
        try:
            arms = dict(_arms(part, optimizer._runtime.selector, options, report))
            seconds = _measured(arms, adapter, options, report)
        finally:
            torch_threads(before)
    return record.result(
        {"options": asdict(options) | {"cache_dir": None, "checkpoint": None}, "rounds": options.rounds},
        engine={"name": options.engine, "size": None},
        arms={name: arm.about for name, arm in arms.items()},
        figures={m: {arm: summarize(values, "s") for arm, values in by.items()} for m, by in seconds.items()},
        ratios={m: {base: _times(by, base) for base in arms if not _is_ours(base)} for m, by in seconds.items()},
    )


def _is_ours(arm: str) -> bool:
    return arm.startswith("native")


def _times(by_arm: Mapping[str, Sequence[float]], base: str) -> dict[str, Any]:
    """Arm -> how many times less it needs than `base`, round by round."""
    return {arm: ratio(by_arm[base], values) for arm, values in by_arm.items() if _is_ours(arm)}


def _arms(
    part: Part, selector: Any, options: CodecOptions, report: Callable[[str], None]
) -> Iterator[tuple[str, _Arm]]:
    """Name -> arm, each under its fastest setting."""
    probed = dict[int, float]()
    for threads in {options.threads} if options.threads else {1, torch_threads()}:
        torch_threads(threads)
        probed[threads] = part.probe(part.original)
    fastest = min(probed, key=probed.__getitem__)
    yield PYTORCH, _Arm(part.original, fastest, f"PyTorch, {fastest} threads")
    torch_threads(fastest)
    found = dict[str, tuple[float, Call, RunOptions]]()
    for candidate in selector._candidates(part, part.backends):
        name = candidate.backend.name + (
            f"-{candidate.options.dtype}" if candidate.backend.name != "onnxruntime" else ""
        )
        call = selector._open(part, candidate, "").call
        taken = part.probe(call)
        report(f"{name}, {candidate.options.threads} threads: {taken:.2f} s")
        if name not in found or taken < found[name][0]:
            found[name] = taken, call, candidate.options
    if not found:
        raise EngineError(f"there is nothing but PyTorch that {part.name} was proven on")
    for name, (_, call, how) in sorted(found.items()):
        spin = f", idle ones spin for {how.spin_us} us" if how.spin_us else ""
        yield name, _Arm(call, 0, f"{how.backend}, {how.dtype}, {how.threads} threads{spin}")


def _measured(
    arms: Mapping[str, _Arm], adapter: Any, options: CodecOptions, report: Callable[[str], None]
) -> dict[str, dict[str, list[float]]]:
    """Seconds for a second of audio, by measure, arm and round."""
    measures: dict[str, Callable[[Call], np.ndarray]] = {
        f"decode_{seconds:g}s": _at_once(adapter, seconds / 10 if options.quick else seconds) for seconds in _SECONDS
    }
    measures[f"stream_{_STREAMED:g}s"] = _in_windows(adapter, _STREAMED / 4 if options.quick else _STREAMED)
    found = {measure: {arm: list[float]() for arm in arms} for measure in measures}
    for number in range(options.rounds):
        for measure, work in measures.items():
            for name, arm in arms.items():
                if arm.threads:
                    torch_threads(arm.threads)
                if not number:
                    work(arm.call)  # once before it is timed
                start = time.perf_counter()
                audio = work(arm.call)
                taken = (time.perf_counter() - start) / (len(audio) / adapter.sample_rate)
                found[measure][name].append(taken)
                report(f"round {number + 1}, {measure}, {name}: {taken:.3f} s for a second of audio")
    return found


def _codes(adapter: Any, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    count = max(1, round(seconds / adapter.unit_s))
    random = np.random.default_rng(count)
    return random.integers(0, adapter.sizes[0], count), random.integers(0, adapter.sizes[1], adapter.count)


def _at_once(adapter: Any, seconds: float) -> Callable[[Call], np.ndarray]:
    semantics, codes = _codes(adapter, seconds)
    return lambda call: np.asarray(call(semantics, codes))


def _in_windows(adapter: Any, seconds: float) -> Callable[[Call], np.ndarray]:
    """As a stream hands tokens over: see `SparkStages.windows`."""
    from ..engines.spark_tts.stages import windows
    from ..parts.decoding import Lookahead

    semantics, codes = _codes(adapter, seconds)

    def work(call: Call) -> np.ndarray:
        ahead = Lookahead(lambda window: np.asarray(call(window.units[0], codes, window=window)), adapter.reach)
        audio, begin, sizes = [], 0, list(windows(adapter.reach))
        while begin < len(semantics):
            size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
            units = list(semantics[begin : begin + size, None])
            begin += size
            audio.append(ahead.push(units, final=begin >= len(semantics)))
        return np.concatenate(audio)

    return work


def to_markdown(result: Mapping[str, Any]) -> str:
    """The figures of `run`: medians with quartiles, and quotients round by round."""
    said = [f"`{name}`: {about}." for name, about in result["arms"].items()]
    return document(title(result), figures(result), result, said=said)


def title(result: Mapping[str, Any]) -> str:
    """What was measured, in a line."""
    return f"The codec of {result['engine']['name']}"


def figures(result: Mapping[str, Any]) -> str:
    """The table alone, and what its columns are."""
    arms, rows = list(result["arms"]), []
    for measure, by_arm in result["figures"].items():
        rows.append([_named(measure), *(_cell(by_arm.get(arm), True) for arm in arms)])
    for measure, by_base in result["ratios"].items():
        for base, by_arm in by_base.items():
            rows.append(
                [f"{_named(measure)}: times less than `{base}`", *(_cell(by_arm.get(arm), True) for arm in arms)]
            )
    about = (
        "Seconds for a second of audio, of tokens at random. A stream decodes what is new of each window where its "
        "backend has a memory, and elsewhere all that the window looks at, too."
    )
    return _table(["", *(f"`{arm}`" for arm in arms)], rows) + "\n\n" + about


def _named(measure: str) -> str:
    kind, _, seconds = measure.partition("_")
    return {"decode": f"{seconds[:-1]} s at once", "stream": f"{seconds[:-1]} s in a stream's windows"}[kind]
