"""What importing the room loads and offers."""

from __future__ import annotations

import subprocess
import sys

import accelerator.hardware as hardware


def test_import_loads_neither_psutil_nor_cpuinfo() -> None:
    code = "import sys, accelerator.hardware; print({'psutil', 'cpuinfo', 'torch', 'onnxruntime'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_public_names() -> None:
    assert all(hasattr(hardware, name) for name in hardware.__all__)
