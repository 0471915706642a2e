"""A traced module of several outputs: each of them is proven."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from accelerator.export.component import Built, Component
from accelerator.export.proof import worst
from accelerator.parts.traced import traced


class Both(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return 2 * x, x + 1


def component(off: float) -> Component:
    """off: by how much PyTorch's second answer is said to be another."""

    def examples() -> Iterator[Any]:
        for length in (5, 3, 9):
            x = np.random.default_rng(length).standard_normal((1, length)).astype(np.float32)
            yield (x,), [2 * x, x + 1 + np.float32(off)]

    return traced("both", Both, lambda: "0", {}, inputs={"x": {1: "n"}}, outputs=("first", "second"), examples=examples)


@pytest.mark.parametrize(("off", "passed"), [(0.0, True), (0.1, False)])
def test_every_output_is_compared(off: float, passed: bool, tmp_path: Path) -> None:
    made = component(off)
    made.build(tmp_path, "fp32", lambda _: None)
    report = made.prove(Built(tmp_path, "fp32", tmp_path))
    assert report["passed"] is passed
    assert report["lengths"] == [5, 3, 9]


def test_the_worst_figures_are_those_that_do_not_pass_then_the_largest() -> None:
    good, better = {"passed": True, "max_error": 0.2}, {"passed": True, "max_error": 0.1}
    misshapen, bad = {"passed": False, "shapes": [[1], [2]]}, {"passed": False, "max_error": 0.3}
    assert worst([better, good]) is good
    assert worst([good, bad, better]) is bad
    assert worst([bad, misshapen]) is misshapen
