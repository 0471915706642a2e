"""Finding the language model of a running engine: it is a local variable of the thread behind `engine.llama_queue`."""

from __future__ import annotations

import queue
import sys
from dataclasses import dataclass
from typing import Any

from ...errors import UnsupportedEngine
from ...hardware.forks import Lock
from .layouts import INFERENCE

__all__ = ["Reached", "reach"]

PROBE_TIMEOUT_S = 120.0  # a request that is being served is waited for
_probing = Lock()


@dataclass(frozen=True)
class Reached:
    """What the worker thread holds. checkpoint_path: the folder it was loaded from, if known."""

    model: Any
    checkpoint_path: str | None


def reach(engine: Any, *, timeout: float = PROBE_TIMEOUT_S) -> Reached:
    """The language model behind an engine's queue: read from its thread's frame, or asked for by a request.

    Raises UnsupportedEngine.
    """
    found = _from_frame(engine.llama_queue) or _by_request(engine.llama_queue, timeout)
    if found is None:
        raise UnsupportedEngine(
            "the engine's language model cannot be reached: no thread serves its llama_queue; "
            "make the queue with fish-speech's launch_thread_safe_queue, and wrap the engine before ending it"
        )
    return found


def _from_frame(requests: Any) -> Reached | None:
    """Reads the local variables of the function that serves `requests`, in whichever thread it runs."""
    for frame in sys._current_frames().values():
        at: Any = frame
        while at is not None:
            names = at.f_code.co_freevars + at.f_code.co_varnames  # cheap to look at; f_locals copies
            if "input_queue" in names and "model" in names:
                variables = at.f_locals
                if variables.get("input_queue") is requests and variables.get("model") is not None:
                    path = variables.get("checkpoint_path")
                    return Reached(variables["model"], None if path is None else str(path))
            at = at.f_back
    return None


def _by_request(requests: Any, timeout: float) -> Reached | None:
    """Sends a marked request; while it is on its way, the module's generate_long recognises it and answers.

    Other requests go on to the real function, and the module is restored afterwards.
    """
    module = sys.modules.get(INFERENCE)
    if module is None or not hasattr(requests, "put"):
        return None
    with _probing:
        original, mark, box = module.generate_long, object(), []

        def generate_long(**options: Any) -> Any:
            if options.get("accelerator_probe") is not mark:
                yield from original(**options)
                return
            box.append(options["model"])
            yield module.GenerateResponse(action="next")

        answers: queue.Queue[Any] = queue.Queue()
        module.generate_long = generate_long  # type: ignore[attr-defined]
        try:
            requests.put(module.GenerateRequest(request={"accelerator_probe": mark}, response_queue=answers))
            answers.get(timeout=timeout)
        except queue.Empty:
            return None
        finally:
            module.generate_long = original  # type: ignore[attr-defined]
        return Reached(box[0], None) if box else None
