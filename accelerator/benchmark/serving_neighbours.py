"""The scenario `neighbours`: several processes on one machine, each of which would like all of its cores."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .process import Process
from .serving_plan import SCENARIOS, ServingPlan
from .serving_text import SENTENCES

__all__ = ["NAME", "figures", "measure"]

NAME = "neighbours"
_TOGETHER_S = 0.5  # from the question until all begin

Report = Callable[[str], None]
Answer = Mapping[
    str, Any
]  # of a process: begun and ended (`time.monotonic`), and of each request number, seconds, audio


def measure(
    plan: ServingPlan, weights: str, start: Callable[[Report], Process], scratch: Path, report: Report
) -> tuple[dict[str, dict[str, list[float]]], list[str]]:
    """{item: {figure: [value]}}, and what was noticed. Raises ArmFailed; no process outlives this."""
    items = SCENARIOS[NAME].items(plan)
    alone: dict[str, list[Answer]] = defaultdict(list)
    beside: dict[str, list[list[Answer]]] = defaultdict(list)
    processes: list[Process] = []
    try:
        for number in range(plan.processes):  # one by one: the first one makes and measures what the others find
            report(f"{NAME}: opening process {number + 1} of {plan.processes}")
            processes.append(start(report))
            of_its_own = str(scratch / str(number))
            processes[-1].ask("open_beside", plan=plan.to_dict(), weights=weights, scratch=of_its_own)
            for item in items:
                processes[-1].ask("beside", item=item, numbers=[0], at=0.0)
        for number, requests in enumerate(_rounds(plan)):
            for item in items:
                report(f"{NAME}, round {number + 1}/{plan.rounds}: {item}")
                alone[item] += _asked(processes[:1], item, requests)
                beside[item].append(_asked(processes, item, requests))
        notes = chain.from_iterable(process.ask("notes") for process in processes)
        taken = {item: figures(alone[item], beside[item], plan.processes_per_core) for item in items}
        return {item: {name: [value] for name, value in of.items()} for item, of in taken.items()}, sorted({*notes})
    finally:
        _end(processes)


def _rounds(plan: ServingPlan) -> list[list[int]]:
    """Which requests each process makes in each round; the same in all of them."""
    return [list(part) for part in np.array_split(np.arange(plan.each), plan.rounds) if len(part)]


def _asked(processes: Sequence[Process], item: str, numbers: Sequence[int]) -> list[Answer]:
    """The answers of processes that begin at the same moment."""
    at, numbers = time.monotonic() + _TOGETHER_S, [int(number) for number in numbers]
    with ThreadPoolExecutor(len(processes), "accelerator-benchmark") as pool:
        answers = [pool.submit(process.ask, "beside", item=item, numbers=numbers, at=at) for process in processes]
        try:
            for answer in wait(answers, return_when=FIRST_EXCEPTION).done:
                answer.result()
        except BaseException:
            _end(processes)  # or the pool would wait for those that are still at work
            raise
        return [answer.result() for answer in answers]


def _end(processes: Sequence[Process]) -> None:
    for process in processes:
        process.close()


def figures(alone: Sequence[Answer], beside: Sequence[Sequence[Answer]], per_core: float) -> dict[str, float]:
    """An item's figures. alone: answers of a process that had the machine to itself. beside: round by round, those of
    all processes. per_core: processes for each core."""
    by_text: dict[int, list[float]] = defaultdict(list)
    for request in chain.from_iterable(answer["requests"] for answer in alone):
        by_text[request["number"] % len(SENTENCES)].append(request["seconds"])
    fair = {text: float(np.median(seconds)) * per_core for text, seconds in by_text.items()}
    requests = [r for answers in beside for answer in answers for r in answer["requests"]]
    shares = [r["seconds"] / fair[r["number"] % len(SENTENCES)] for r in requests]
    whole = float(np.median(list(chain.from_iterable(by_text.values()))))
    return {
        "alone_s": whole,
        "fair_s": whole * per_core,
        "median_shares": float(np.median(shares)),
        "slowest_shares": max(shares),
        "alone_audio_per_s": _throughput([[answer] for answer in alone]),
        "audio_per_s": _throughput(beside),
    }


def _throughput(rounds: Sequence[Sequence[Answer]]) -> float:
    """Seconds of audio a second, of all processes together, from each round's first beginning to its last end."""
    audio_s = sum(r["audio_s"] for answers in rounds for answer in answers for r in answer["requests"])
    seconds = sum(max(a["ended"] for a in answers) - min(a["begun"] for a in answers) for answers in rounds)
    return float(audio_s / seconds)
