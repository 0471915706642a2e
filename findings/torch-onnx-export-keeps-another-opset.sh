#!/usr/bin/env bash
# torch 2.13.0 with onnxscript 0.7.2: torch.onnx.export(dynamo=True, opset_version=17) returns a model of opset 18 where the graph has
# a mean over an axis or a padding. The exporter writes 18 and lets ONNX convert it down; where that fails, the trace goes to the
# log and the call returns as if nothing were amiss: no exception, no Python warning about it. Convolutions, LSTM and layer norm
# are converted. Who promises an opset (an old runtime, an NPU's compiler) has to read it from the file. Fails if that changes.
#   Conv1d: 17, LayerNorm: 17, Mean: 18, Pad: 18
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy onnx==1.23.2 onnxscript==0.7.2
cd "$work"
"$work/venv/bin/python" - 2>log <<'PYTHON'
import warnings

import torch


class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean(-1)


class Pad(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.pad(x, (1, 1))


modules = {"Conv1d": torch.nn.Conv1d(4, 4, 3), "LayerNorm": torch.nn.LayerNorm(8), "Mean": Mean(), "Pad": Pad()}
found = {}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for name, module in modules.items():
        program = torch.onnx.export(module.eval(), (torch.randn(2, 4, 8),), dynamo=True, opset_version=17)
        found[name] = program.model.opset_imports[""]
print(", ".join(f"{name}: {opset}" for name, opset in found.items()))
assert not any("opset" in str(each.message) for each in said)
assert found == {"Conv1d": 17, "LayerNorm": 17, "Mean": 18, "Pad": 18}
PYTHON
