"""What each arm runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from accelerator.benchmark import BenchOptions
from accelerator.benchmark import arms as the_arms
from accelerator.benchmark.engines import Hooks, hooks_of
from accelerator.benchmark.plan import Plan
from accelerator.cache import ContentCache
from accelerator.engines import adapter_for
from accelerator.errors import EngineError, ProofFailed
from accelerator.hardware import choose_tier, detect
from accelerator.parts.part import Machine
from accelerator.pipeline.selection import Choice, Selector
from accelerator.reference import load
from accelerator.runtime.options import RunOptions
from accelerator.speech import AudioChunk, SamplingParams, SpeechRequest
from tests.doubles import part, probe

QUICK = BenchOptions(quick=True)


class FakeAdapter:
    """Speaks silence; notes who was asked. Its language model counts."""

    name = "fake"
    sample_rate = 1000

    def parts(self) -> list[Any]:
        return [
            SimpleNamespace(name=n, original=lambda n=n: f"part {n}", components=())
            for n in ("text2semantic", "decoder")
        ]

    def bind(self, calls: dict[str, Any]) -> Any:
        return SimpleNamespace(stream=lambda request, kept: [AudioChunk(np.zeros(500, np.float32), 1000)])

    def original(self, request: SpeechRequest) -> list[AudioChunk]:
        return [AudioChunk(np.zeros(250, np.float32), 1000), AudioChunk(np.zeros(250, np.float32), 500)]


SLOWER_AS_SHIPPED = Hooks(as_shipped=lambda adapter: {"text2semantic": lambda: "as it ships"})


@pytest.mark.parametrize(
    ("hooks", "name", "language_model", "audio_s"),
    [
        (SLOWER_AS_SHIPPED, "as-shipped", "as it ships", 0.75),
        (SLOWER_AS_SHIPPED, "pytorch-right-sized", "part text2semantic", 0.5),
        (Hooks(), "pytorch-right-sized", "part text2semantic", 0.75),
        (None, "as-shipped", None, 0.75),
        (None, "pytorch-right-sized", "part text2semantic", 0.5),
    ],
)
def test_pytorch_arms_run_what_is_known_of_the_engine(
    hooks: Hooks | None, name: str, language_model: str | None, audio_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(the_arms, "open_adapter", lambda plan, weights, **_: FakeAdapter())
    monkeypatch.setattr(the_arms, "hooks_of", lambda adapter: hooks)
    arm = the_arms.open_arm(Plan.of(QUICK), name, None)
    assert arm.call("decoder")() == "part decoder"
    assert arm.speak("Hello.", SamplingParams()).audio_s == audio_s
    if language_model is not None:
        assert arm.call("text2semantic")() == language_model
    else:
        assert "end to end only" in arm.notes[0]
        with pytest.raises(EngineError, match="no text2semantic that could be called alone as as-shipped"):
            arm.call("text2semantic")


def test_a_compiled_arm_compiles_or_says_that_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, hooks = Plan.of(QUICK), Hooks()
    monkeypatch.setattr(the_arms, "open_adapter", lambda plan, weights, **_: FakeAdapter())
    monkeypatch.setattr(the_arms, "hooks_of", lambda adapter: hooks)
    with pytest.raises(EngineError, match=r"torch\.compile"):
        the_arms.open_arm(plan, "pytorch-compiled", None)
    compiled: list[bool] = []
    hooks = Hooks(compile_torch=lambda adapter: compiled.append(True))
    arm = the_arms.open_arm(plan, "pytorch-compiled", None)
    assert compiled == [True]
    assert arm.call("decoder")() == "part decoder"


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_draw_the_same_frames() -> None:
    adapter = adapter_for(load("tiny"))
    prompt = adapter.engine.encode_text("Hello there.")
    params = SamplingParams(seed=1, max_new_tokens=6)
    call = next(part.original for part in adapter.parts() if part.name == "text2semantic")
    before = np.stack(list(call(prompt, params)))
    hooks = hooks_of(adapter)
    assert hooks is not None
    assert hooks.compile_torch is not None
    hooks.compile_torch(adapter)
    np.testing.assert_array_equal(np.stack(list(call(prompt, params))), before)
    model = adapter.engine.language_model
    assert all(block._compiled_call_impl is not None for block in (*model.layers, *model.fast_layers))


def test_digests_of_a_checkpoint_go_where_the_exports_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def opened(engine: str, path: Any, **options: Any) -> FakeAdapter:
        given.update(options)
        return FakeAdapter()

    monkeypatch.setattr(the_arms, "adapter_from_checkpoint", opened)
    plan = Plan.of(replace(QUICK, engine="fish-speech", checkpoint=tmp_path, cache_dir=tmp_path / "cache"))
    the_arms.open_adapter(plan, tmp_path, dtype="bf16")
    assert given["cache"].root == tmp_path / "cache"
    assert given["dtype"] == "bf16"


@pytest.mark.parametrize("bf16", [True, False])
def test_a_baseline_is_not_in_what_pytorch_emulates(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(the_arms, "has_bf16", lambda: bf16)
    options, (note,) = the_arms._usual("fish-speech")
    assert options == {"dtype": "bf16" if bf16 else "fp32"}
    assert ("no convolutions" in note) != bf16
    assert the_arms._usual("reference") == ({}, [])
    assert the_arms.SHIPPED["fish-speech"] == {"dtype": "bf16"}


def test_a_precision_that_the_proof_rejected_is_not_compared() -> None:
    report = {"precision": "int4", "kl": 0.3, "bar": {"kl": 0.15}}
    part = {"reason": "", "exports": {"text2semantic": {"precision": "int8", "rejected": [report]}}}
    optimizer: Any = SimpleNamespace(status=lambda: {"parts": {"text2semantic": part}})
    the_arms._check(optimizer, "int8")
    with pytest.raises(ProofFailed, match=r"int4 is not faithful .*kl 0\.3; .*users get int8"):
        the_arms._check(optimizer, "int4")


def test_a_part_that_the_probe_left_in_pytorch_is_measured_in_onnx_runtime_all_the_same(tmp_path: Path) -> None:
    made = part(original=lambda: "PyTorch", load=lambda paths, options: lambda: "ours", probe=probe(slow="onnx"))
    profile = detect()
    selector = Selector(ContentCache(tmp_path), Machine(profile, choose_tier(profile), 2, "fp32"))
    route: Any = SimpleNamespace(choice=Choice(None, "its replacement is slower here", "Slower"), part=made)
    optimizer: Any = SimpleNamespace(_runtime=SimpleNamespace(selector=selector))
    call, used, notes = the_arms._onnx_call(route, optimizer)
    assert call() == "ours"
    assert used == RunOptions(threads=2)
    assert "users get PyTorch here" in notes[0]
    route.choice = Choice(None, "the exporter failed", "ExportError")
    with pytest.raises(EngineError, match="the exporter failed"):
        the_arms._onnx_call(route, optimizer)
