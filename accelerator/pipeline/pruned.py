"""Pruning, for those who ask: used only where the proof passes and it brings what it promises, and always answered.

The answer for each part is in `status()` and in the log: what runs with less in it, or why nothing does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..errors import ExportError, ProofFailed
from ..export.component import Component, Export
from ..parts.part import Part, Pruned
from .selection import Choice
from .tuning import WORTH

__all__ = ["chosen"]

logger = logging.getLogger(__name__)


def chosen(
    part: Part, share: float, exported: Callable[[Component], Export], choose: Callable[[Part], Choice]
) -> Choice:
    """What `choose` takes for the part, among the first way to prune it that passes its proof.

    The choice's `pruned` is {"share", "used", "reason"}.
    """
    refused = []
    for way in part.pruned(share):
        try:
            export = exported(way.component)
        except ExportError as error:
            refused.append(f"{way.less}: {_why(error)}")
            continue
        return _tried(part, share, way, export, choose)
    reason = "; ".join(refused) or "there is no known way to prune it"
    return _answered(choose(part), part, share, False, reason)


def _tried(part: Part, share: float, way: Pruned, export: Export, choose: Callable[[Part], Choice]) -> Choice:
    """The choice among the part's backends and this one, whose proof has passed."""
    leaves = f"{way.less}: {_left(export.proof)}"
    choice = choose(_offering(part, way))
    if choice.call is None or way.component.name not in choice.exports:
        why = "it is not the fastest here" if choice.probe else "only a probe could say whether it is faster"
        return _answered(choice, part, share, False, f"{leaves}, but {why}")
    if way.instead is not None:
        reason = f"{leaves}, and its file packs to {export.proof['packed']:.2f}"
        return _answered(choice, part, share, True, reason)
    if (faster := _faster(choice, way)) < WORTH:  # no seed may sound different for less
        return _answered(choose(part), part, share, False, f"{leaves}, but it is only {faster:.2f} times as fast")
    return _answered(choice, part, share, True, f"{leaves}, and it is {faster:.2f} times as fast")


def _offering(part: Part, way: Pruned) -> Part:
    others = [b for b in part.backends if way.instead not in {component.name for component in b.components}]
    return replace(part, backends=(*others, way.backend))


def _faster(choice: Choice, way: Pruned) -> float:
    """By how much the fastest setting of this backend beats all that is not pruned, the original included."""
    seconds = choice.probe["seconds"]
    own = {name for name in seconds if name.startswith(f"{way.backend.name}-")}
    return float(min(seconds[name] for name in seconds.keys() - own) / min(seconds[name] for name in own))


def _why(error: ExportError) -> str:
    """In figures, where there are some."""
    report = error.report if isinstance(error, ProofFailed) else {}
    return str(report.get("error") or (_left(report) if "snr_db" in report else error))


def _left(report: Mapping[str, Any]) -> str:
    return f"{report['snr_db']:.1f} dB are left, {report['bar']['snr_db']:g} dB are asked"


def _answered(choice: Choice, part: Part, share: float, used: bool, reason: str) -> Choice:
    logger.log(
        logging.INFO if used else logging.WARNING,
        "pruning %g of %s is %s: %s",
        share,
        part.name,
        "used" if used else "not used",
        reason,
    )
    return replace(choice, pruned={"share": share, "used": used, "reason": reason})
