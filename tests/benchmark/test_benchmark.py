"""What importing the room loads."""

from __future__ import annotations

import subprocess
import sys


def test_importing_it_loads_neither_torch_nor_onnxruntime() -> None:
    code = "import sys, accelerator.benchmark; print(sorted({'torch', 'onnxruntime', 'onnx'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
