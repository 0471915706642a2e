#!/usr/bin/env bash
# ONNX Runtime 1.32.0: a graph that draws noise by itself (RandomNormalLike without a seed, as in every Piper voice) draws the
# *same* noise in two sessions of one process, run for run; so a pool of sessions speaks identical takes. Runs of one session
# differ. `onnxruntime.set_seed` changes nothing for sessions that exist already, and for later ones it fixes the sequence of
# runs, not a run. A request's seed can therefore not be had from outside: the noise has to become an input. Fails if that
# changes.
#   first runs of two sessions equal, second runs equal, first and second different; set_seed after creation: no effect
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy
cd "$work"
ORT_DISABLE_TELEMETRY=1 "$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

value = helper.make_tensor_value_info
graph = helper.make_graph(
    [helper.make_node("RandomNormalLike", ["x"], ["noise"]), helper.make_node("Add", ["x", "noise"], ["y"])],
    "drawing",
    [value("x", TensorProto.FLOAT, ["n"])],
    [value("y", TensorProto.FLOAT, ["n"])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8).SerializeToString()
x = np.zeros(6, np.float32)


def session():
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def runs(one, count=3):
    return [one.run(None, {"x": x})[0] for _ in range(count)]


first, second = runs(session()), runs(session())
print("first runs", first[0].round(3), second[0].round(3))
assert all(np.array_equal(a, b) for a, b in zip(first, second))
assert not np.array_equal(first[0], first[1])

existing = session()
onnxruntime.set_seed(7)
assert all(np.array_equal(a, b) for a, b in zip(runs(existing), first)), "a session that exists takes no notice"
seeded = runs(session())
assert not np.array_equal(seeded[0], first[0])
assert not np.array_equal(seeded[0], seeded[1]), "the sequence of runs is fixed, not a run"
assert all(np.array_equal(a, b) for a, b in zip(runs(session()), seeded))
PYTHON
