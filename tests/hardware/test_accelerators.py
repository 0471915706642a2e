"""Which accelerators there are, as Linux tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from accelerator.hardware.accelerators import accelerators


def test_a_machine_without(tmp_path: Path) -> None:
    assert accelerators(tmp_path) == ()


def test_models_and_their_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    place = tmp_path / "proc/driver/nvidia"
    for number, model in enumerate(("NVIDIA L4", "NVIDIA A10")):
        file = place / f"gpus/0000:0{number}:00.0/information"
        file.parent.mkdir(parents=True)
        file.write_text(f"Model: \t\t {model}\nIRQ:   \t\t 52\nGPU UUID: \t GPU-{number}\n")
    (place / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.1\nGCC version:  12\n")
    driver = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.1"
    assert accelerators(tmp_path) == ("Model: \t\t NVIDIA A10", "Model: \t\t NVIDIA L4", driver)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert accelerators(tmp_path)[-1] == "CUDA_VISIBLE_DEVICES=1"
