"""An engine as anyone may write one."""

from __future__ import annotations

from typing import Any

import numpy as np

TONE = (0.3 * np.sin(np.arange(800) / 7)).astype(np.float32)


class Plain:
    sample_rate = 8000

    def __init__(self, answer: Any = None) -> None:
        self.answer, self.calls = answer, []  # type: ignore[var-annotated]

    def synthesize(self, text: str, **options: Any) -> Any:
        self.calls.append((text, options))
        return (TONE, 8000) if self.answer is None else self.answer
