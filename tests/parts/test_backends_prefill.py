"""Which graphs for prefill run beside which steps, on which processor."""

from __future__ import annotations

from dataclasses import replace

import pytest

from accelerator.export.component import ProgressEvent, counted
from accelerator.hardware import detect
from accelerator.parts import backends
from accelerator.parts.backends import beside_steps
from accelerator.runtime.options import SHORT_SPIN_US, RunOptions

NATIVE, ONNX = RunOptions(threads=2, backend="native"), RunOptions(threads=2)


@pytest.mark.parametrize(
    ("isa", "options", "expected"),
    [
        (("avx512_vnni", "amx_int8"), ONNX, (ONNX, True)),
        (("avx512_vnni",), ONNX, (ONNX, False)),
        (("avx512_vnni", "amx_int8"), NATIVE, (replace(ONNX, spin_us=SHORT_SPIN_US), False)),
        (("avx512_vnni",), NATIVE, None),
    ],
)
def test_prompts_and_steps(
    isa: tuple[str, ...],
    options: RunOptions,
    expected: tuple[RunOptions, bool] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "detect", lambda: replace(detect(), isa=isa))
    assert beside_steps(options) == expected


def test_weights_are_counted_as_they_are_asked_for() -> None:
    events: list[ProgressEvent] = []
    asked = counted(lambda name: name.upper(), 2, ProgressEvent("c", "build", precision="int8"), events.append)  # type: ignore[arg-type,return-value]
    assert [asked(name) for name in "abc"] == ["A", "B", "C"]
    assert events == [ProgressEvent("c", "build", done, 2, "int8") for done in (1, 2, 2)]
