"""The process in which an engine serves: `python -m accelerator.benchmark.serving_worker`, driven as `worker` is.

Questions: prepare, open, warm, take, notes; and of one of several processes open_beside, beside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .serving_plan import SCENARIOS, ServingPlan
from .worker import main

if TYPE_CHECKING:
    from ..optimizer import UniversalOptimizer
    from .serving_scenarios import Served

__all__ = ["ServingWorker"]


class ServingWorker:
    """Answers questions about one scenario. Torch is imported with the first of them, not before."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._served: Served | None = None
        self._beside: dict[str, Served] = {}

    def prepare(self, plan: dict[str, Any], scratch: str) -> dict[str, Any]:
        """Make the weights and the exports that all scenarios use, and say what the engine is."""
        self._say("preparing the engine and its exports")
        of = ServingPlan.from_dict(plan)
        weights, bundled = of.options.checkpoint, _bundled(of)
        if bundled is not None:
            weights = bundled
        elif of.options.engine == "reference" and weights is None:
            from ..reference import load

            weights = Path(scratch) / "reference.safetensors"
            load(of.size).save(weights)
        with _optimizer(of, weights, Path(scratch) / "voices") as optimizer:
            from .serving_scenarios import Served

            served = Served(optimizer.prepare(), of)
            stages = served.stages
            return {
                "name": optimizer.adapter.name,
                "sample_rate": optimizer.sample_rate,
                "frame_s": stages.unit_s,
                "weights": str(weights),
                "trained": bundled is not None,
                "parts": _parts(optimizer.status()),
            }

    def open(self, plan: dict[str, Any], weights: str, scratch: str) -> None:
        from .serving_scenarios import Served

        of = ServingPlan.from_dict(plan)
        self._served = Served(_optimizer(of, Path(weights), Path(scratch)).prepare(), of)

    def warm(self, scenario: str) -> None:
        from .serving_scenarios import warm

        assert self._served is not None
        warm(self._served, scenario)

    def take(self, scenario: str, item: str, number: int) -> dict[str, float]:
        from .serving_scenarios import take

        assert self._served is not None
        return take(self._served, scenario, item, number)

    def open_beside(self, plan: dict[str, Any], weights: str, scratch: str) -> None:
        """Be one of several processes: an engine for each of the scenario's items."""
        from .serving_scenarios import Served

        of = ServingPlan.from_dict(plan)
        for item in SCENARIOS["neighbours"].items(of):
            count = item.split()[0]
            fixed = replace(of, options=replace(of.options, threads=int(count))) if count.isdigit() else of
            served = Served(_optimizer(fixed, Path(weights), Path(scratch) / item.replace(" ", "-")), of)
            parts = served.optimizer.status()["parts"]
            served.optimizer.prepare(name for name in parts if name != "encoder")
            self._beside[item] = served

    def beside(self, item: str, numbers: list[int], at: float) -> dict[str, Any]:
        """Make these requests one after the other, the first one at a moment of `time.monotonic`, which all processes
        of a machine share."""
        from .serving_text import SENTENCES

        served = self._beside[item]
        frames = served.plan.frames if _bundled(served.plan) is None else None
        requests = []
        time.sleep(max(0.0, at - time.monotonic()))
        begun = time.monotonic()
        for number in numbers:
            text, start = number % len(SENTENCES), time.monotonic()
            speech = served.speak(SENTENCES[text], frames=frames, seed=text)
            seconds = time.monotonic() - start
            requests.append({"number": number, "seconds": seconds, "audio_s": speech.metrics["audio_s"]})
        return {"begun": begun, "ended": time.monotonic(), "requests": requests}

    def notes(self) -> list[str]:
        """What was noticed meanwhile: parts that PyTorch spoke for."""
        all_served = [*self._beside.values(), *([] if self._served is None else [self._served])]
        return sorted({note for served in all_served for note in served.notes})


def _optimizer(plan: ServingPlan, weights: Path | None, voices: Path) -> UniversalOptimizer:
    """voices: where they are remembered, so that new ones are new and the user's cache stays."""
    from ..optimizer import UniversalOptimizer

    options = plan.options
    settings: dict[str, Any] = {
        "precision": options.precision,
        "proof": options.proof,
        "cache_dir": options.cache_dir,
        "threads": options.threads,
        "voices_dir": voices,
    }
    if options.engine != "reference":
        assert weights is not None
        return UniversalOptimizer.from_checkpoint(weights, options.engine, **settings, **options.engine_options)
    from ..reference import load, load_bundled

    engine = load_bundled() if weights == _bundled(plan) else load(path=weights)
    return UniversalOptimizer(engine, **settings)


def _bundled(plan: ServingPlan) -> Path | None:
    """The trained voice's file, if it is what speaks."""
    from ..reference import bundled_voice

    return bundled_voice() if plan.speaks_in_the_bundled_voice else None


def _parts(status: dict[str, Any]) -> dict[str, Any]:
    """Part -> what it runs on here."""
    parts = {}
    for name, part in status["parts"].items():
        settings = part.get("options") or {}
        parts[name] = {
            "backend": settings.get("backend", part["backend"]) if part["backend"] != "pytorch" else "pytorch",
            "precision": part.get("precision"),
            "threads": settings.get("threads"),
            "reason": part["reason"],
        }
    return parts


if __name__ == "__main__":
    main(ServingWorker)
