"""The process in which an engine serves: `python -m accelerator.benchmark.serving_worker`, driven as `worker` is.

Questions: prepare, open, warm, take.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .serving_plan import ServingPlan
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

    def prepare(self, plan: dict[str, Any], scratch: str) -> dict[str, Any]:
        """Make the weights and the exports that all scenarios use, and say what the engine is."""
        self._say("preparing the engine and its exports")
        of = ServingPlan.from_dict(plan)
        weights = of.options.checkpoint
        if of.options.engine == "reference" and weights is None:
            from ..reference import load

            weights = Path(scratch) / "reference.safetensors"
            load(of.size).save(weights)
        with _optimizer(of, weights) as optimizer:
            from ..engines.base import Voice
            from .serving_scenarios import Served
            from .serving_text import SENTENCES

            served = Served(optimizer.prepare(), of, Path(scratch) / "voices")
            pieces = served.pieces
            return {
                "name": optimizer.adapter.name,
                "sample_rate": optimizer.sample_rate,
                "frame_s": pieces.decoding().samples_per_frame / optimizer.sample_rate,
                "prompt": int(pieces.prompt(SENTENCES[0], Voice()).shape[1]),
                "weights": str(weights),
                "parts": _parts(optimizer.status()),
            }

    def open(self, plan: dict[str, Any], weights: str, scratch: str) -> None:
        from .serving_scenarios import Served

        of = ServingPlan.from_dict(plan)
        self._served = Served(_optimizer(of, Path(weights)).prepare(), of, Path(scratch))

    def warm(self, scenario: str) -> None:
        from .serving_scenarios import warm

        assert self._served is not None
        warm(self._served, scenario)

    def take(self, scenario: str, item: str, number: int) -> dict[str, float]:
        from .serving_scenarios import take

        assert self._served is not None
        return take(self._served, scenario, item, number)

    def notes(self) -> list[str]:
        """What was noticed meanwhile: parts that PyTorch spoke for."""
        assert self._served is not None
        return sorted(self._served.notes)


def _optimizer(plan: ServingPlan, weights: Path | None) -> UniversalOptimizer:
    from ..optimizer import UniversalOptimizer

    options = plan.options
    settings: dict[str, Any] = {
        "precision": options.precision,
        "proof": options.proof,
        "cache_dir": options.cache_dir,
        "threads": options.threads,
    }
    if options.engine != "reference":
        assert weights is not None
        return UniversalOptimizer.from_checkpoint(weights, options.engine, **settings, **options.engine_options)
    from ..reference import load

    return UniversalOptimizer(load(path=weights), **settings)


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
