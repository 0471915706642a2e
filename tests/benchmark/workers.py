"""A worker that answers at once, and a report to nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerator.benchmark.process import ArmFailed
from accelerator.benchmark.serving import ServingOptions, run
from accelerator.benchmark.serving_plan import SCENARIOS
from accelerator.benchmark.serving_text import SENTENCES


class FakeProcess:
    log: list[str]
    faults: dict[str, ArmFailed]
    alive = 0

    def __init__(self, _: Callable[[str], None]) -> None:
        type(self).alive += 1
        self._is_alive = True

    def ask(self, do: str, **arguments: Any) -> Any:
        if do == "prepare":
            part = {"backend": "onnxruntime", "precision": "int8", "threads": 2, "reason": "fastest"}
            facts = {"name": "fake", "sample_rate": 1000, "frame_s": 0.05}
            return {**facts, "weights": "w", "trained": False, "parts": {"text2semantic": part}}
        if do == "take":
            what = f"{arguments['scenario']}: {arguments['item']}"
            self.log.append(what)
            if error := self.faults.get(what):
                raise error
            return {f.name: 2.0 for f in SCENARIOS[arguments["scenario"]].figures}
        if do == "measure":
            self.log.append(f"throughput: pytorch {arguments['measure']['kind']}, {arguments['frames']}")
            if arguments["measure"]["kind"] == "speak":
                return {"rtf": 4.0, "spoken_frames": 6}
            return {f"prefill_{len(SENTENCES[0])}": 0.5, f"frame_{len(SENTENCES[0])}": 0.3}
        if do == "beside":
            self.log.append(f"neighbours: {arguments['item']} {arguments['numbers']}")
            if error := self.faults.get(f"neighbours: {arguments['item']}"):
                raise error
            requests = [{"number": n, "seconds": 2.0, "audio_s": 3.0} for n in arguments["numbers"]]
            return {"begun": 1.0, "ended": 1.0 + 2 * len(requests), "requests": requests}
        if do == "notes":
            return ["encoder in PyTorch: Slower: by far"]
        return None

    def close(self) -> None:
        type(self).alive -= self._is_alive
        self._is_alive = False


def told(_: str) -> None:
    pass


def measured(fake: type[FakeProcess], **options: Any) -> dict[str, Any]:
    start: Any = fake
    return run(ServingOptions(quick=True, **options), told, start=start, start_pytorch=start)
